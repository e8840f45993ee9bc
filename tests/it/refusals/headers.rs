//! Tests that shards with damaged or hostile headers are refused.

use serde_json::{Value, json};

use super::{Case, DOWN, EVERY_COMMAND, LLAMA, Q, all_refused, all_refused_in_bounds, case};
use crate::common::checkpoint::{Checkpoint, SHARD};

const HEAD: &str = "lm_head.weight";

#[test]
fn shards_cut_short_are_refused() {
    let cases = [
        case("a byte short", |c| c.truncate(SHARD, -1), &[SHARD, "truncated", "download"]),
        case("half", |c| c.truncate(SHARD, 70_000), &[SHARD, "truncated", "model.layers."]),
        case("in the header", |c| c.truncate(SHARD, 500), &[SHARD, "the header claims"]),
        case("in the length", |c| c.truncate(SHARD, 5), &[SHARD, "too few"]),
        case("empty", |c| c.truncate(SHARD, 0), &[SHARD, "too few"]),
        case(
            "bytes too many",
            |c| c.edit_bytes(SHARD, |b| b.push(0)),
            &[SHARD, "after the last tensor"],
        ),
        case("zeros", |c| c.edit_bytes(SHARD, |b| b.fill(0)), &[SHARD, "header"]),
    ];
    all_refused(LLAMA, EVERY_COMMAND, &cases);
}

fn set_length(c: &Checkpoint, length: u64) {
    c.edit_bytes(SHARD, |bytes| bytes[..8].copy_from_slice(&length.to_le_bytes()));
}

#[test]
fn headers_that_are_no_headers_are_refused() {
    let cases = [
        case("length 2^63", |c| set_length(c, 1 << 63), &[SHARD, "9223372036854775808"]),
        case("length 2^64 - 1", |c| set_length(c, u64::MAX), &[SHARD, "the header claims"]),
        case("length 99 MB", |c| set_length(c, 99_000_000), &[SHARD, "the header claims"]),
        case("length 0", |c| set_length(c, 0), &[SHARD, "header"]),
        case("broken JSON", |c| c.set_header(r#"{"a":{"dtype":"#), &[SHARD, "not a JSON object"]),
        case("not UTF-8", |c| c.set_header(b"{\"\xff\xfe\":{}}"), &[SHARD, "not a JSON object"]),
        case(
            "nested deeply",
            |c| c.set_header(format!("{{\"a\":{}", "[".repeat(100_000))),
            &[SHARD, "header"],
        ),
        case("a list", |c| c.set_header("[]"), &[SHARD, "not a JSON object"]),
        case("an entry that is no object", |c| c.set_header(r#"{"a":1}"#), &[SHARD, "tensor"]),
        case("text after it", |c| c.set_header("{} x"), &[SHARD, "not a JSON object"]),
    ];
    all_refused(LLAMA, EVERY_COMMAND, &cases);
}

/// A header that gives a tensor another range: `to` of its start and end.
fn range(
    tensor: &'static str,
    to: fn(u64, u64) -> (u64, u64),
    words: &'static [&'static str],
) -> Case {
    case(&format!("range of {tensor}: {words:?}"), move |c| c.move_range(tensor, to), words)
}

#[test]
fn headers_that_lie_about_ranges_are_refused() {
    let cases = [
        // Too short, and backwards.
        range(DOWN, |s, e| (s, e - 4), &[SHARD, DOWN, "takes"]),
        range(DOWN, |s, e| (e, s), &[SHARD, DOWN, "takes"]),
        range(DOWN, |s, e| (s - 4, e - 4), &[SHARD, "overlap", "model.layers.0."]),
        // The range of another tensor.
        range(Q, |s, e| (s - 7680, e - 7680), &[SHARD, "overlap"]),
        range(DOWN, |s, e| (s + 4, e + 4), &[SHARD, "belong to no tensor"]),
        // Outside of the file.
        range(DOWN, |s, e| (s + (1 << 50), e + (1 << 50)), &[SHARD, "model.layers.0."]),
        range(DOWN, |s, e| (u64::MAX - (e - s), u64::MAX), &[SHARD]),
        entry(DOWN, "data_offsets", json!([-4, 8956]), &[SHARD, DOWN, "-4"]),
    ];
    all_refused(LLAMA, EVERY_COMMAND, &cases);
}

/// A header that says `value` under `key` of a tensor.
pub(super) fn entry(
    tensor: &'static str,
    key: &'static str,
    value: Value,
    words: &'static [&'static str],
) -> Case {
    let name = format!("{key} {value} of {tensor}");
    case(&name, move |c| c.set_entry(tensor, key, value.clone()), words)
}

#[test]
fn headers_that_lie_about_tensors_are_refused() {
    let cases = [
        entry(DOWN, "shape", json!([40, 57]), &[SHARD, DOWN, "[40, 57]"]),
        entry(DOWN, "shape", json!([1u64 << 40, 1u64 << 40]), &[SHARD, DOWN, "size"]),
        entry(DOWN, "shape", json!([-40, 56]), &[SHARD, DOWN, "-40"]),
        entry(DOWN, "dtype", json!("F99"), &[SHARD, DOWN, "F99"]),
        case("an entry without dtype", drop_dtype, &[SHARD, DOWN, "dtype"]),
        case("a name twice", name_twice, &[SHARD, "twice", "model.norm.weight"]),
    ];
    all_refused(LLAMA, EVERY_COMMAND, &cases);
}

fn drop_dtype(c: &Checkpoint) {
    c.edit_header(SHARD, |header| {
        header[DOWN].as_object_mut().unwrap().remove("dtype");
    });
}

/// JSON maps can't hold a key twice, so this works on the text.
fn name_twice(c: &Checkpoint) {
    c.rename_tensor("model.norm.weight", "model.norM.weight");
    c.edit_bytes(SHARD, |bytes| {
        let at = bytes.windows(17).position(|w| w == b"model.norM.weight").unwrap();
        bytes[at..at + 17].copy_from_slice(b"model.norm.weight");
        let at = bytes.windows(14).position(|w| w == b"lm_head.weight").unwrap();
        // Seventeen bytes replace fourteen; the padding before the data has room for them.
        bytes.splice(at..at + 14, *b"model.norm.weight");
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap());
        bytes[..8].copy_from_slice(&(length + 3).to_le_bytes());
    });
}

/// A shard with the text `header` before `data_bytes` zeros.
pub(super) fn shard(header: &str, data_bytes: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &vec![0; data_bytes]].concat()
}

