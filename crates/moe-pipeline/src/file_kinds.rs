//! Kinds of single files that commands write. Each is recognized by its content.

use moe_checkpoint::{FileKind, Seal, SourceFile, json, read_text};
use serde_json::{Map, Value};

use crate::statistics::StatisticsFile;

/// The file that `observe` writes.
pub(crate) const STATISTICS: FileKind = FileKind {
    content: "statistics",
    holds: |path| StatisticsFile::open(path).is_ok(),
    is_text: false,
};

/// The file that `logits` writes: a single tensor of that name.
pub(crate) const LOGITS: FileKind = FileKind {
    content: "logits",
    holds: |path| {
        let opened = SourceFile::open(path);
        opened.is_ok_and(
            |(_, entries)| matches!(entries.as_slice(), [entry] if entry.name == "logits"),
        )
    },
    is_text: false,
};

/// The file that `--plan-out` writes. Plans are meant to be edited: an edited one belongs to its
/// user.
pub(crate) const PLAN: FileKind = FileKind {
    content: "a plan as moe-convert wrote it",
    holds: |path| {
        let Ok(plan) = json::read_tree::<Value>(path) else { return false };
        let is_intact =
            read_text(path, MAX_PLAN_BYTES).is_ok_and(|text| Seal::JSON.is_intact(&text));
        // Nothing is lost with an empty plan.
        plan == Value::Object(Map::new()) || (is_intact && is_plan(&plan))
    },
    is_text: true,
};

/// Plans aren't larger than this.
const MAX_PLAN_BYTES: u64 = 64 << 20;

/// Whether `plan` holds decisions about layers, and nothing that plans don't have.
fn is_plan(plan: &Value) -> bool {
    let Some(keys) = plan.as_object() else { return false };
    let layers = match &plan["layers"] {
        Value::Null => return keys.is_empty(),
        layers => layers.as_object(),
    };
    keys.keys().all(|key| ["method", "layers", "sha256"].contains(&key.as_str()))
        && layers.is_some_and(|layers| layers.values().all(|layer| layer["keep"].is_array()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_plan_is_known_from_other_json() {
        assert!(is_plan(
            &json!({"method": "reap", "layers": {"0": {"experts": 4, "keep": [0, 1]}}})
        ));
        assert!(is_plan(&json!({})));
        for other in [
            json!({"model_type": "mixtral", "layers": {}}),
            json!([1]),
            json!({"layers": 4}),
            json!({"layers": {"0": {"experts": 4}}}),
            json!({"method": "reap"}),
            json!(null),
        ] {
            assert!(!is_plan(&other), "{other}");
        }
    }
}
