//! The files of a directory that this program has written, according to its receipt and manifest.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use crate::bounded_read::read_text;
use crate::error::{Error, Kind, Result};
use crate::json;
use crate::manifest::{MANIFEST_FILE, Manifest, sha256_file};
use crate::seal::Seal;

/// The receipt's file name.
pub const RECEIPT_FILE: &str = "moe-convert.json";
/// The file that records times, memory and host.
pub const RUN_FILE: &str = "run.json";
/// The log of a training, with a line for each step and each measurement.
pub const LOG_FILE: &str = "training.jsonl";
/// The model card's file name.
pub const CARD_FILE: &str = "README.md";

/// Maximum size of a run record, which takes a few kilobytes.
const MAX_RUN_BYTES: u64 = 1 << 20;

/// The part of a receipt that describes the files in its directory.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct ListedFiles {
    tool: Tool,
    /// SHA-256 by name; older receipts list no files.
    files: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Tool {
    build: Option<IgnoredAny>,
}

impl ListedFiles {
    /// Reads the receipt in `dir`.
    ///
    /// # Errors
    /// [`Kind::Malformed`] for a file that isn't a receipt.
    pub fn read(dir: &Path) -> Result<Self> {
        json::read(&dir.join(RECEIPT_FILE))
    }

    /// Refuses a manifest of `dir` that wasn't written together with the receipt.
    ///
    /// # Errors
    /// [`Kind::Mismatch`], naming what differs.
    pub fn check(&self, dir: &Path, manifest: &Manifest) -> Result<()> {
        if self.files.is_empty() && self.tool.build.is_some() {
            let what =
                "this receipt names no files, though the program that wrote it names all of them";
            return Err(Error::new(Kind::Mismatch, what)
                .file(dir.join(RECEIPT_FILE))
                .remedy("it was changed after it was written: copy the directory again, whole, or convert again"));
        }
        for name in self.files.keys().map(String::as_str).chain(BESIDE) {
            self.check_listed(name, dir, manifest)?;
        }
        let mut others = manifest.files.keys().filter(|name| !self.names(name));
        if let Some(name) = others.next().filter(|_| !self.files.is_empty()) {
            let what =
                format!("{name} is listed, though {RECEIPT_FILE} doesn't say that it was written");
            return Err(edited(dir, what));
        }
        // Every manifest is written sorted, with nothing between its lines.
        if !manifest.is_as_written(dir)? {
            return Err(edited(dir, "its lines aren't those that were written".to_owned()));
        }
        Ok(())
    }

    /// Refuses a manifest of `dir` that doesn't list the file `name` as it was written.
    fn check_listed(&self, name: &str, dir: &Path, manifest: &Manifest) -> Result<()> {
        let Some(found) = manifest.files.get(name) else {
            let what =
                format!("{name} isn't listed, though {RECEIPT_FILE} says that it was written");
            return Err(edited(dir, what));
        };
        if self.files.get(name).is_some_and(|written| written != found) {
            let what = format!("{name} has another SHA-256 here than in {RECEIPT_FILE}");
            return Err(edited(dir, what));
        }
        Ok(())
    }

    fn names(&self, name: &str) -> bool {
        self.files.contains_key(name) || BESIDE.contains(&name)
    }
}

/// Files that the receipt doesn't list: it can't hold its own hash, and a copy of the result under
/// another name has its own card.
const BESIDE: [&str; 2] = [RECEIPT_FILE, CARD_FILE];

fn edited(dir: &Path, what: String) -> Error {
    Error::new(Kind::Mismatch, what)
        .file(dir.join(MANIFEST_FILE))
        .remedy("this list was changed after it was written: copy the directory again, whole, or convert again")
}

/// Keys that every [`RUN_FILE`] has.
const RUN_KEYS: [&str; 4] = ["source", "device", "unix_time", "timings"];
/// Keys that some run records have, besides element types.
const MORE_RUN_KEYS: [&str; 9] = [
    "dtype",
    "threads",
    "host",
    "seconds",
    "peak_memory_bytes",
    "memory_budget_bytes",
    "peak_live_bytes",
    LOG_KEY,
    "sha256",
];
/// The key that holds the SHA-256 of the [`LOG_FILE`].
const LOG_KEY: &str = "training_log_sha256";

/// Whether the file `path` has only what a [`RUN_FILE`] of this program has. To decide what may be
/// removed, use [`is_own_run_record`].
pub fn is_run_record(path: &Path) -> bool {
    run_text(path).is_some_and(|text| says_what_runs_say(&text))
}

/// Whether the [`RUN_FILE`] in `dir` was written by a run and hasn't been changed since.
pub fn is_own_run_record(dir: &Path) -> bool {
    run_text(&dir.join(RUN_FILE))
        .is_some_and(|text| Seal::JSON.is_intact(&text) && says_what_runs_say(&text))
}

/// Whether the [`LOG_FILE`] in `dir` was written together with the [`RUN_FILE`] there, which
/// contains its hash.
pub fn is_own_log(dir: &Path) -> bool {
    let Some(text) = run_text(&dir.join(RUN_FILE)).filter(|text| Seal::JSON.is_intact(text)) else {
        return false;
    };
    let run: Value = serde_json::from_str(&text).unwrap_or_default();
    let said = run[LOG_KEY].as_str();
    said.is_some() && sha256_file(&dir.join(LOG_FILE)).ok().as_deref() == said
}

fn run_text(path: &Path) -> Option<String> {
    read_text(path, MAX_RUN_BYTES).ok()
}

fn says_what_runs_say(text: &str) -> bool {
    let Ok(run) = serde_json::from_str::<Map<String, Value>>(text) else { return false };
    RUN_KEYS.iter().all(|key| run.contains_key(*key)) && run.keys().all(|key| is_run_key(key))
}

fn is_run_key(key: &str) -> bool {
    RUN_KEYS.contains(&key) || MORE_RUN_KEYS.contains(&key) || key.ends_with("_dtype")
}
