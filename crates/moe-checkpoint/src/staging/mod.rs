//! Output directories that appear under their final name only when they are complete.

mod earlier;
mod file;
mod lock;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{CWD, OFlags, RenameFlags, renameat_with, statvfs};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use crate::error::{Error, Kind, Result};
use crate::manifest::{MANIFEST_FILE, Manifest, hex};
use crate::writer::write_synced;

pub use file::{FileKind, StagedFile, check_file, open_to_append, write_file_atomically};

use lock::{lock, locked, options_of};

/// What becomes of an earlier result in the place of an output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Existing {
    /// It stays, and the new one is refused.
    #[default]
    Kept,
    /// The new one replaces it, unless something lies in it that no run has written.
    Replaced,
}

/// A directory being written: it lies hidden beside its final place until [`OutputDir::commit`].
/// Dropped without that, it is removed.
#[derive(Debug)]
pub struct OutputDir {
    target: PathBuf,
    staging: PathBuf,
    manifest: Manifest,
    committed: bool,
    existing: Existing,
    /// Holds the lock on the staging directory.
    _lock: File,
}

impl OutputDir {
    /// Checks whether `target` may be created, without touching the disk. That it overlaps with nothing that is read is for
    /// [`crate::Locations`] to say.
    ///
    /// # Errors
    /// [`Kind::Usage`] where it exists and may not be replaced, or something of its user's lies in it; [`Kind::Missing`] where its
    /// parent directory can't be had.
    pub fn check(target: &Path, existing: Existing) -> Result<()> {
        partial(target)?;
        let parent = parent_of(target);
        // The parent may not exist yet; what exists of it decides where it would lie.
        let nearest = parent.ancestors().find(|p| p.exists()).unwrap_or(Path::new("."));
        let nearest = nearest.canonicalize().map_err(|e| Error::io("cannot resolve this path", nearest, e))?;
        if !nearest.is_dir() {
            return Err(Error::new(Kind::Usage, "the output's parent is not a directory")
                .file(&nearest)
                .remedy("choose another output"));
        }
        let Ok(there) = target.symlink_metadata() else { return Ok(()) };
        if !there.is_dir() && !there.is_symlink() {
            return Err(Error::new(Kind::Usage, "the output exists and is not a directory")
                .file(target)
                .remedy("choose another name: a checkpoint is written to a directory"));
        }
        if existing == Existing::Kept {
            return Err(Error::new(Kind::Usage, "the output exists")
                .file(target)
                .remedy("remove it, choose another name, or give --overwrite"));
        }
        earlier::check(target)
    }

    /// Refuses an output that another run is writing, without touching the disk.
    ///
    /// # Errors
    /// [`Kind::Io`] then.
    pub fn check_idle(target: &Path) -> Result<()> {
        match options_of(OFlags::DIRECTORY).open(partial(target)?) {
            Ok(hidden) => lock(target, &hidden),
            // No run has begun there.
            Err(_) => Ok(()),
        }
    }

