//! Saves the results of expensive steps in a folder, so that they needn't be repeated after a run
//! was killed.
//!
//! A mark in the folder says which run the results belong to. Only what this program has written
//! there is ever read or removed: a folder that contains anything else is refused by name.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::bounded_read::read_text;
use crate::error::{Error, Kind, Result};
use crate::locations::FileId;
use crate::manifest::hex;
use crate::staging::{is_hidden, is_mount_point, mounted, open_no_link, write_file_atomically};

/// Name of the mark.
const MARK_FILE: &str = "of";
/// The mark's first line; the second is the key of the run.
const MARK: &str = "moe-convert training 3";
const MAX_MARK_BYTES: u64 = 256 << 10;
/// The beginning of a step's file. Next comes the hash of the key, the step's name and the content.
const MAGIC: &[u8] = b"moe-convert step 3\n";
/// Number of characters of a SHA-256.
const HASH: usize = 64;

/// The finished steps of a run.
#[derive(Debug)]
pub struct Saved {
    folder: SavedFolder,
    key: String,
    resume: bool,
    /// The folder that was marked, once it is.
    opened: OnceLock<FileId>,
}

/// A folder of saved steps, of any run.
#[derive(Debug, Clone)]
pub struct SavedFolder {
    dir: PathBuf,
    /// Files other than steps that runs write there.
    others: &'static [&'static str],
}

impl SavedFolder {
    /// The folder `dir`, in which runs may also write the files `others`.
    pub fn new(dir: PathBuf, others: &'static [&'static str]) -> Self {
        Self { dir, others }
    }

    /// The folder's path.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Whether a run has left something here; changes nothing.
    ///
    /// # Errors
    /// [`Kind::Usage`], naming it, if anything else is here; [`Kind::Malformed`] if nothing says
    /// which run the files belong to; [`Kind::Io`].
    pub fn is_used(&self) -> Result<bool> {
        if !self.is_there()? {
            return Ok(false);
        }
        let names = self.names()?;
        if let Some(foreign) = names.iter().find(|name| !self.is_ours(name)) {
            let what = "trainings save their state in this folder, and this file in it is not one of theirs";
            return Err(Error::new(Kind::Usage, what)
                .file(self.dir.join(foreign))
                .remedy("move it elsewhere, or choose another output"));
        }
        // The folder itself, its mark, and an unfinished file of a killed run don't count.
        let is_used = names.iter().any(|name| !is_hidden(name) && name != MARK_FILE);
        if is_used || names.iter().any(|name| name == MARK_FILE) {
            self.key()?;
        }
        Ok(is_used)
    }

    /// Whether the folder exists. Anything else with its name is refused.
    fn is_there(&self) -> Result<bool> {
        match self.dir.symlink_metadata() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(Error::io("cannot look through what a training has saved", &self.dir, e)),
            // A mount's contents belong elsewhere, and must not be removed.
            Ok(found) if is_mount_point(&self.dir, &found) => Err(mounted(&self.dir)),
            Ok(found) if found.is_dir() => Ok(true),
            Ok(_) => {
                let what =
                    "a training saves its state in a folder of this name, but this is not a folder";
                Err(Error::new(Kind::Usage, what)
                    .file(&self.dir)
                    .remedy("move it elsewhere, or choose another output"))
            }
        }
    }

    /// The directory that has the folder's name now; None if there is none.
    fn directory(&self) -> Option<FileId> {
        let found = self.dir.symlink_metadata().ok()?;
        found.is_dir().then(|| FileId::of(&found))
    }

    /// The error if something else has replaced the folder.
    fn replaced(&self) -> Error {
        let what = "this folder, in which the run saves, was moved or replaced while it worked";
        Error::new(Kind::Mismatch, what)
            .file(&self.dir)
            .remedy("put it back, and go on with --resume")
    }

    /// The key of the run that the steps belong to.
    fn key(&self) -> Result<String> {
        let path = self.dir.join(MARK_FILE);
        if !path.is_file() {
            let what = "the file that says whose training is saved here is missing";
            return Err(no_key(&path, what));
        }
        let text = read_text(&path, MAX_MARK_BYTES)
            .map_err(|_| no_key(&path, "this doesn't say whose training it is"))?;
        match text.split_once('\n') {
            Some((MARK, key)) if key.ends_with('\n') => Ok(key.trim_end().to_owned()),
            _ => {
                let what = "this doesn't say whose training it is, or another version wrote it";
                Err(no_key(&path, what))
            }
        }
    }

    fn names(&self) -> Result<Vec<String>> {
        let entries = fs::read_dir(&self.dir)
            .and_then(|entries| entries.collect::<io::Result<Vec<_>>>())
            .map_err(|e| Error::io("cannot list this folder", &self.dir, e))?;
        let mut names: Vec<String> =
            entries.iter().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        Ok(names)
    }

    /// Whether a run has written the file `name`.
    fn is_ours(&self, name: &str) -> bool {
        let path = self.dir.join(name);
        if !path.symlink_metadata().is_ok_and(|found| found.is_file()) {
            return false;
        }
        name == MARK_FILE
            || self.others.contains(&name)
            || is_hidden(name)
            || begins_with_magic(&path)
    }

    /// Whether nothing is here except the mark, the file `other` and unfinished files.
    pub fn holds_only(&self, other: &str) -> bool {
        self.names().is_ok_and(|names| {
            names.iter().all(|name| name == MARK_FILE || name == other || is_hidden(name))
        })
    }

    /// Removes what runs have written here, and the folder if nothing else is in it.
    ///
    /// # Errors
    /// As for [`Self::is_used`]; then nothing was removed.
    pub fn remove(&self) -> Result<()> {
        self.is_used()?;
        if self.dir.symlink_metadata().is_err() {
            return Ok(());
        }
        // The mark is removed last, so that the rest is still recognized if this is killed.
        let mut names = self.names()?;
        names.sort_by_key(|name| name == MARK_FILE);
        names
            .iter()
            .try_for_each(|name| fs::remove_file(self.dir.join(name)))
            .and_then(|()| fs::remove_dir(&self.dir))
            .map_err(|e| Error::io("cannot remove what a training was saved in", &self.dir, e))
    }

    /// Opens the folder for the run with this `key`: the hash of everything that determines the
    /// result and, on a second line, a JSON map of its inputs by names that users know, so that
    /// errors can say what differs. With `resume`, finished steps are reused; without it, what an
    /// earlier run has left is removed. [`Saved::begin`] creates the folder.
    ///
    /// # Errors
    /// [`Kind::Mismatch`] if `resume` finds another run's steps; as for [`Self::is_used`].
    pub fn open(self, key: String, resume: bool) -> Result<Saved> {
        if resume && self.is_used()? {
            let saved = self.key()?;
            if saved != key {
                return Err(self.of_another_run(&saved, &key));
            }
        } else {
            self.remove()?;
        }
        Ok(Saved { folder: self, key, resume, opened: OnceLock::new() })
    }

    /// The error if a run of the key `given` finds what one of the key `saved` has left.
    fn of_another_run(&self, saved: &str, given: &str) -> Error {
        const ANEW: &str = "start over without --resume and with --overwrite";
        let (what, remedy) = if is_of_another_build(saved, given) {
            let what = "what was saved here is of another build of this program";
            (what.to_owned(), format!("go on with the build that began it, or {ANEW}"))
        } else {
            let differing =
                differing(saved, given).map_or(String::new(), |differing| format!(": {differing}"));
            let what = "what was saved here is of other options, models or texts, or of another build of this program";
            (format!("{what}{differing}"), format!("give what it began with, or {ANEW}"))
        };
        Error::new(Kind::Mismatch, what).file(self.dir.join(MARK_FILE)).remedy(remedy)
    }
}

