//! Earlier results, which `--overwrite` replaces as long as all that is in them is theirs.

use std::fs::{self, Metadata};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::protected::check_writable;
use crate::error::{Error, Kind, Result};
use crate::header::{MAX_HEADER_BYTES, parse_header};
use crate::json;
use crate::manifest::{MANIFEST_FILE, Manifest, sha256_file};
use crate::regular::open_file;
use crate::result::{LOG_FILE, RECEIPT_FILE, RUN_FILE, Written, is_run_record, is_training_log};
use crate::whole::read_whole;

/// A file up to this is hashed in a fraction of a second. A larger one, which can only be weights, is hashed where it was
/// changed after the receipt was written: all of them would take minutes.
pub(super) const SMALL_BYTES: u64 = 64 << 20;

/// Refuses to replace `target` by a new result, unless it is an empty directory or an earlier result in which nothing
/// else lies, nothing was changed and nothing is write-protected.
///
/// # Errors
/// [`Kind::Usage`], naming what would be lost.
pub(super) fn check(target: &Path) -> Result<()> {
    let found = target.symlink_metadata().map_err(|e| Error::io("cannot look at the output", target, e))?;
    if found.is_symlink() {
        return Err(Error::new(Kind::Usage, "the output exists and is a link, which was not written by moe-convert")
            .file(target)
            .remedy("give the path that the link leads to, remove it yourself, or choose another name"));
    }
    check_writable(target, &found)?;
    let entries = fs::read_dir(target).map(|mut entries| entries.next().is_some());
    if entries.as_ref().is_ok_and(|has_some| !has_some) {
        return Ok(());
    }
    if !target.join(RECEIPT_FILE).symlink_metadata().is_ok_and(|receipt| receipt.is_file()) {
        return Err(Error::new(Kind::Usage, "the output exists and was not written by moe-convert")
            .file(target)
            .remedy("--overwrite replaces earlier results only; remove it yourself or choose another name"));
    }
    let (written, listed) = match Manifest::read(target) {
        // A damaged receipt is no reason to keep what is to be made again.
        Ok(Some(listed)) => (consistent(Written::read(target).unwrap_or_default(), target, &listed), listed),
        Ok(None) | Err(_) => {
            let what = format!("the output exists, and no {MANIFEST_FILE} says which of its files are a result's");
            return Err(Error::new(Kind::Usage, what)
                .file(target.join(MANIFEST_FILE))
                .remedy("remove the output yourself, or choose another name"));
        }
    };
    let written = written.map_err(|error| {
        let what = format!("the output exists, and its {MANIFEST_FILE} isn't the one that was written with it");
        Error::new(Kind::Usage, what)
            .file(target.join(MANIFEST_FILE))
            .source(error.briefly())
            .remedy("remove the output yourself, or choose another name")
    })?;
    let earlier = Earlier { target, listed: &listed, is_trained: written.is_trained() };
    if let Some(file) = earlier.foreign(Path::new(""))? {
        return Err(Error::new(Kind::Usage, "--overwrite would remove this, which no run has written")
            .file(target.join(file))
            .remedy("move it elsewhere, or choose another output"));
    }
    match earlier.changed()? {
        None => Ok(()),
        Some(file) => {
            Err(Error::new(Kind::Usage, "--overwrite would remove this, which was changed after a run wrote it")
                .file(file)
                .remedy("move it elsewhere, or choose another output"))
        }
    }
}

fn consistent(written: Written, target: &Path, listed: &Manifest) -> Result<Written> {
    written.check(target, listed).map(|()| written)
}

/// A result whose receipt and manifest agree.
struct Earlier<'a> {
    target: &'a Path,
    listed: &'a Manifest,
    is_trained: bool,
}

impl Earlier<'_> {
    /// Something in the folder `below` that is not the result's.
    fn foreign(&self, below: &Path) -> Result<Option<PathBuf>> {
        let dir = self.target.join(below);
        let fail = |e| Error::io("cannot look through this earlier result", &dir, e);
        let mut entries = fs::read_dir(&dir).map_err(fail)?.collect::<Result<Vec<_>, _>>().map_err(fail)?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let (name, kind) = (below.join(entry.file_name()), entry.metadata().map_err(fail)?);
            let found = if kind.is_dir() {
                let lists_some = self.listed.files.keys().any(|file| Path::new(file).starts_with(&name));
                if lists_some {
                    check_writable(&self.target.join(&name), &kind)?;
                    self.foreign(&name)?
                } else {
                    Some(name)
                }
            } else if kind.is_file() && self.is_ours(&name) {
                check_writable(&self.target.join(&name), &kind)?;
                None
            } else {
                Some(name)
            };
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// Whether a run has written the file `name`, as far as its name tells, and what no manifest lists, its content.
    fn is_ours(&self, name: &Path) -> bool {
        let path = self.target.join(name);
        match name.to_str() {
            Some(MANIFEST_FILE) => true,
            Some(RUN_FILE) => is_run_record(&path),
            Some(LOG_FILE) => self.is_trained && is_training_log(&path),
            Some(name) => self.listed.files.contains_key(name),
            None => false,
        }
    }

    /// A file that isn't what was written.
    fn changed(&self) -> Result<Option<PathBuf>> {
        let receipt = self.target.join(RECEIPT_FILE);
        let receipt = receipt.symlink_metadata().map_err(|e| Error::io("cannot look at this file", &receipt, e))?;
        for (name, hash) in &self.listed.files {
            let path = self.target.join(name);
            // What somebody has removed is nobody's loss any more.
            let Ok(found) = path.symlink_metadata() else { continue };
            let may_differ = found.len() <= SMALL_BYTES || last_change(&found) > last_change(&receipt);
            if may_differ && sha256_file(&path)? != *hash && !is_damaged(&path, name) {
                return Ok(Some(path));
            }
        }
        Ok(None)
    }
}

/// Whether the file `name` at `path` is what is left of one that a run wrote, as a crash or a full disk leaves it, rather than somebody's:
/// nothing, a part of a safetensors file, or the beginning of a receipt.
fn is_damaged(path: &Path, name: &str) -> bool {
    let is_empty = path.metadata().is_ok_and(|found| found.len() == 0);
    is_empty || (name == RECEIPT_FILE && is_cut_json(path)) || is_truncated(path).unwrap_or(false)
}

/// Whether the file `path` is JSON that ends too early.
fn is_cut_json(path: &Path) -> bool {
    let bytes = read_whole(path, json::MAX_TREE_BYTES);
    bytes.is_ok_and(|bytes| serde_json::from_slice::<Value>(&bytes).is_err_and(|error| error.is_eof()))
}

/// Whether the file `path` has a sound header of a safetensors file, and ends before the last tensor does. None where it can't be read.
fn is_truncated(path: &Path) -> Option<bool> {
    let mut file = open_file(path).ok()?;
    let mut length = [0; 8];
    file.read_exact(&mut length).ok()?;
    let length = u64::from_le_bytes(length);
    let mut header = Vec::new();
    file.by_ref().take(length.min(MAX_HEADER_BYTES)).read_to_end(&mut header).ok()?;
    let parsed: Map<String, Value> = serde_json::from_slice(&header).ok()?;
    let end = parsed.values().filter_map(|tensor| tensor["data_offsets"][1].as_u64()).max()?;
    let present = file.metadata().ok()?.len().saturating_sub(8 + length);
    Some(present < end && parse_header(&header, end).is_ok())
}

/// When the file was written, renamed or given other permissions, which no program can set to an earlier time.
fn last_change(found: &Metadata) -> (i64, i64) {
    (found.ctime(), found.ctime_nsec())
}
