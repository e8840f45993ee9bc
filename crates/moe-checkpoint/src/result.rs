//! What a directory that this program has written consists of, as its receipt and its manifest say.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use crate::error::{Error, Kind, Result};
use crate::json;
use crate::manifest::{MANIFEST_FILE, Manifest};
use crate::regular::open_file;
use crate::whole::read_text;

/// The receipt's file name.
pub const RECEIPT_FILE: &str = "moe-convert.json";
/// The file with times, memory and host.
pub const RUN_FILE: &str = "run.json";
/// The log of a training, a line for each step and each measurement.
pub const LOG_FILE: &str = "training.jsonl";
/// The model card.
pub const CARD_FILE: &str = "README.md";
/// Files that differ from run to run, which no manifest lists.
pub const UNLISTED_FILES: [&str; 3] = [MANIFEST_FILE, RUN_FILE, LOG_FILE];

/// What a run writes of itself takes a few kilobytes.
const MAX_RUN_BYTES: u64 = 1 << 20;

/// What a receipt says of the files beside it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Written {
    tool: Tool,
    /// SHA-256 by name. Receipts of builds before these had one name no files.
    files: BTreeMap<String, String>,
    training: Option<IgnoredAny>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Tool {
    build: Option<IgnoredAny>,
}

impl Written {
    /// As the receipt in `dir` says.
    ///
    /// # Errors
    /// [`Kind::Malformed`] for a receipt that isn't one.
    pub fn read(dir: &Path) -> Result<Self> {
        json::read(&dir.join(RECEIPT_FILE))
    }

    /// Whether the result was trained, so that a log lies beside it.
    pub fn is_trained(&self) -> bool {
        self.training.is_some()
    }

    /// Refuses a manifest of `dir` that isn't the one that was written together with the receipt.
    ///
    /// # Errors
    /// [`Kind::Mismatch`], naming what differs.
    pub fn check(&self, dir: &Path, manifest: &Manifest) -> Result<()> {
        let edited = |what: String| {
            Error::new(Kind::Mismatch, what)
                .file(dir.join(MANIFEST_FILE))
                .remedy("this list was changed after it was written: copy the directory again, whole, or convert again")
        };
        if self.files.is_empty() && self.tool.build.is_some() {
            let what = "this receipt names no files, though the program that wrote it names all of them";
            return Err(Error::new(Kind::Mismatch, what)
                .file(dir.join(RECEIPT_FILE))
                .remedy("it was changed after it was written: copy the directory again, whole, or convert again"));
        }
        // The receipt can't hold its own hash, and a copy of the result under another name has a card of its own.
        const BESIDE: [&str; 2] = [RECEIPT_FILE, CARD_FILE];
        for name in self.files.keys().map(String::as_str).chain(BESIDE) {
            let Some(found) = manifest.files.get(name) else {
                return Err(edited(format!("{name} isn't listed, though {RECEIPT_FILE} says that it was written")));
            };
            if self.files.get(name).is_some_and(|written| written != found) {
                return Err(edited(format!("{name} has another SHA-256 here than in {RECEIPT_FILE}")));
            }
        }
        let known = |name: &String| self.files.contains_key(name) || BESIDE.contains(&name.as_str());
        if let Some(name) = manifest.files.keys().find(|name| !self.files.is_empty() && !known(name)) {
            return Err(edited(format!("{name} is listed, though {RECEIPT_FILE} doesn't say that it was written")));
        }
        // Every manifest was written sorted, with nothing between its lines.
        if !manifest.is_as_written(dir)? {
            return Err(edited("its lines aren't those that were written".to_owned()));
        }
        Ok(())
    }
}

/// Keys that every [`RUN_FILE`] has.
const RUN_KEYS: [&str; 4] = ["source", "device", "unix_time", "timings"];
/// Keys that some have, besides element types.
const MORE_RUN_KEYS: [&str; 7] =
    ["dtype", "threads", "host", "seconds", "peak_memory_bytes", "memory_budget_bytes", "peak_live_bytes"];

/// Whether the file `path` is a [`RUN_FILE`] of this program, to which nobody has added anything.
pub fn is_run_record(path: &Path) -> bool {
    let text = read_text(path, MAX_RUN_BYTES).unwrap_or_default();
    let Ok(run) = serde_json::from_str::<Map<String, Value>>(&text) else { return false };
    let is_known = |key: &String| {
        RUN_KEYS.contains(&key.as_str()) || MORE_RUN_KEYS.contains(&key.as_str()) || key.ends_with("_dtype")
    };
    RUN_KEYS.iter().all(|key| run.contains_key(*key)) && run.keys().all(is_known)
}

/// Whether the file `path` is a [`LOG_FILE`] of this program: a step in every line.
pub fn is_training_log(path: &Path) -> bool {
    use std::io::{BufRead, BufReader, Read};
    let Ok(file) = open_file(path) else { return false };
    let mut lines = BufReader::new(file);
    loop {
        let mut line = Vec::new();
        // A line without an end is read no further than a run's are long.
        match lines.by_ref().take(MAX_RUN_BYTES).read_until(b'\n', &mut line) {
            Ok(0) => return true,
            Ok(_) if is_step(&line) => {}
            _ => return false,
        }
    }
}

fn is_step(line: &[u8]) -> bool {
    serde_json::from_slice::<Value>(line).is_ok_and(|line| line["step"].is_u64())
}