    /// Creates the hidden directory beside `target` and locks it.
    ///
    /// # Errors
    /// As for [`OutputDir::check`]; [`Kind::Io`] where it can't be created, or another run is writing the same output.
    pub fn create(target: &Path, existing: Existing) -> Result<Self> {
        // What ends in `/.` can't be renamed.
        let target: &Path = &target.components().collect::<PathBuf>();
        Self::check(target, existing)?;
        let parent = parent_of(target);
        fs::create_dir_all(&parent).map_err(|e| Error::io("cannot create the output's parent", &parent, e))?;
        let staging = partial(target)?;
        let open = || {
            match fs::create_dir(&staging) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                other => other?,
            }
            options_of(OFlags::DIRECTORY).open(&staging)
        };
        let lock = locked(target, &staging, open)?;
        let aside = aside(target);
        if target.symlink_metadata().is_err() && aside.symlink_metadata().is_ok_and(|found| found.is_dir()) {
            // A run was killed between two renames.
            rename_new(&aside, target).map_err(|e| Error::io("cannot bring this back", target, e))?;
            Self::check(target, existing).inspect_err(|_| drop(fs::remove_dir(&staging)))?;
        }
        // What a killed run left behind; nobody holds its lock.
        clear_directory(&staging).map_err(|e| Error::io("cannot create the output", &staging, e))?;
        unfinished().insert(staging.clone());
        Ok(Self {
            target: target.to_owned(),
            staging,
            manifest: Manifest::default(),
            committed: false,
            existing,
            _lock: lock,
        })
    }

    /// Where files are written until the commit.
    pub fn path(&self) -> &Path {
        &self.staging
    }

    /// Refuses early when the disk has less than `bytes` free.
    ///
    /// # Errors
    /// [`Kind::Io`], with both figures.
    pub fn require_space(&self, bytes: u64) -> Result<()> {
        let Ok(disk) = statvfs(&self.staging) else { return Ok(()) };
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        if free >= bytes {
            return Ok(());
        }
        Err(Error::new(Kind::Io, format!("the output takes {bytes} bytes; the disk has {free} free"))
            .file(&self.target)
            .remedy("free space on that disk, or write elsewhere"))
    }

    /// Writes the small file `name` and lists it in the manifest.
    ///
    /// # Errors
    /// [`Kind::Io`] where it can't be written.
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        write_synced(&self.make_room(name)?, bytes)?;
        self.manifest.files.insert(name.to_owned(), hex(&Sha256::digest(bytes)));
        Ok(())
    }

    /// Copies the file `from`, of any size, to `name`, which may be in a folder, and lists it in the manifest.
    ///
    /// # Errors
    /// [`Kind::Io`] where it can't be read or written.
    pub fn carry(&mut self, from: &Path, name: &str) -> Result<()> {
        let to = self.make_room(name)?;
        let mut reader = File::open(from).map_err(|e| Error::io("cannot read this file", from, e))?;
        let mut writer = File::create(&to).map_err(|e| Error::io("cannot write this file", &to, e))?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        loop {
            let read = reader.read(&mut buffer).map_err(|e| Error::io("cannot read this file", from, e))?;
            if read == 0 {
                break;
            }
            hasher.update(&buffer[..read]);
            writer.write_all(&buffer[..read]).map_err(|e| Error::io("cannot write this file", &to, e))?;
        }
        writer.sync_all().map_err(|e| Error::io("cannot write this file", &to, e))?;
        self.manifest.files.insert(name.to_owned(), hex(&hasher.finalize()));
        Ok(())
    }

    /// The path of the file `name`, whose folders are made.
    fn make_room(&self, name: &str) -> Result<PathBuf> {
        if !unfinished().contains(&self.staging) {
            return Err(Error::new(Kind::Stopped, "stopped").file(&self.target));
        }
        let path = self.staging.join(name);
        // Not the hidden directory itself, which a signal may just have removed.
        let mut folder = self.staging.clone();
        for part in Path::new(name).parent().into_iter().flat_map(Path::components) {
            folder.push(part);
            match fs::create_dir(&folder) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(Error::io("cannot create this directory", &folder, e));
                }
                _ => {}
            }
        }
        Ok(path)
    }

    /// SHA-256 of what was written and listed so far, by name.
    pub fn files(&self) -> &BTreeMap<String, String> {
        &self.manifest.files
    }

    /// Writes the small file `name` without listing it: for what differs from run to run.
    ///
    /// # Errors
    /// [`Kind::Io`] where it can't be written.
    pub fn write_unlisted(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        write_synced(&self.make_room(name)?, bytes)
    }

    /// Copies the file `name` of the directory `from`, which has the SHA-256 `hash`, and lists it in the manifest.
    ///
    /// # Errors
    /// [`Kind::Io`] where it can't be copied.
    pub fn copy(&mut self, from: &Path, name: &str, hash: &str) -> Result<()> {
        let (from, to) = (from.join(name), self.make_room(name)?);
        let copied = fs::copy(&from, &to).and_then(|_| File::open(&to)).and_then(|file| file.sync_all());
        copied.map_err(|e| Error::io("cannot copy this file", &from, e))?;
        self.manifest.files.insert(name.to_owned(), hash.to_owned());
        Ok(())
    }

    /// Adds files that were written and hashed by a [`crate::Writer`] to the manifest.
    pub fn add_hashes(&mut self, hashes: impl IntoIterator<Item = (String, String)>) {
        self.manifest.files.extend(hashes);
    }

    /// Writes the manifest, flushes everything and lets the directory appear under its final name.
    ///
    /// # Errors
    /// [`Kind::Io`], which says where the result is if there is one.
    pub fn commit(mut self) -> Result<()> {
        write_synced(&self.staging.join(MANIFEST_FILE), self.manifest.to_text().as_bytes())?;
        sync_directories(&self.staging).map_err(|e| Error::io("cannot flush the finished output", &self.target, e))?;
        // Nobody removes it from now on, nor has begun to.
        let mut unfinished = unfinished();
        if !unfinished.remove(&self.staging) {
            return Err(Error::new(Kind::Stopped, "stopped").file(&self.target));
        }
        // Nothing is taken back from here on: what was made must not be lost.
        self.committed = true;
        let moved = self.move_to_target()?;
        drop(unfinished);
        let place = moved.as_deref().unwrap_or(&self.target);
        sync_directory(&parent_of(place)).map_err(|e| unconfirmed(place, e))?;
        match moved {
            None => Ok(()),
            Some(elsewhere) => Err(in_the_way(&self.target, &elsewhere)),
        }
    }

    /// Gives the finished directory its final name or, where something that can't be replaced has that by now, a free one beside it,
    /// which is then returned.
    fn move_to_target(&self) -> Result<Option<PathBuf>> {
        if self.existing == Existing::Replaced && self.may_replace() {
            // It is removed under a hidden name: a run that begins there must not take it for its own.
            let earlier = File::open(&self.target).ok().filter(|earlier| lock(&self.target, earlier).is_ok());
            let replaced = earlier.as_ref().and_then(|_| replace(&self.staging, &self.target).ok());
            if let Some(aside) = replaced {
                return fs::remove_dir_all(&aside).map(|()| None).map_err(|e| {
                    let what = format!("the result is {}; the one before it can't be removed", self.target.display());
                    Error::io(&what, &aside, e)
                });
            }
        }
        rename_to_free(&self.staging, &self.target).map_err(|e| self.failed(e))
    }

    /// Whether what has the output's name now, long after it was checked, is still a result and nothing else.
    fn may_replace(&self) -> bool {
        earlier::check(&self.target).is_ok()
    }

    fn failed(&self, error: io::Error) -> Error {
        Error::io("cannot move the finished output to its place", &self.target, error)
    }
}