/// The name of the build among the inputs of a key.
pub const BUILD_INPUT: &str = "the build of this program";

/// Whether the keys are of two builds, of which options may have other names.
fn is_of_another_build(saved: &str, given: &str) -> bool {
    let builds = [saved, given].map(|key| facts(key)?.remove(BUILD_INPUT));
    builds[1].is_some() && builds[0] != builds[1]
}

/// Maximum number of differences that are named.
const MAX_SAID: usize = 3;
/// Longer values aren't shown.
const MAX_VALUE: usize = 60;

/// Says how the runs of two keys differ; None if the keys don't tell.
fn differing(saved: &str, given: &str) -> Option<String> {
    let (saved, given) = (facts(saved)?, facts(given)?);
    let names: BTreeSet<&String> = saved.keys().chain(given.keys()).collect();
    let said = names.into_iter().filter_map(|name| change(name, saved.get(name), given.get(name)));
    let mut said: Vec<String> = said.collect();
    let more = said.len().saturating_sub(MAX_SAID);
    said.truncate(MAX_SAID);
    said.extend((more > 0).then(|| format!("and {more} more")));
    (!said.is_empty()).then(|| said.join("; "))
}

/// The run's inputs in `key`, by names that users know.
fn facts(key: &str) -> Option<BTreeMap<String, Value>> {
    serde_json::from_str(key.split_once('\n')?.1).ok()
}

