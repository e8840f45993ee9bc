//! Detects held-out text that something was learned from.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use moe_checkpoint::{Result, file_exists, sha256_file};
use moe_forward::{Corpus, overlap};
use serde_json::Value;

use crate::file_names::RECEIPT_FILE;
use crate::fingerprint::sha256_of;
use crate::portable::portable;
use crate::receipt::{Receipt, ReceiptFile};

/// Files larger than this aren't hashed for a note.
const HASHED_BYTES: u64 = 64 << 20;
/// Texts written by hand share less than this with each other, even if they have templates or
/// licenses in common.
const MIN_SHARE: f64 = 0.01;
/// The problem with measuring on such text.
const FLATTERED: &str = "so that what is measured looks better than it is";
/// The remedy for measuring on such text.
const REMEDY: &str = "give --held-out other text";

/// The text that a run learns from.
pub(crate) struct Learned<'a> {
    /// Windows of token ids.
    pub windows: Vec<&'a [u32]>,
    /// The files that the windows come from.
    pub files: Vec<&'a Path>,
    /// Hashes of the files that statistics were gathered on.
    pub observed: BTreeSet<&'a String>,
}

impl Learned<'_> {
    /// The warning if `held_out` has files or windows that were learned from; None if it has none.
    /// For texts that are read in parts, `digests` has the hash of the part that was read.
    ///
    /// # Errors
    /// Errors of reading that text.
    pub fn warning(
        &self,
        held_out: &Corpus,
        digests: &BTreeMap<PathBuf, String>,
    ) -> Result<Option<String>> {
        if let Some(warning) = self.shared(held_out) {
            return Ok(Some(warning));
        }
        for text in held_out.texts.iter().filter(|_| !self.observed.is_empty()) {
            if self.observed.contains(&sha256_of(&text.path, digests)?) {
                let name = portable(&text.path);
                return Ok(Some(format!(
                    "{name} is held out, and the statistics were gathered on it, {FLATTERED}: {REMEDY}"
                )));
            }
        }
        Ok(None)
    }

    fn shared(&self, held_out: &Corpus) -> Option<String> {
        let windows: Vec<&[u32]> = held_out.sequences().collect();
        let shared = overlap(&windows, self.windows.iter().copied());
        let share = shared as f64 / held_out.tokens().max(1) as f64;
        if share >= MIN_SHARE {
            let percent = 100.0 * share;
            return Some(format!(
                "{percent:.0} % of the held-out text stands in the text that was learned from, {FLATTERED}: {REMEDY}"
            ));
        }
        let learned: Vec<PathBuf> = self.files.iter().filter_map(|path| real(path)).collect();
        let is_learned = |path: &PathBuf| real(path).is_some_and(|path| learned.contains(&path));
        let twice = held_out.texts.iter().find(|text| is_learned(&text.path))?;
        Some(format!(
            "{} is learned from and held out, which differ only as far as the seed draws other windows: {REMEDY}",
            portable(&twice.path)
        ))
    }
}

fn real(path: &Path) -> Option<PathBuf> {
    path.canonicalize().ok()
}

/// A note on each of `texts` that the model in `dir` was pruned, calibrated or trained on.
///
/// # Errors
/// Errors of reading them.
pub(crate) fn notes<'t>(
    dir: &Path,
    texts: impl IntoIterator<Item = &'t Path>,
) -> Result<Vec<String>> {
    let texts: Vec<&Path> = texts.into_iter().collect();
    if texts.is_empty() || !file_exists(&dir.join(RECEIPT_FILE))? {
        return Ok(Vec::new());
    }
    let learned = match ReceiptFile::read(dir) {
        Ok(ReceiptFile::Read(receipt)) => hashes(&receipt),
        Ok(ReceiptFile::Other { .. }) => return Ok(vec![unknown(dir, "is of another format")]),
        Err(_) => return Ok(vec![unknown(dir, "can't be read")]),
    };
    let mut notes = Vec::new();
    for path in texts.into_iter().filter(|_| !learned.is_empty()) {
        if is_small(path) && learned.contains(&sha256_file(path)?) {
            notes.push(format!(
                "{}: {} was made on this text, so that what is measured on it looks better than it is",
                path.display(),
                dir.display()
            ));
        }
    }
    Ok(notes)
}