/// Renames `from` to `to` or, where that name is taken, to a free one beside it, which is then returned.
fn rename_to_free(from: &Path, to: &Path) -> io::Result<Option<PathBuf>> {
    let name = to.file_name().unwrap_or_default().to_string_lossy();
    let others = (2..).map(|number| to.with_file_name(format!("{name}-{number}")));
    for (index, place) in std::iter::once(to.to_owned()).chain(others).enumerate() {
        match rename_new(from, &place) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            other => return other.map(|()| (index > 0).then_some(place)),
        }
    }
    Ok(None)
}

/// The result was renamed to `place`, since something else has the name `target`.
fn in_the_way(target: &Path, place: &Path) -> Error {
    let what = format!("this is in the way, and can't be replaced; the result is {}", place.display());
    Error::new(Kind::Io, what).file(target).remedy("look at both, and rename the one you want")
}

/// Waits until the names in `dir` are on the disk.
fn sync_directory(dir: &Path) -> io::Result<()> {
    File::open(dir).and_then(|dir| dir.sync_all())
}

/// The error for a result that is complete at `place`, while the disk doesn't confirm that it keeps the name.
fn unconfirmed(place: &Path, error: io::Error) -> Error {
    let what = "the result is complete and in its place, but the disk doesn't confirm its name: it may be lost if the power fails now";
    Error::new(Kind::Io, what)
        .file(place)
        .source(error)
        .remedy("run sync, then moe-convert verify on it; nothing has to be made again unless that fails")
}

/// Gives `staging` the name `target`, which an earlier result has; what that is called then.
fn replace(staging: &Path, target: &Path) -> io::Result<PathBuf> {
    match renameat_with(CWD, staging, CWD, target, RenameFlags::EXCHANGE) {
        Ok(()) => Ok(staging.to_owned()),
        Err(Errno::INVAL | Errno::NOSYS) => replace_by_turns(staging, target),
        Err(e) => Err(e.into()),
    }
}

