//! Remains of a result's files after a crash, or after a copy that was broken off. Replacing them
//! by a new result loses nothing.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::path::Path;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use crate::bounded_read::read_whole;
use crate::header::{Entry, MAX_HEADER_BYTES, parse_header};
use crate::index::INDEX_FILE;
use crate::json;
use crate::regular::open_file;
use crate::result::RECEIPT_FILE;

/// Whether the file `name` of the result `target` is the remains of a file that a run wrote, rather
/// than someone's own file: it is empty, or the beginning of a receipt or of weights. If it is long
/// enough to tell, the weights must be those that the index or receipt describes.
pub(super) fn is_damaged(target: &Path, name: &str) -> bool {
    let path = target.join(name);
    is_empty(&path)
        || (name == RECEIPT_FILE && is_cut_receipt(&path))
        || are_cut_weights(target, name).unwrap_or(false)
}

/// Whether the file `path` is empty.
pub(super) fn is_empty(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|found| found.is_file() && found.len() == 0)
}

/// The beginnings of receipts: today's, and those of builds that wrote no format.
const RECEIPT_STARTS: [&str; 2] = [
    "{\n  \"format\": 1,\n  \"tool\": {\n    \"name\": \"moe-convert\",\n",
    "{\n  \"tool\": {\n    \"name\": \"moe-convert\",\n",
];

/// Whether the file `path` is a receipt that was cut short.
fn is_cut_receipt(path: &Path) -> bool {
    let Ok(bytes) = read_whole(path, json::MAX_JSON_BYTES) else { return false };
    let begins =
        |start: &str| bytes.starts_with(start.as_bytes()) || start.as_bytes().starts_with(&bytes);
    RECEIPT_STARTS.into_iter().any(begins)
        && serde_json::from_slice::<IgnoredAny>(&bytes).is_err_and(|error| error.is_eof())
}

/// The part of a receipt that describes its result's tensors.
#[derive(Deserialize)]
struct Said {
    result: SaidResult,
}

#[derive(Deserialize)]
struct SaidResult {
    tensors: u64,
    bytes: u64,
}

/// Whether the file `name` is a safetensors file that was cut short, and a run may have written it
/// as far as it goes. It either ends within its header, or has a valid header that lists the
/// tensors that this result has there, and ends before the last of them does. None if the file, or
/// the list of tensors, can't be read.
fn are_cut_weights(target: &Path, name: &str) -> Option<bool> {
    let mut file = open_file(&target.join(name)).ok()?;
    let mut start = Vec::new();
    file.by_ref().take(8).read_to_end(&mut start).ok()?;
    if !name.ends_with(".safetensors") || !begins_a_length(&start) {
        return Some(false);
    }
    let Ok(length) = start.try_into().map(u64::from_le_bytes) else { return Some(true) };
    let mut header = Vec::new();
    file.by_ref().take(length.min(MAX_HEADER_BYTES)).read_to_end(&mut header).ok()?;
    if (header.len() as u64) < length {
        // It contains no weights.
        return Some(is_cut_object(&header));
    }
    let parsed: Map<String, Value> = serde_json::from_slice(&header).ok()?;
    let end = parsed.values().filter_map(|tensor| tensor["data_offsets"][1].as_u64()).max()?;
    let present = file.metadata().ok()?.len().checked_sub(8 + length)?;
    let entries = parse_header(&header, end).ok()?;
    Some(present < end && are_the_results(target, name, &entries)?)
}

/// Whether `bytes` are the length of a header as runs write it, or the beginning of one. The length
/// is little-endian, and a multiple of 8, since headers are padded.
fn begins_a_length(bytes: &[u8]) -> bool {
    let mut least = [0; 8];
    least[..bytes.len()].copy_from_slice(bytes);
    // Missing bytes can only increase the length.
    u64::from_le_bytes(least) <= MAX_HEADER_BYTES
        && bytes.first().is_some_and(|byte| byte.is_multiple_of(8))
}

/// Whether `bytes` are empty, or the beginning of a JSON object followed by spaces.
fn is_cut_object(bytes: &[u8]) -> bool {
    let begins = bytes.is_empty() || bytes.starts_with(b"{");
    // A complete object was cut among its spaces.
    begins && serde_json::from_slice::<Value>(bytes).err().is_none_or(|error| error.is_eof())
}

/// Whether the result `target` has these tensors in its file `name`, according to its index. If all
/// tensors are in one file, the receipt must give the same number of tensors and bytes, unless it
/// is cut too.
fn are_the_results(target: &Path, name: &str, entries: &[Entry]) -> Option<bool> {
    if target.join(INDEX_FILE).symlink_metadata().is_ok() {
        let index: Value = json::read_tree(&target.join(INDEX_FILE)).ok()?;
        let here =
            index["weight_map"].as_object()?.iter().filter(|(_, file)| file.as_str() == Some(name));
        let found: BTreeSet<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
        return Some(here.map(|(tensor, _)| tensor.as_str()).collect::<BTreeSet<_>>() == found);
    }
    if is_cut_receipt(&target.join(RECEIPT_FILE)) {
        return Some(true);
    }
    let Said { result } = json::read(&target.join(RECEIPT_FILE)).ok()?;
    let bytes: u64 = entries.iter().map(|entry| entry.end - entry.start).sum();
    Some(result.tensors == entries.len() as u64 && result.bytes == bytes)
}