/// A header of a million empty tensors.
fn million_tensors() -> Vec<u8> {
    let tensor =
        |index: u32| format!(r#""t{index}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#);
    let tensors: Vec<String> = (0..1_000_000).map(tensor).collect();
    shard(&format!("{{{}}}", tensors.join(",")), 0)
}

/// A header with one tensor, each of whose parts may be of any length.
fn one_tensor(name: &str, dtype: &str, shape: &str) -> Vec<u8> {
    let entry = format!(r#"{{"dtype":"{dtype}","shape":[{shape}],"data_offsets":[0,1]}}"#);
    shard(&format!(r#"{{"{name}":{entry}}}"#), 1)
}

/// A shard of the given bytes.
fn written(
    name: &str,
    bytes: impl Fn() -> Vec<u8> + 'static,
    words: &'static [&'static str],
) -> Case {
    case(name, move |c| c.write(SHARD, bytes()), words)
}

const MB_90: usize = 90_000_000;

#[test]
fn headers_of_any_size_are_refused_in_bounds() {
    let cases = [
        written("nonsense", || shard(&"{\"a\"".repeat(MB_90 / 4), 0), &[SHARD, "header"]),
        written("blanks", || shard(&" ".repeat(MB_90), 0), &[SHARD, "header"]),
        written("a million tensors", million_tensors, &[SHARD, "262144 tensors"]),
        written(
            "45 million dimensions",
            || one_tensor("t", "U8", &("1,".repeat(MB_90 / 2) + "1")),
            &[SHARD, "64 dimensions"],
        ),
        written(
            "a name of 90 MB",
            || one_tensor(&"n".repeat(MB_90), "U8", "1"),
            &[SHARD, "more than 1024 bytes"],
        ),
        written("a dtype of 90 MB", || one_tensor("t", &"F".repeat(MB_90), "1"), &[SHARD, "FFF"]),
    ];
    all_refused_in_bounds(LLAMA, &cases);
}

#[test]
fn headers_that_clear_the_terminal_are_refused_in_bounds() {
    let cases = [
        case(
            "a name that clears the terminal",
            |c| c.rename_tensor(HEAD, "a\x1b[2J\nremedy: run rm -rf"),
            &[SHARD, "control characters", "\\u{1b}[2J\\nremedy"],
        ),
        entry(HEAD, "dtype", json!("\x1b[2J"), &[SHARD, "\\u{1b}[2J"]),
    ];
    all_refused_in_bounds(LLAMA, &cases);
}

#[test]
fn shapes_that_overflow_are_refused_in_bounds() {
    let cases = [
        // The product wraps to the right size.
        entry(HEAD, "shape", json!([1u64 << 63, 2, 101, 40]), &[SHARD, HEAD, "size"]),
        entry(HEAD, "shape", json!([1.8446744073709552e19, 1]), &[SHARD, HEAD]),
    ];
    all_refused_in_bounds(LLAMA, &cases);
}
