//! A scratch file for content that can't be read by position where it lies.

use moe_checkpoint::{Error, Kind, Result, Scratch};

/// Number of bytes that are unpacked at a time.
pub(super) const CHUNK_BYTES: usize = 1 << 20;

pub(super) fn scratch() -> Result<Scratch> {
    Scratch::create(&std::env::temp_dir()).map_err(no_room)
}

pub(super) fn no_room(error: Error) -> Error {
    Error::new(Kind::Io, "there is no room to unpack this data file")
        .source(error)
        .remedy("set TMPDIR to a folder on a disk with more room, or unpack it yourself")
}
