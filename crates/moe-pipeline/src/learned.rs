//! Held-out text that isn't held out: something was learned from it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use moe_checkpoint::{Result, file_exists, sha256_file};
use moe_forward::{Corpus, overlap};
use serde_json::Value;

use crate::file_names::RECEIPT_FILE;
use crate::fingerprint::sha256_of;
use crate::portable::portable;
use crate::receipt::{Receipt, ReceiptFile};

/// Larger files aren't hashed for a note.
const HASHED_BYTES: u64 = 64 << 20;
/// Text that is written by hand shares less than this with another; templates and licences may
/// share some.
const LEAST_SHARE: f64 = 0.01;
/// What is wrong with measuring on it.
const FLATTERED: &str = "so that what is measured looks better than it is";
/// What to do about it.
const REMEDY: &str = "give --held-out other text";

/// What a run learns from.
pub(crate) struct Learned<'a> {
    /// Windows of tokens.
    pub windows: Vec<&'a [u32]>,
    /// The files that they come from.
    pub files: Vec<&'a Path>,
    /// Hashes of the files that statistics were gathered on.
    pub observed: BTreeSet<&'a String>,
}

impl Learned<'_> {
    /// What is said where it is measured on `held_out`: the same files, or the same windows,
    /// whatever their files. Of texts that are read in parts, `digests` has the hash of what was
    /// read.
    ///
    /// # Errors
    /// What reading that text returns.
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
        if share >= LEAST_SHARE {
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

/// What is said of those of `texts` that the model in `dir` was pruned, calibrated or trained on.
///
/// # Errors
/// What reading them returns.
pub(crate) fn notes<'t>(
    dir: &Path,
    texts: impl IntoIterator<Item = &'t Path>,
) -> Result<Vec<String>> {
    if !file_exists(&dir.join(RECEIPT_FILE))? {
        return Ok(Vec::new());
    }
    let mut notes = Vec::new();
    let learned = match ReceiptFile::read(dir) {
        Ok(ReceiptFile::Read(receipt)) => hashes(&receipt),
        Ok(ReceiptFile::Other { .. }) => {
            notes.push(format!(
                "{}: its receipt is of another format, so that it isn't known what text it was made on",
                dir.display()
            ));
            return Ok(notes);
        }
        // A file of that name which is somebody else's says nothing.
        Err(_) => return Ok(notes),
    };
    let is_small = |path: &&Path| path.metadata().is_ok_and(|file| file.len() <= HASHED_BYTES);
    for path in texts.into_iter().filter(is_small) {
        if !learned.is_empty() && learned.contains(&sha256_file(path)?) {
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
fn hashes(receipt: &Receipt) -> BTreeSet<String> {
    let before = receipt.before.iter().map(|earlier| &earlier.options);
    let specs = before
        .chain([&receipt.options])
        .flat_map(|options| ["data", "pool"].map(|key| &options[key]))
        .filter_map(Value::as_array)
        .flatten();
    let paths: Vec<&Path> = specs.filter_map(|spec| spec["path"].as_str()).map(Path::new).collect();
    // Texts go by the ends of their paths.
    let is_learned = |(name, _): &(&String, &String)| paths.iter().any(|path| path.ends_with(name));
    let read = receipt.texts.iter().filter(is_learned);
    read.chain(&receipt.observed).map(|(_, hash)| hash.clone()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::receipt::EarlierPass;
    use crate::receipt::made_up::receipt;

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
