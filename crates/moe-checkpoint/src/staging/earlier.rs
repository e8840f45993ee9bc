//! Earlier results, which `--overwrite` replaces only if they contain nothing else.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rayon::prelude::*;

use super::damaged::{is_damaged, is_empty};
use super::protected::{check_replaceable, is_mount_point, mounted};
use super::unmovable::is_remainder;
use super::version::Version;
use crate::error::{Error, Kind, Result};
use crate::manifest::{MANIFEST_FILE, Manifest, sha256_watched};
use crate::result::{LOG_FILE, ListedFiles, RECEIPT_FILE, RUN_FILE, is_own_log, is_own_run_record};

/// Files up to this size are hashed in a fraction of a second, by every check. Larger ones, which
/// can only be weights, are hashed once, when the output is created.
pub(super) const SMALL_BYTES: u64 = 64 << 20;

/// Called with the number of bytes hashed since the last call.
pub(super) type HashProgress<'a> = &'a (dyn Fn(u64) + Sync);

/// The version of each file, by name.
type Versions = BTreeMap<String, Version>;

/// Refuses to replace `target` by a new result, unless it is an empty directory, or an earlier
/// result without other files, changes to small files or write protection.
///
/// # Errors
/// [`Kind::Usage`], naming what would be lost.
pub(super) fn check(target: &Path) -> Result<()> {
    let Some(earlier) = Earlier::open(target)? else { return Ok(()) };
    earlier.versions(&Versions::new(), SMALL_BYTES, &|_| ()).map(drop)
}

/// Refuses the hidden directory `dir` unless it is a complete result that may replace an earlier
/// one. It is hashed.
///
/// # Errors
/// [`Kind::Usage`] if it isn't complete.
pub(super) fn check_whole(dir: &Path, watch: HashProgress<'_>) -> Result<()> {
    let whole = Earlier::open(dir)?.is_some_and(|found| {
        found.listed.files.par_iter().all(|(name, hash)| {
            sha256_watched(&dir.join(name), watch).is_ok_and(|found| found == *hash)
        })
    });
    if whole {
        return Ok(());
    }
    let what = "a stopped run left this to replace an earlier result, and it isn't a whole result any more";
    Err(Error::new(Kind::Usage, what)
        .file(dir)
        .remedy("remove it: the output needs the name while it is replaced"))
}

/// The earlier result that a new one replaces, as it was when it was checked.
#[derive(Debug)]
pub(super) struct EarlierResult {
    dir: Version,
    /// When a name was last added or removed.
    modified: Option<SystemTime>,
    /// Names of the files in the manifest.
    listed: Vec<String>,
    /// Versions of those files that existed.
    files: Versions,
}

impl EarlierResult {
    /// Checks `target` and hashes all its files, which takes a second for each gigabyte.
    ///
    /// # Errors
    /// As for [`check`].
    pub fn look(target: &Path, watch: HashProgress<'_>) -> Result<Self> {
        let found = target
            .symlink_metadata()
            .map_err(|e| Error::io("cannot look at the output", target, e))?;
        let (dir, modified) = (Version::of(&found), found.modified().ok());
        let (listed, files) = match Earlier::open(target)? {
            Some(earlier) => {
                let files = earlier.versions(&Versions::new(), u64::MAX, watch)?;
                (earlier.listed.files.into_keys().collect(), files)
            }
            None => (Vec::new(), Versions::new()),
        };
        Ok(Self { dir, modified, listed, files })
    }

    /// Names of the files in the manifest, whether or not they exist.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.listed.iter().map(String::as_str)
    }

    /// Whether `target` is still as it was checked. This is instant if no file was touched in the
    /// meantime; touched files are hashed again.
    pub fn is_still(&self, target: &Path) -> bool {
        self.is_at(target) && self.is_unchanged(target).unwrap_or(false)
    }

    /// Whether it is still the same directory, with no name added or removed. The time of change
    /// isn't compared, since it also moves with permissions, which don't make it another result.
    fn is_at(&self, target: &Path) -> bool {
        let Ok(found) = target.symlink_metadata() else { return false };
        Version::of(&found).is_of_same(&self.dir) && found.modified().ok() == self.modified
    }

    fn is_unchanged(&self, target: &Path) -> Result<bool> {
        let Some(earlier) = Earlier::open(target)? else { return Ok(self.files.is_empty()) };
        earlier.versions(&self.files, u64::MAX, &|_| ()).map(|_| true)
    }
}

/// A result whose receipt and manifest agree, and which contains nothing else.
struct Earlier<'a> {
    target: &'a Path,
    listed: Manifest,
}

impl<'a> Earlier<'a> {
    /// The result in `target`; None for an empty directory, and for the last file of a result that
    /// was being removed.
    fn open(target: &'a Path) -> Result<Option<Self>> {
        let found = target
            .symlink_metadata()
            .map_err(|e| Error::io("cannot look at the output", target, e))?;
        if found.is_symlink() {
            let what = "the output exists and is a link, which was not written by moe-convert";
            return Err(Error::new(Kind::Usage, what).file(target).remedy(
                "give the path that the link leads to, remove it yourself, or choose another name",
            ));
        }
        check_replaceable(target, &found)?;
        let entries = fs::read_dir(target).map(|mut entries| entries.next().is_some());
        if entries.as_ref().is_ok_and(|has_some| !has_some) || is_remainder(target) {
            return Ok(None);
        }
        let earlier = Self { target, listed: read_listed(target)? };
        match earlier.foreign(Path::new(""))? {
            None => Ok(Some(earlier)),
            Some(file) => Err(would_remove(&target.join(file), "which no run has written")),
        }
    }

