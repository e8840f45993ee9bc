//! Hugging Face checkpoint directories: strict reading and streaming, hashed writing.
//!
//! This crate knows files (safetensors shards, the index, `config.json`, side files, SHA-256
//! manifests) and nothing about what a tensor means. It reads by position into buffers of the
//! caller, so that a source that shrinks gives an error and never a signal. It writes bytes as they
//! are made, hashes them on the way, and gives the result its final name only when it is complete.

#![deny(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, clippy::dbg_macro)]

mod bounded_read;
mod checkpoint;
mod error;
mod float;
mod folder;
mod formats;
mod header;
mod index;
mod is_object;
pub mod json;
mod locations;
mod lossy;
mod manifest;
mod members;
mod open_dir;
mod plural;
pub mod quantization;
mod regular;
mod result;
mod saved;
mod scratch;
mod scratch_store;
mod seal;
mod shard;
mod shell;
mod shown;
mod side_files;
mod snapshot;
mod staging;
mod stored;
mod writer;

pub use bounded_read::{
    BYTE_ORDER_MARK, begins_with_mark, read_text, read_whole, text_without_mark, without_mark,
};
pub use checkpoint::Checkpoint;
pub use error::{Error, Kind, Result};
pub use float::{Floats, or_infinite};
pub use folder::Folder;
pub use formats::CONFIG_FILE;
pub use header::{Entry, MAX_HEADER_BYTES, encode_header, parse_header};
pub use index::{EXPLICIT_KEY, INDEX_FILE, IndexFacts, SINGLE_FILE, shard_file_name};
pub use locations::Locations;
pub use lossy::{Paths, lossy_paths};
pub use manifest::{Hasher, MANIFEST_FILE, Manifest, sha256_bytes, sha256_file};
pub use plural::counted;
pub use quantization::Quantization;
pub use regular::{file_exists, open_file};
pub use result::{
    CARD_FILE, LOG_FILE, ListedFiles, RECEIPT_FILE, RUN_FILE, is_own_log, is_own_run_record,
    is_run_record,
};
pub use safetensors::Dtype;
pub use saved::{BUILD_INPUT, Saved, SavedFolder};
pub use scratch::Scratch;
pub use scratch_store::{KeptBytes, ScratchStore};
pub use seal::Seal;
pub use shard::{Declared, ShardPlan, plan_shards};
pub use shell::shell_word;
pub use shown::{is_obeyed, shown, shown_path};
pub use side_files::{SideFile, SideFiles, is_weights};
pub use snapshot::Snapshot;
pub use staging::{
    Existing, FileKind, FoundFile, OutputDir, PlacedFile, StagedFile, TemporaryDir, check_file,
    is_stream, lies_in_a_model, open_stream, open_to_append, remove_unfinished, unless_closed,
    write_file_atomically, write_files,
};
pub use stored::{SourceFile, Stored};
pub use writer::{WriteSummary, Writer};