/// [`replace`] on file systems that can't exchange names, as NFS. For a moment nothing has the name: who is killed then leaves both
/// directories whole, and [`OutputDir::create`] brings the earlier one back.
fn replace_by_turns(staging: &Path, target: &Path) -> io::Result<PathBuf> {
    let aside = aside(target);
    if aside.symlink_metadata().is_ok() {
        // Of a run that was killed while it removed what it had replaced.
        fs::remove_dir_all(&aside)?;
    }
    rename_new(target, &aside)?;
    match rename_new(staging, target) {
        Ok(()) => Ok(aside),
        Err(e) => rename_new(&aside, target).and(Err(e)),
    }
}

/// What the output `target` is called while it is unfinished, and an earlier one while it is replaced.
pub(crate) fn hidden_names(target: &Path) -> [PathBuf; 2] {
    ["partial", "replaced"].map(|state| hidden(target, state))
}

/// Whether `name` is one that a file has while it is written.
pub(crate) fn is_hidden(name: &str) -> bool {
    name.starts_with('.') && name.ends_with(".partial-moe-convert")
}

/// Opens the file `path` to read it, unless that is a link.
pub(crate) fn open_no_link(path: &Path) -> io::Result<File> {
    options_of(OFlags::empty()).open(path)
}

/// What an earlier result is called while a new one takes its name.
fn aside(target: &Path) -> PathBuf {
    hidden(target, "replaced")
}

/// Renames `from` to `to`, where nothing is.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // Not every file system can; between looking and renaming, hardly anything appears.
        Err(Errno::INVAL | Errno::NOSYS) => match to.symlink_metadata() {
            Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
            Err(_) => fs::rename(from, to),
        },
        other => Ok(other?),
    }
}

/// What a file system takes for the name of a file, without its directories.
const MAX_NAME_BYTES: usize = 255;

/// What `target` is called until it is complete.
fn partial(target: &Path) -> Result<PathBuf> {
    let Some(name) = target.file_name() else {
        return Err(Error::new(Kind::Usage, "the output has no name")
            .file(target)
            .remedy("give a path that ends in a name of its own"));
    };
    // The longer of its two hidden names must be one that file systems take.
    let length = hidden(target, "replaced").file_name().unwrap_or_default().len();
    if length > MAX_NAME_BYTES {
        let most = MAX_NAME_BYTES - (length - name.len());
        let what = format!("the output's name takes {} bytes; {most} are left for it beside hidden ones", name.len());
        return Err(Error::new(Kind::Usage, what).file(target).remedy("choose a shorter name"));
    }
    Ok(hidden(target, "partial"))
}

/// The hidden name beside `target` of a directory or file that is in the state `state`.
fn hidden(target: &Path, state: &str) -> PathBuf {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    target.with_file_name(format!(".{name}.{state}-moe-convert"))
}

impl Drop for OutputDir {
    fn drop(&mut self) {
        if !self.committed && unfinished().remove(&self.staging) {
            let _ = fs::remove_dir_all(&self.staging);
        }
    }
}

/// Hidden directories and files that this process is writing.
fn unfinished() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    static UNFINISHED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes what this process was writing: for one that ends at once. Who still writes there gets an error.
///
/// # Errors
/// [`Kind::Io`] where something can't be removed.
pub fn remove_unfinished() -> Result<()> {
    let mut unfinished = unfinished();
    let remove = |path: &PathBuf| removed(path).map_err(|e| Error::io("cannot remove this", path, e));
    let removed: Vec<Result<()>> = std::mem::take(&mut *unfinished).iter().map(remove).collect();
    removed.into_iter().collect()
}

/// Removes `path` and what is in it. Who still writes there may put a file into a directory that was just found empty.
fn removed(path: &Path) -> io::Result<()> {
    const TRIES: usize = 100;
    let once = || if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    let mut result = once();
    for _ in 1..TRIES {
        match &result {
            Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => std::thread::sleep(PAUSE),
            _ => break,
        }
        result = once();
    }
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// How long is waited between two tries to remove a directory.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(5);

fn parent_of(target: &Path) -> PathBuf {
    match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Waits until the names in `dir` and in its folders are on the disk.
fn sync_directories(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_directories(&entry.path())?;
        }
    }
    File::open(dir)?.sync_all()
}