/// Says how the fact `name` changed from `before` to `now`; None if it didn't.
fn change(name: &str, before: Option<&Value>, now: Option<&Value>) -> Option<String> {
    match (before.map(Value::to_string), now.map(Value::to_string)) {
        (before, now) if before == now => None,
        (None, Some(_)) => Some(format!("{name} is new")),
        (Some(_), None) => Some(format!("{name} is missing")),
        (Some(before), Some(now)) if is_dated(&before) || is_dated(&now) => Some(format!(
            "{name} has changed, or is another on another day, since a chat template writes the date"
        )),
        (Some(before), Some(now)) if before.len().max(now.len()) <= MAX_VALUE => {
            Some(format!("{name} was {before}, and is {now}"))
        }
        _ => Some(format!("{name} has changed")),
    }
}

/// Whether the JSON text `value` depends on the date.
fn is_dated(value: &str) -> bool {
    value.starts_with("\"dated:")
}

impl Saved {
    /// The path of the file `name`.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.dir.join(name)
    }

    /// The key of this run.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Whether steps that were finished before are reused.
    pub fn resumes(&self) -> bool {
        self.resume
    }

    /// Whether there are finished steps here.
    pub fn has_steps(&self) -> bool {
        let is_step =
            |name: &String| self.path(name).is_file() && name != MARK_FILE && !is_hidden(name);
        self.folder.names().is_ok_and(|names| names.iter().any(is_step))
    }

    /// Creates the folder and marks it. Call it before each file is written: later calls make sure
    /// that the folder wasn't replaced, for example by a link.
    ///
    /// # Errors
    /// [`Kind::Io`]; [`Kind::Mismatch`] if something else has the folder's name.
    pub fn begin(&self) -> Result<()> {
        let folder = &self.folder;
        if let Some(marked) = self.opened.get() {
            return match folder.directory() {
                Some(found) if found == *marked => Ok(()),
                _ => Err(folder.replaced()),
            };
        }
        // Only the owner needs to read saved steps, even if others may read the result.
        match fs::DirBuilder::new().mode(0o700).create(&folder.dir) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                return Err(Error::io("cannot make the folder of this training", &folder.dir, e));
            }
            // Something may have appeared there in the meantime; it is refused unless a run wrote
            // it.
            _ => folder.is_used()?,
        };
        write_file_atomically(&self.path(MARK_FILE), |file| {
            writeln!(file, "{MARK}\n{}", self.key)
        })?;
        let _ = self.opened.set(folder.directory().ok_or_else(|| folder.replaced())?);
        Ok(())
    }

    /// The result of step `name`, if it was finished before and this run resumes.
    ///
    /// # Errors
    /// [`Kind::Malformed`] for a file that this run hasn't written for this step; [`Kind::Io`].
    pub fn get(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let path = self.path(name);
        if !self.resume
            || path.symlink_metadata().is_err_and(|e| e.kind() == io::ErrorKind::NotFound)
        {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        open_no_link(&path)
            .and_then(|mut file| file.read_to_end(&mut bytes))
            .map_err(|e| Error::io("cannot read what was saved here", &path, e))?;
        let saved = bytes.strip_prefix(MAGIC).and_then(|rest| rest.split_at_checked(HASH));
        match saved {
            Some((hash, bytes)) if hash == self.hash(name, bytes).as_bytes() => {
                Ok(Some(bytes.to_vec()))
            }
            _ => Err(not_saved(&path)),
        }
    }

    /// Saves the result of step `name`, completely or not at all.
    ///
    /// # Errors
    /// [`Kind::Io`], such as for a full disk.
    pub fn put(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.begin()?;
        write_file_atomically(&self.path(name), |file| {
            file.write_all(MAGIC)?;
            file.write_all(self.hash(name, bytes).as_bytes())?;
            file.write_all(bytes)
        })
    }

    /// The hash of `bytes` for step `name` of this run; it differs for other bytes, steps and runs.
    fn hash(&self, name: &str, bytes: &[u8]) -> String {
        let mut hasher = Sha256::new();
        for part in [self.key.as_bytes(), name.as_bytes(), bytes] {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        hex(&hasher.finalize())
    }
}

fn begins_with_magic(path: &Path) -> bool {
    let mut begin = [0; MAGIC.len()];
    open_no_link(path).is_ok_and(|mut file| file.read_exact(&mut begin).is_ok() && begin == MAGIC)
}

/// The error for a file `path` that doesn't say whose training the folder holds.
fn no_key(path: &Path, what: &str) -> Error {
    Error::new(Kind::Malformed, what).file(path).remedy(
        "remove the folder if nothing in it is needed, and start over, or choose another output",
    )
}

/// The error for a file `path` that no run has written for its step.
fn not_saved(path: &Path) -> Error {
    Error::new(Kind::Malformed, "this is not what was saved here for this step of this run")
        .file(path)
        .remedy("remove the file to have its step taken again, or start over without --resume and with --overwrite")
}

#[cfg(test)]
mod tests;
