//! Tests `verify`: whether a result is unchanged since it was written, and how loaders read a
//! checkpoint.

mod loaded;
mod refused;
mod unchanged;
mod written;

use crate::common::checkpoint::{Checkpoint, SHARD};

const LLAMA: &str = "families/llama/base/model";
const QWEN3_MOE: &str = "families/qwen3_moe/base/model";
const MIXTRAL: &str = "families/mixtral/base/model";
const SHARDED: &str = "families/mixtral/sharded/model";

struct Case {
    name: &'static str,
    golden: &'static str,
    damage: fn(&Checkpoint),
    says: &'static [&'static str],
}

fn case(
    name: &'static str,
    golden: &'static str,
    damage: fn(&Checkpoint),
    says: &'static [&'static str],
) -> Case {
    Case { name, golden, damage, says }
}

fn prefixed(checkpoint: &Checkpoint, prefix: &str) {
    rename_all(checkpoint, |name| format!("{prefix}{name}"));
}

fn rename_all(checkpoint: &Checkpoint, rename: impl Fn(&str) -> String) {
    checkpoint.edit_header(SHARD, |header| {
        let entries = std::mem::take(header);
        header.extend(entries.into_iter().map(|(name, entry)| match name.as_str() {
            "__metadata__" => (name, entry),
            tensor => (rename(tensor), entry),
        }));
    });
}