fn clear_directory(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        match path.symlink_metadata()?.is_dir() {
            true => fs::remove_dir_all(&path)?,
            false => fs::remove_file(&path)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::{CARD_FILE, LOG_FILE, RECEIPT_FILE, RUN_FILE};

    const OPTIONS: Existing = Existing::Kept;
    const OVERWRITE: Existing = Existing::Replaced;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_result_that_is_there_is_not_said_to_be_missing() {
        let error = unconfirmed(Path::new("out"), io::Error::from_raw_os_error(5)).to_string();
        assert!(error.contains("complete and in its place") && error.contains("file:   out"), "{error}");
        assert!(error.contains("Input/output error") && !error.contains("cannot move"), "{error}");
    }

    /// What differs from run to run.
    const RUN: &str = r#"{"source": "", "device": "Cpu", "unix_time": 0, "timings": []}"#;

    /// Makes a result.
    fn finish(target: &Path, existing: Existing) -> Result<()> {
        finish_saying(target, existing, "{}")
    }

    fn finish_saying(target: &Path, existing: Existing, receipt: &str) -> Result<()> {
        let mut output = OutputDir::create(target, existing)?;
        output.write(RECEIPT_FILE, receipt.as_bytes())?;
        output.write(CARD_FILE, b"words")?;
        output.commit()
    }

    #[test]
    fn nothing_appears_before_the_commit_and_nothing_stays_without_one() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out");
        let mut output = OutputDir::create(&target, OPTIONS).unwrap();
        output.write(RECEIPT_FILE, b"{}").unwrap();
        assert!(!target.exists());
        drop(output);
        assert!(names(dir.path()).is_empty());

        let mut output = OutputDir::create(&target, OPTIONS).unwrap();
        output.write(RECEIPT_FILE, b"{}").unwrap();
        output.commit().unwrap();
        assert_eq!(names(&target), ["SHA256SUMS", "moe-convert.json"]);
        assert_eq!(names(dir.path()), ["out"]);
    }

    #[test]
    fn what_was_removed_as_unfinished_cannot_appear() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out");
        let mut output = OutputDir::create(&target, OPTIONS).unwrap();
        output.write(RECEIPT_FILE, b"{}").unwrap();
        let staging = output.path().to_owned();
        unfinished().remove(&staging);
        assert_eq!(output.commit().unwrap_err().kind(), Kind::Stopped);
        assert!(!target.exists());
    }

    #[test]
    fn overwrite_replaces_own_results_only() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out");
        fs::create_dir(&target).unwrap();
        let thesis = target.join("thesis.tex");
        fs::write(&thesis, "").unwrap();
        assert_eq!(OutputDir::create(&target, OPTIONS).unwrap_err().kind(), Kind::Usage);
        assert_eq!(OutputDir::create(&target, OVERWRITE).unwrap_err().kind(), Kind::Usage);
        // A mark alone makes nobody else's files ours.
        fs::write(target.join(RECEIPT_FILE), "").unwrap();
        let error = OutputDir::create(&target, OVERWRITE).unwrap_err().to_string();
        assert!(error.contains("SHA256SUMS"), "{error}");
        fs::remove_dir_all(&target).unwrap();
        finish(&target, OPTIONS).unwrap();
        finish(&target, OVERWRITE).unwrap();
        fs::write(target.join(RUN_FILE), RUN).unwrap();
        finish(&target, OVERWRITE).unwrap();
        assert_eq!(names(&target), ["README.md", "SHA256SUMS", "moe-convert.json"]);
        assert_eq!(names(dir.path()), ["out"]);
        // An empty folder is nobody's loss.
        fs::remove_dir_all(&target).unwrap();
        fs::create_dir(&target).unwrap();
        finish(&target, OVERWRITE).unwrap();
    }

    #[test]
    fn overwrite_keeps_changes_to_what_it_has_written() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out");
        let thesis = dir.path().join("thesis");
        fs::write(&thesis, "{}").unwrap();
        let other_sums = format!("{}  zzz\n", "0".repeat(64));
        finish(&target, OPTIONS).unwrap();
        let sums = fs::read_to_string(target.join(MANIFEST_FILE)).unwrap();
        for (name, text) in [
            (CARD_FILE, "a card that somebody has edited"),
            (RECEIPT_FILE, "{\"tool\": {\"build\": \"x\"}}"),
            (RUN_FILE, "{\"runs\": 7}"),
            (LOG_FILE, "{\"step\": 1}\n"),
            (MANIFEST_FILE, &format!("{other_sums}{sums}")),
        ] {
            let before = fs::read(target.join(name)).ok();
            fs::write(target.join(name), text).unwrap();
            let error = OutputDir::create(&target, OVERWRITE).map(drop).expect_err(name);
            assert!(error.kind() == Kind::Usage && error.to_string().contains("remedy"), "{name}: {error}");
            assert_eq!(fs::read_to_string(target.join(name)).unwrap(), text);
            match before {
                Some(bytes) => fs::write(target.join(name), bytes).unwrap(),
                None => fs::remove_file(target.join(name)).unwrap(),
            }
        }
        for name in [CARD_FILE, RECEIPT_FILE, MANIFEST_FILE, RUN_FILE] {
            let before = fs::read(target.join(name)).ok();
            let _ = fs::remove_file(target.join(name));
            std::os::unix::fs::symlink(&thesis, target.join(name)).unwrap();
            assert!(OutputDir::create(&target, OVERWRITE).is_err(), "{name} is a link");
            fs::remove_file(target.join(name)).unwrap();
            before.into_iter().for_each(|bytes| fs::write(target.join(name), bytes).unwrap());
        }
        finish_saying(&target, OVERWRITE, "{\"training\": {}}").unwrap();
        fs::write(target.join(LOG_FILE), "{\"step\": 1, \"loss\": 2}\n").unwrap();
        finish(&target, OVERWRITE).unwrap();
    }

    #[test]
    fn a_name_that_is_too_long_is_refused_with_the_length_that_works() {
        let dir = tempfile::tempdir().unwrap();
        let error = OutputDir::check(&dir.path().join("a".repeat(234)), OPTIONS).unwrap_err().to_string();
        assert!(error.contains("234 bytes") && error.contains("233 are left"), "{error}");
        finish(&dir.path().join("a".repeat(233)), OPTIONS).unwrap();
        finish(&dir.path().join("a".repeat(233)), OVERWRITE).unwrap();
    }

    #[test]
    fn overwrite_refuses_by_name_what_it_has_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out");
        finish(&target, OPTIONS).unwrap();
        for foreign in ["notes/thesis.tex", "weights.gguf", ".hidden"] {
            let path = target.join(foreign);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "words").unwrap();
            let error = OutputDir::create(&target, OVERWRITE).unwrap_err();
            let named = foreign.split('/').next().unwrap();
            assert!(error.kind() == Kind::Usage && error.to_string().contains(named), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), "words");
            match path.parent() {
                Some(folder) if folder != target => fs::remove_dir_all(folder).unwrap(),
                _ => fs::remove_file(&path).unwrap(),
            }
        }
        // What comes while the run works is kept, too.
        let mut output = OutputDir::create(&target, OVERWRITE).unwrap();
        output.write(RECEIPT_FILE, b"{}").unwrap();
        fs::write(target.join("thesis.tex"), "words").unwrap();
        let error = output.commit().unwrap_err().to_string();
        assert!(error.contains("out-2"), "{error}");
        assert_eq!(fs::read_to_string(target.join("thesis.tex")).unwrap(), "words");
        // A link is nobody's result, whatever it leads to.
        std::os::unix::fs::symlink("out-2", dir.path().join("link")).unwrap();
        assert!(OutputDir::create(&dir.path().join("link"), OVERWRITE).unwrap_err().to_string().contains("is a link"));
    }

    #[test]
    fn a_link_under_a_hidden_name_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let precious = dir.path().join("precious");
        fs::create_dir(&precious).unwrap();
        fs::write(precious.join("thesis.tex"), "words").unwrap();
        let target = dir.path().join("out");
        let hidden = dir.path().join(".out.partial-moe-convert");
        std::os::unix::fs::symlink(&precious, &hidden).unwrap();
        assert_eq!(OutputDir::create(&target, OPTIONS).unwrap_err().kind(), Kind::Io);
        fs::remove_file(&hidden).unwrap();
        std::os::unix::fs::symlink(precious.join("thesis.tex"), &hidden).unwrap();
        assert!(write_file_atomically(&target, |_| Ok(())).is_err());
        assert_eq!(fs::read_to_string(precious.join("thesis.tex")).unwrap(), "words");
    }

    #[test]
    fn what_appears_meanwhile_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out");
        for options in [OPTIONS, OVERWRITE] {
            let mut output = OutputDir::create(&target, options).unwrap();
            output.write(RECEIPT_FILE, b"{}").unwrap();
            fs::create_dir(&target).unwrap();
            fs::write(target.join("thesis.tex"), "words").unwrap();
            let error = output.commit().unwrap_err().to_string();
            assert!(error.contains("out-2") && error.contains("in the way"), "{error}");
            assert_eq!(fs::read_to_string(target.join("thesis.tex")).unwrap(), "words");
            assert_eq!(names(&dir.path().join("out-2")), ["SHA256SUMS", "moe-convert.json"]);
            assert_eq!(names(dir.path()), ["out", "out-2"]);
            fs::remove_dir_all(&target).unwrap();
            fs::remove_dir_all(dir.path().join("out-2")).unwrap();
        }
    }

    #[test]
    fn an_earlier_result_is_locked_until_it_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out");
        finish(&target, OPTIONS).unwrap();
        // Somebody removes it, as a run does that has replaced it.
        let removing = File::open(&target).unwrap();
        lock(&target, &removing).unwrap();
        let error = finish(&target, OVERWRITE).unwrap_err().to_string();
        assert!(error.contains("out-2"), "{error}");
        drop(removing);
        finish(&target, OVERWRITE).unwrap();
        assert_eq!(names(dir.path()), ["out", "out-2"]);
    }

    #[test]
    fn without_an_exchange_of_names_both_results_are_whole_at_any_time() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out");
        finish(&target, OPTIONS).unwrap();
        let staging = dir.path().join("new");
        finish_saying(&staging, OPTIONS, "{\"new\": 1}").unwrap();
        // What was being removed when an earlier run was killed.
        fs::create_dir(aside(&target)).unwrap();
        assert_eq!(replace_by_turns(&staging, &target).unwrap(), aside(&target));
        assert_eq!(fs::read_to_string(target.join(RECEIPT_FILE)).unwrap(), "{\"new\": 1}");
        assert_eq!(fs::read_to_string(aside(&target).join(RECEIPT_FILE)).unwrap(), "{}");
        // A new one that can't be moved leaves the earlier one where it was.
        assert!(replace_by_turns(&staging, &target).is_err());
        assert_eq!(names(dir.path()), ["out"]);
        // A run that was killed between the renames: the next one has the earlier result in its way again.
        fs::rename(&target, aside(&target)).unwrap();
        assert_eq!(finish(&target, OPTIONS).unwrap_err().kind(), Kind::Usage);
        assert_eq!(names(dir.path()), ["out"]);
        assert_eq!(fs::read_to_string(target.join(RECEIPT_FILE)).unwrap(), "{\"new\": 1}");
        fs::rename(&target, aside(&target)).unwrap();
        finish(&target, OVERWRITE).unwrap();
        assert_eq!(fs::read_to_string(target.join(RECEIPT_FILE)).unwrap(), "{}");
        assert_eq!(names(dir.path()), ["out"]);
    }

    #[test]
    fn a_second_run_on_the_same_output_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out");
        let first = OutputDir::create(&target, OPTIONS).unwrap();
        for refused in [OutputDir::create(&target, OPTIONS).map(drop), OutputDir::check_idle(&target)] {
            let message = refused.unwrap_err().to_string();
            assert!(message.contains("another run"), "{message}");
        }
        drop(first);
        OutputDir::check_idle(&target).unwrap();
    }
}
