//! Text that a model was made on, as its receipt says.

use std::collections::BTreeSet;
use std::path::Path;

use moe_checkpoint::{Result, file_exists, json, sha256_file};
use serde_json::Value;

use crate::receipt::RECEIPT_FILE;

/// Larger files aren't hashed for a note.
const HASHED_BYTES: u64 = 64 << 20;

/// What is said of those of `texts` that the model in `dir` was pruned, calibrated or trained on.
///
/// # Errors
/// What reading them returns.
pub(crate) fn notes<'t>(
    dir: &Path,
    texts: impl IntoIterator<Item = &'t Path>,
) -> Result<Vec<String>> {
    let path = dir.join(RECEIPT_FILE);
    if !file_exists(&path)? {
        return Ok(Vec::new());
    }
    // A file of that name which is somebody else's says nothing.
    let receipt: Value = json::read(&path).unwrap_or_default();
    let learned = hashes(&receipt);
    let mut notes = Vec::new();
    let is_small = |path: &&Path| path.metadata().is_ok_and(|file| file.len() <= HASHED_BYTES);
    for path in texts.into_iter().filter(is_small) {
        if !learned.is_empty() && learned.contains(sha256_file(path)?.as_str()) {
            notes.push(format!(
                "{}: {} was made on this text, so that what is measured on it looks better than it is",
                path.display(),
                dir.display()
            ));
        }
    }
    Ok(notes)
}

/// SHA-256 of the files that passes of `receipt` learned from.
fn hashes(receipt: &Value) -> BTreeSet<&str> {
    let before = receipt["before"].as_array().into_iter().flatten();
    let options = before.chain([receipt]).map(|pass| &pass["options"]);
    let specs = options
        .flat_map(|options| ["data", "pool"].map(|key| &options[key]))
        .filter_map(Value::as_array)
        .flatten();
    let paths: Vec<&Path> = specs.filter_map(|spec| spec["path"].as_str()).map(Path::new).collect();
    // Texts go by the ends of their paths.
    let texts = receipt["texts"].as_object().into_iter().flatten();
    let read = texts.filter(|(name, _)| paths.iter().any(|path| path.ends_with(name)));
    let observed = receipt["observed"].as_object().into_iter().flatten();
    read.chain(observed).filter_map(|(_, hash)| hash.as_str()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn held_out_text_is_not_learned_from() {
        let options = |files: &[&str]| {
            let files: Vec<_> =
                files.iter().map(|path| json!({ "label": "x", "path": path })).collect();
            json!({ "data": files, "held-out": [{ "label": "x", "path": "h/c.txt" }] })
        };
        let receipt = json!({
            "before": [{ "pass": "prune", "options": options(&["a/a.txt"]) }],
            "options": options(&["b/b.txt", "d/b.txt"]),
            "texts": { "a.txt": "A", "b/b.txt": "B", "d/b.txt": "D", "c.txt": "C" },
            "observed": { "o.txt": "O" },
        });
        assert_eq!(hashes(&receipt), BTreeSet::from(["A", "B", "D", "O"]));
        assert!(hashes(&Value::Null).is_empty());
    }
}