    /// A file in the folder `below` that isn't part of the result; None if there is none.
    fn foreign(&self, below: &Path) -> Result<Option<PathBuf>> {
        let dir = self.target.join(below);
        let mut entries = fs::read_dir(&dir)
            .and_then(|entries| entries.collect::<io::Result<Vec<_>>>())
            .map_err(|e| cannot_look_through(&dir, e))?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let name = below.join(entry.file_name());
            let metadata = entry.metadata().map_err(|e| cannot_look_through(&dir, e))?;
            let found = self.foreign_at(name, &metadata)?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// Like `foreign`, for the file or folder `name`, which was `found`.
    fn foreign_at(&self, name: PathBuf, found: &Metadata) -> Result<Option<PathBuf>> {
        let path = self.target.join(&name);
        // This includes a listed file, since the manifest describes the one below the mount.
        if is_mount_point(&path, found) {
            return Err(mounted(&path));
        }
        if found.is_dir() && self.lists_some_in(&name) {
            check_replaceable(&path, found)?;
            return self.foreign(&name);
        }
        if found.is_file() && self.is_ours(&name) {
            check_replaceable(&path, found)?;
            return Ok(None);
        }
        Ok(Some(name))
    }

    /// Whether the manifest lists files in the folder `name`.
    fn lists_some_in(&self, name: &Path) -> bool {
        self.listed.files.keys().any(|file| Path::new(file).starts_with(name))
    }

    /// Whether a run has written the file `name`, judged by its name or, if no manifest lists it,
    /// by its content.
    fn is_ours(&self, name: &Path) -> bool {
        match name.to_str() {
            Some(MANIFEST_FILE) => true,
            // After a crash a file may exist without its content.
            Some(name @ (RUN_FILE | LOG_FILE)) if is_empty(&self.target.join(name)) => true,
            Some(RUN_FILE) => is_own_run_record(self.target),
            Some(LOG_FILE) => is_own_log(self.target),
            Some(name) => self.listed.files.contains_key(name),
            None => false,
        }
    }

    /// The versions of the listed files that exist. Those of up to `most` bytes are hashed, unless
    /// their version is `known`.
    ///
    /// # Errors
    /// [`Kind::Usage`], naming a file that isn't as it was written.
    fn versions(&self, known: &Versions, most: u64, watch: HashProgress<'_>) -> Result<Versions> {
        let files = self.listed.files.par_iter();
        let looked = files.map(|(name, hash)| {
            Ok(Some(name.clone()).zip(self.version(name, hash, known, most, watch)?))
        });
        // In order, so that the first of several files is named.
        let looked: Vec<Result<Option<(String, Version)>>> = looked.collect();
        looked.into_iter().filter_map(Result::transpose).collect()
    }

    fn version(
        &self,
        name: &str,
        hash: &str,
        known: &Versions,
        most: u64,
        watch: HashProgress<'_>,
    ) -> Result<Option<Version>> {
        let path = self.target.join(name);
        // A file that was removed can't be lost any more.
        let Ok(found) = path.symlink_metadata() else { return Ok(None) };
        let version = Version::of(&found);
        let is_taken_for_granted = found.len() > most || known.get(name) == Some(&version);
        if is_taken_for_granted
            || sha256_watched(&path, watch)? == hash
            || is_damaged(self.target, name)
        {
            return Ok(Some(version));
        }
        Err(would_remove(&path, "which was changed after a run wrote it"))
    }
}

/// The manifest of the result in `target`, which must agree with its receipt.
fn read_listed(target: &Path) -> Result<Manifest> {
    if !target.join(RECEIPT_FILE).symlink_metadata().is_ok_and(|receipt| receipt.is_file()) {
        return Err(Error::new(
            Kind::Usage,
            "the output exists and was not written by moe-convert",
        )
        .file(target)
        .remedy(
            "--overwrite replaces earlier results only; remove it yourself or choose another name",
        ));
    }
    let Ok(Some(listed)) = Manifest::read(target) else {
        let what = format!("no {MANIFEST_FILE} says which of its files are a result's");
        return Err(unsound_manifest(target, &what));
    };
    // A damaged receipt mustn't keep the result from being made again.
    let written = ListedFiles::read(target).unwrap_or_default();
    written.check(target, &listed).map_err(|error| {
        let what = format!("its {MANIFEST_FILE} isn't the one that was written with it");
        unsound_manifest(target, &what).source(error.briefly())
    })?;
    Ok(listed)
}

fn unsound_manifest(target: &Path, what: &str) -> Error {
    Error::new(Kind::Usage, format!("the output exists, and {what}"))
        .file(target.join(MANIFEST_FILE))
        .remedy("remove the output yourself, or choose another name")
}

fn cannot_look_through(dir: &Path, source: io::Error) -> Error {
    Error::io("cannot look through this earlier result", dir, source)
}

/// The error if the file `path` would be lost; `why` says why it should be kept.
fn would_remove(path: &Path, why: &str) -> Error {
    Error::new(Kind::Usage, format!("--overwrite would remove this, {why}"))
        .file(path)
        .remedy("move it elsewhere, or choose another output")
}
