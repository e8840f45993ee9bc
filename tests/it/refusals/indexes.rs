//! Tests that damaged and hostile indexes of shards are refused.

use super::{
    EVERY_COMMAND, Q, SECOND_SHARD, SHARDED, all_refused, all_refused_in_bounds, case, crowd,
};
use crate::common::checkpoint::INDEX;

#[test]
fn damaged_indexes_are_refused() {
    let cases = [
        case(
            "a missing shard",
            |c| c.remove(SECOND_SHARD),
            &[INDEX, SECOND_SHARD, "download the missing shard"],
        ),
        case(
            "a path upwards",
            |c| c.set_index(Q, "../evil.safetensors"),
            &[INDEX, "../evil", "outside"],
        ),
        case(
            "an absolute path",
            |c| c.set_index(Q, "/etc/passwd"),
            &[INDEX, "/etc/passwd", "outside"],
        ),
        case(
            "a path downwards and up",
            |c| c.set_index(Q, "a/../../b"),
            &[INDEX, "../b", "outside"],
        ),
        case("a folder", |c| c.set_index(Q, ".."), &[INDEX, "outside"]),
        case("no name", |c| c.set_index(Q, ""), &[INDEX, "outside"]),
        case("NUL in a name", |c| c.set_index(Q, "a\0b"), &[INDEX, "outside"]),
        case(
            "a shard that is not there",
            |c| c.set_index(Q, "model-9.safetensors"),
            &[INDEX, "model-9.safetensors"],
        ),
        case("broken JSON", |c| c.truncate(INDEX, -20), &[INDEX, "JSON"]),
        case("empty", |c| c.truncate(INDEX, 0), &[INDEX, "JSON"]),
        case("a list", |c| c.write(INDEX, "[]"), &[INDEX, "JSON"]),
        case("no weight_map", |c| c.write(INDEX, "{}"), &[INDEX, "weight_map"]),
        case("no tensor", |c| c.write(INDEX, r#"{"weight_map": {}}"#), &[INDEX, "no tensor"]),
        case(
            "a number for a shard",
            |c| c.write(INDEX, r#"{"weight_map": {"a": 1}}"#),
            &[INDEX, "JSON"],
        ),
        case("an index that is a folder", |c| c.make_directory_of(INDEX), &[INDEX]),
        case("no index", |c| c.remove(INDEX), &[INDEX, "several shards", "download"]),
        case("a shard cut short", |c| c.truncate(SECOND_SHARD, -2), &[SECOND_SHARD, "truncated"]),
        case("an empty shard", |c| c.truncate(SECOND_SHARD, 0), &[SECOND_SHARD, "too few"]),
        case("a shard that is a folder", |c| c.make_directory_of(SECOND_SHARD), &[SECOND_SHARD]),
    ];
    all_refused(SHARDED, EVERY_COMMAND, &cases);
}

#[test]
fn indexes_of_any_size_and_depth_are_refused_in_bounds() {
    let cases = [
        case("a deep index", |c| c.write(INDEX, "[".repeat(1_000_000)), &[INDEX, "JSON"]),
        case(
            "a deep key",
            |c| c.write(INDEX, format!("{{\"x\":{}", "[".repeat(1_000_000))),
            &[INDEX, "JSON"],
        ),
        case("a crowded index", |c| c.write(INDEX, crowd()), &[INDEX, "weight_map"]),
        case(
            "two weight_maps",
            |c| c.write(INDEX, r#"{"weight_map":{},"weight_map":{}}"#),
            &[INDEX, "no tensor"],
        ),
        case("NUL", |c| c.write(INDEX, b"{\"weight_map\": {}}\0"), &[INDEX, "JSON"]),
        case(
            "a byte-order mark",
            |c| c.write(INDEX, "\u{feff}{\"weight_map\": {}}"),
            &[INDEX, "no tensor"],
        ),
        case(
            "not UTF-8",
            |c| c.write(INDEX, b"{\"weight_map\": {\"\xff\": \"a\"}}"),
            &[INDEX, "JSON"],
        ),
        case("a link to itself", |c| c.make_link_of(INDEX, INDEX), &["model"]),
        case("a device", |c| c.make_link_of(INDEX, "/dev/zero"), &[INDEX, "regular file"]),
    ];
    all_refused_in_bounds(SHARDED, &cases);
}
