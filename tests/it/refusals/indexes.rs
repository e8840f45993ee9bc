//! Tests that damaged and hostile indexes of shards are refused.

use super::{
    Case, EVERY_COMMAND, Q, SECOND_SHARD, SHARDED, all_refused, all_refused_in_bounds, case, crowd,
};
use crate::common::checkpoint::INDEX;

/// An index that says that the tensor `Q` is in the file `shard`.
fn placed(shard: &'static str, words: &'static [&'static str]) -> Case {
    case(&format!("{shard:?}"), move |c| c.set_index(Q, shard), words)
}

#[test]
fn indexes_that_lead_out_of_the_folder_are_refused() {
    let cases = [
        placed("../evil.safetensors", &[INDEX, "../evil", "outside"]),
        placed("/etc/passwd", &[INDEX, "/etc/passwd", "outside"]),
        placed("a/../../b", &[INDEX, "../b", "outside"]),
        placed("..", &[INDEX, "outside"]),
        placed("", &[INDEX, "outside"]),
        placed("a\0b", &[INDEX, "outside"]),
    ];
    all_refused(SHARDED, EVERY_COMMAND, &cases);
}

/// An index of this text.
fn text(text: &'static str, words: &'static [&'static str]) -> Case {
    case(text, move |c| c.write(INDEX, text), words)
}

#[test]
fn files_that_are_not_indexes_are_refused() {
    let cases = [
        case("no index", |c| c.remove(INDEX), &[INDEX, "several shards", "download"]),
        case("an index that is a folder", |c| c.make_directory_of(INDEX), &[INDEX]),
        case("broken JSON", |c| c.truncate(INDEX, -20), &[INDEX, "JSON"]),
        case("empty", |c| c.truncate(INDEX, 0), &[INDEX, "JSON"]),
        text("[]", &[INDEX, "JSON"]),
        text("{}", &[INDEX, "weight_map"]),
        text(r#"{"weight_map": {}}"#, &[INDEX, "no tensor"]),
        text(r#"{"weight_map": {"a": 1}}"#, &[INDEX, "JSON"]),
    ];
    all_refused(SHARDED, EVERY_COMMAND, &cases);
}

#[test]
fn indexes_of_damaged_or_missing_shards_are_refused() {
    let cases = [
        case(
            "a missing shard",
            |c| c.remove(SECOND_SHARD),
            &[INDEX, SECOND_SHARD, "download the missing shard"],
        ),
        placed("model-9.safetensors", &[INDEX, "model-9.safetensors"]),
        case("a shard cut short", |c| c.truncate(SECOND_SHARD, -2), &[SECOND_SHARD, "truncated"]),
        case("an empty shard", |c| c.truncate(SECOND_SHARD, 0), &[SECOND_SHARD, "too few"]),
        case("a shard that is a folder", |c| c.make_directory_of(SECOND_SHARD), &[SECOND_SHARD]),
    ];
    all_refused(SHARDED, EVERY_COMMAND, &cases);
}

#[test]
fn indexes_of_any_size_and_depth_are_refused_in_bounds() {
    let deep_key = || format!("{{\"x\":{}", "[".repeat(1_000_000));
    let cases = [
        case("a deep index", |c| c.write(INDEX, "[".repeat(1_000_000)), &[INDEX, "JSON"]),
        case("a deep key", move |c| c.write(INDEX, deep_key()), &[INDEX, "JSON"]),
        case("a crowded index", |c| c.write(INDEX, crowd()), &[INDEX, "weight_map"]),
        case("a link to itself", |c| c.make_link_of(INDEX, INDEX), &["model"]),
        case("a device", |c| c.make_link_of(INDEX, "/dev/zero"), &[INDEX, "regular file"]),
    ];
    all_refused_in_bounds(SHARDED, &cases);
}

#[test]
fn indexes_in_odd_json_are_refused_in_bounds() {
    let not_utf_8 = b"{\"weight_map\": {\"\xff\": \"a\"}}";
    let cases = [
        text(r#"{"weight_map":{},"weight_map":{}}"#, &[INDEX, "no tensor"]),
        text("{\"weight_map\": {}}\0", &[INDEX, "JSON"]),
        text("\u{feff}{\"weight_map\": {}}", &[INDEX, "no tensor"]),
        case("not UTF-8", move |c| c.write(INDEX, not_utf_8), &[INDEX, "JSON"]),
    ];
    all_refused_in_bounds(SHARDED, &cases);
}
