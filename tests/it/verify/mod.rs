//! Tests `verify`: whether a result is unchanged since it was written, and how loaders read a
//! checkpoint.

mod loaded;
mod refused;
mod unchanged;
mod written;

use serde_json::Value;

use crate::common::Sandbox;
use crate::common::checkpoint::{Checkpoint, SHARD};

const LLAMA: &str = "families/llama/base/model";
const QWEN3_MOE: &str = "families/qwen3_moe/base/model";
const MIXTRAL: &str = "families/mixtral/base/model";
const SHARDED: &str = "families/mixtral/sharded/model";

/// A way to change a golden checkpoint, and what `verify` says then.
struct Case {
    name: String,
    golden: &'static str,
    change: Box<dyn Fn(&Checkpoint)>,
    says: &'static [&'static str],
}

fn case(
    name: &str,
    golden: &'static str,
    change: impl Fn(&Checkpoint) + 'static,
    says: &'static [&'static str],
) -> Case {
    Case { name: name.to_owned(), golden, change: Box::new(change), says }
}

/// A config in which `key` has `value`.
fn set(
    golden: &'static str,
    key: &'static str,
    value: Value,
    says: &'static [&'static str],
) -> Case {
    case(&format!("{key} {value}"), golden, move |c| c.set(key, value.clone()), says)
}

/// A sandbox with the changed checkpoint `model`.
fn changed(case: &Case) -> Sandbox {
    let sandbox = Sandbox::new();
    (case.change)(&sandbox.copy(case.golden, "model"));
    sandbox
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
