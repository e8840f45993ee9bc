//! Files compressed by gzip, which are unpacked to an anonymous scratch file.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::GzDecoder;
use moe_checkpoint::{Error, Kind, Result, Scratch};

use super::scratch::{CHUNK_BYTES, no_room, scratch};
use crate::text::bytes::TextBytes;
use crate::text::kind::{FileStart, OpenedText, TextFormat};
use crate::text::source::TextOrigin;

/// A gzip file, whose content may be of any kind.
pub(super) struct Gzip;

impl TextFormat for Gzip {
    fn recognizes(&self, head: &FileStart<'_>) -> Result<bool> {
        Ok(head.bytes.starts_with(b"\x1f\x8b"))
    }

    fn open(&self, bytes: TextBytes, _: &FileStart<'_>) -> Result<OpenedText> {
        // A scratch file holds content that was unpacked already.
        let Some(file) = bytes.file() else {
            return Err(Error::new(Kind::Unsupported, "this is gzip within gzip")
                .remedy("unpack it first: gunzip"));
        };
        let (scratch, end) = unpacked(file)?;
        Ok(OpenedText::Unpacked(bytes.unpacked(scratch, end), Box::new(Gzip)))
    }
}

impl TextOrigin for Gzip {
    fn name(&self) -> &'static str {
        "gzip"
    }
}

/// Maximum ratio of unpacked to packed size. Text shrinks to about a tenth; a small file with a
/// ratio above this was made to fill a disk.
const MAX_RATIO: u64 = 100;
/// Unpacked files up to this size may have any ratio.
const SMALL_BYTES: u64 = 1 << 30;

/// Unpacks the gzip file `file`, and returns its content with its size in bytes.
fn unpacked(file: &File) -> Result<(Scratch, u64)> {
    let scratch = scratch()?;
    let packed = file.metadata().map_or(0, |metadata| metadata.len());
    let max_bytes = SMALL_BYTES.max(packed.saturating_mul(MAX_RATIO));
    let mut unpacker = GzipMembers::new(BufReader::with_capacity(CHUNK_BYTES, file));
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut end = 0;
    loop {
        let read = unpacker.read(&mut chunk).map_err(|e| {
            Error::new(Kind::Malformed, "this gzip file can't be unpacked")
                .source(e)
                .remedy("check it by gzip -t, and download it again")
        })?;
        if read == 0 {
            return Ok((scratch, end));
        }
        scratch.write_at(end, &chunk[..read]).map_err(no_room)?;
        end += read as u64;
        if end > max_bytes {
            let what = format!("this gzip file of {packed} bytes holds more than {max_bytes}");
            return Err(Error::new(Kind::Unsupported, what)
                .remedy("unpack it first (gunzip -k), and give the part that is wanted"));
        }
    }
}

/// Reads all members of a gzip file, one after the other, as Python's `gzip` does. Zeros between
/// them and after the last are skipped: tapes and block devices pad files with them.
struct GzipMembers<R: BufRead> {
    /// The member that is being read; None after the last.
    member: Option<GzDecoder<R>>,
}

impl<R: BufRead> GzipMembers<R> {
    fn new(reader: R) -> Self {
        Self { member: Some(GzDecoder::new(reader)) }
    }
}

impl<R: BufRead> Read for GzipMembers<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.member {
            let read = member.read(buffer)?;
            if read > 0 || buffer.is_empty() {
                return Ok(read);
            }
            let rest = self.member.take().map(GzDecoder::into_inner);
            self.member = rest.map(skip_zeros).transpose()?.flatten().map(GzDecoder::new);
        }
        Ok(0)
    }
}

/// Skips the zeros at the start of `reader`. Returns None if nothing follows them.
fn skip_zeros<R: BufRead>(mut reader: R) -> io::Result<Option<R>> {
    loop {
        let held = reader.fill_buf()?;
        let zeros = held.iter().take_while(|byte| **byte == 0).count();
        if held.is_empty() {
            return Ok(None);
        }
        if zeros < held.len() {
            reader.consume(zeros);
            return Ok(Some(reader));
        }
        reader.consume(zeros);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn member(text: &str) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    }

    /// Files are accepted and refused as by `gzip.decompress` of Python 3.11.
    #[test]
    fn gzip_is_read_to_its_end_as_python_reads_it() {
        let (a, b, zeros) = (member("a"), member("b"), [0; 3000]);
        let cases: [(Vec<u8>, Option<&str>); 8] = [
            (a.clone(), Some("a")),
            ([&a[..], &zeros].concat(), Some("a")),
            ([&a[..], &b].concat(), Some("ab")),
            ([&a[..], &zeros, &b, &zeros].concat(), Some("ab")),
            ([&a[..], b"x"].concat(), None),
            ([&a[..], &zeros, b"rest"].concat(), None),
            ([&a[..], &b[..12]].concat(), None),
            ([&zeros, &a[..]].concat(), None),
        ];
        for (bytes, wanted) in cases {
            for capacity in [1, 100, 1 << 16] {
                let mut text = String::new();
                let mut members = GzipMembers::new(BufReader::with_capacity(capacity, &bytes[..]));
                let read = members.read_to_string(&mut text);
                assert_eq!(read.ok().map(|_| text.as_str()), wanted, "{capacity}");
            }
        }
    }
}