/// The note on the result in `dir` whose receipt doesn't say what it was made on, because it `is`.
fn unknown(dir: &Path, is: &str) -> String {
    let dir = dir.display();
    format!("{dir}: its receipt {is}, so that it isn't known what text it was made on")
}

/// Whether the file `path` is hashed for a note.
fn is_small(path: &Path) -> bool {
    path.metadata().is_ok_and(|file| file.len() <= HASHED_BYTES)
}

/// SHA-256 of the files that passes of `receipt` learned from.
fn hashes(receipt: &Receipt) -> BTreeSet<String> {
    let specs = receipt
        .work()
        .flat_map(|(_, options)| ["data", "pool"].map(|key| &options[key]))
        .filter_map(Value::as_array)
        .flatten();
    let paths: Vec<&Path> = specs.filter_map(|spec| spec["path"].as_str()).map(Path::new).collect();
    // Texts are identified by the ends of their paths.
    let is_learned = |(name, _): &(&String, &String)| paths.iter().any(|path| path.ends_with(name));
    let read = receipt.texts.iter().filter(is_learned);
    read.chain(&receipt.observed).map(|(_, hash)| hash.clone()).collect()
}

#[cfg(test)]
mod tests {
    use moe_checkpoint::json;
    use serde_json::json;

    use super::*;
    use crate::receipt::EarlierPass;
    use crate::receipt::made_up::receipt;

    /// Without a receipt that can be read, measuring on the text of a training isn't noticed.
    #[test]
    fn an_unreadable_receipt_is_noted_where_text_is_given() {
        let dir = tempfile::tempdir().unwrap();
        let noted = |texts: &[&Path]| notes(dir.path(), texts.iter().copied()).unwrap();
        let text = dir.path().join("text.txt");
        std::fs::write(&text, "some words").unwrap();
        assert_eq!(noted(&[&text]), [""; 0], "there is no receipt");
        let whole = json::to_pretty(&receipt(Vec::new()));
        for damaged in ["", "{}", "[]", "\0\0", &whole[..whole.len() / 2], "{\"tool\": NaN}"] {
            std::fs::write(dir.path().join(RECEIPT_FILE), damaged).unwrap();
            let notes = noted(&[&text]);
            assert!(
                notes.len() == 1 && notes[0].contains("can't be read"),
                "{damaged:?} {notes:?}"
            );
            assert_eq!(noted(&[]), [""; 0], "no text is given");
        }
    }

    #[test]
    fn held_out_text_is_not_learned_from() {
        let options = |files: &[&str]| {
            let files: Vec<_> =
                files.iter().map(|path| json!({ "label": "x", "path": path })).collect();
            json!({ "data": files, "held-out": [{ "label": "x", "path": "h/c.txt" }] })
        };
        let by_name = |names: &[[&str; 2]]| {
            names.iter().map(|[name, hash]| ((*name).to_owned(), (*hash).to_owned())).collect()
        };
        let mut receipt = receipt(Vec::new());
        receipt.options = options(&["b/b.txt", "d/b.txt"]);
        receipt.before.push(EarlierPass {
            pass: receipt.pass,
            options: options(&["a/a.txt"]),
            decided: None,
            pool: None,
            result: receipt.result.clone(),
            layers: Vec::new(),
        });
        receipt.texts =
            by_name(&[["a.txt", "A"], ["b/b.txt", "B"], ["d/b.txt", "D"], ["c.txt", "C"]]);
        receipt.observed = by_name(&[["o.txt", "O"]]);
        assert_eq!(hashes(&receipt), BTreeSet::from(["A", "B", "D", "O"].map(str::to_owned)));
    }
}
