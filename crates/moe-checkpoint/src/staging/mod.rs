//! Output directories that appear under their final name only when they are complete.

mod commit;
mod damaged;
mod earlier;
mod file;
mod interrupted;
mod lock;
mod modes;
mod names;
mod protected;
mod remove;
mod rename;
mod stream;
#[cfg(test)]
mod tests;
mod unfinished;
mod unmovable;
mod version;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{OFlags, statvfs};
use sha2::{Digest, Sha256};

use crate::error::{Error, Kind, Result};
use crate::locations::FileId;
use crate::manifest::{Manifest, hex, sha256_bytes};
use crate::open_dir::OpenDir;
use crate::shard::ShardPlan;
use crate::writer::Writer;

pub use file::{
    FileKind, FoundFile, PlacedFile, StagedFile, check_file, lies_in_a_model, open_to_append,
    write_file_atomically, write_files,
};
pub use stream::{is_stream, open_stream, unless_closed};
pub use unfinished::{TemporaryDir, remove_unfinished};

pub(crate) use file::open_no_link;
pub(crate) use names::{hidden_names, is_hidden};
pub(crate) use protected::{is_mount_point, mounted};

use earlier::{EarlierResult, HashProgress};
use interrupted::{bring_back, exists};
use lock::{lock, locked, open_options};
use modes::Modes;
use names::{parent_of, partial};
use protected::{check_no_mount, check_takes_names};
use remove::{check_no_mount_in, remove_tree};
use unfinished::{clear_directory, unfinished};

/// What to do with an earlier result at the path of an output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Existing {
    /// Keep it, and refuse the new one.
    #[default]
    Kept,
    /// Replace it, unless it contains something that no run has written.
    Replaced,
}

/// A directory being written: it is hidden next to its final path until [`OutputDir::commit`], and
/// removed if dropped before that.
#[derive(Debug)]
pub struct OutputDir {
    target: PathBuf,
    /// The hidden directory, which holds the lock.
    staging: OpenDir,
    manifest: Manifest,
    committed: bool,
    /// Whether the result to replace was recovered from a hidden name.
    brought_back: bool,
    /// The result that it replaces; None if nothing was there.
    replaced: Option<EarlierResult>,
    /// Permissions of the result that it replaces.
    modes: Option<Modes>,
}

impl OutputDir {
    /// Checks whether `target` may be created, without touching the disk. [`crate::Locations`]
    /// checks that it doesn't overlap with what is read. Only small files of an earlier result are
    /// hashed here; all are when the output is created.
    ///
    /// # Errors
    /// [`Kind::Usage`] if it exists and may not be replaced, or contains something of its user's;
    /// [`Kind::Missing`] if its parent directory can't be used.
    pub fn check(target: &Path, existing: Existing) -> Result<()> {
        partial(target)?;
        check_way(target)?;
        check_parent(target)?;
        let Ok(there) = target.symlink_metadata() else { return Ok(()) };
        if !there.is_dir() && !there.is_symlink() {
            return Err(Error::new(Kind::Usage, "the output exists and is not a directory")
                .file(target)
                .remedy("choose another name: a checkpoint is written to a directory"));
        }
        check_no_mount(target, &there)?;
        if existing == Existing::Kept {
            return Err(exists(target));
        }
        earlier::check(target)
    }

    /// Refuses an output that another run is writing, without touching the disk.
    ///
    /// # Errors
    /// [`Kind::Io`] if another run is writing it.
    pub fn check_idle(target: &Path) -> Result<()> {
        match open_options(OFlags::DIRECTORY).open(partial(target)?) {
            Ok(hidden) => lock(target, &hidden),
            // No run has begun there.
            Err(_) => Ok(()),
        }
    }

    /// Removes what a killed run has left of `target` under a hidden name, unless another run is
    /// writing there.
    ///
    /// # Errors
    /// [`Kind::Io`] if it can't be removed.
    pub fn remove_leftover(target: &Path) -> Result<()> {
        let staging = partial(target)?;
        let Ok(hidden) = open_options(OFlags::DIRECTORY).open(&staging) else { return Ok(()) };
        if lock(target, &hidden).is_err() {
            return Ok(());
        }
        check_no_mount_in(&staging)?;
        remove_tree(&staging)
            .map_err(|e| Error::io("cannot remove what a stopped run has left", &staging, e))
    }

    /// Creates the hidden directory next to `target` and locks it.
    ///
    /// # Errors
    /// As for [`OutputDir::create_watched`].
    pub fn create(target: &Path, existing: Existing) -> Result<Self> {
        Self::create_watched(target, existing, &|_| ())
    }

    /// Like [`OutputDir::create`]. All files of a result that is replaced are hashed, which takes a
    /// second for each gigabyte; `watch` is called with the number of bytes hashed since the last
    /// call.
    ///
    /// # Errors
    /// As for [`OutputDir::check`]; [`Kind::Io`] if it can't be created, or another run is writing
    /// the same output.
    pub fn create_watched(
        target: &Path,
        existing: Existing,
        watch: &(dyn Fn(u64) + Sync),
    ) -> Result<Self> {
        // A path that ends in `/.` can't be renamed.
        let target: &Path = &target.components().collect::<PathBuf>();
        Self::check(target, existing)?;
        // A leftover may be in a lower layer of an overlay, where it can't be renamed.
        Self::remove_leftover(target)?;
        let mut created = Self::hidden(target, existing, watch)?;
        created.empty().map_err(|e| Error::io("cannot create the output", created.path(), e))?;
        if existing == Existing::Replaced && target.symlink_metadata().is_ok() {
            created.replaced = Some(EarlierResult::look(target, watch)?);
        }
        Ok(created)
    }

    /// Creates and locks the hidden directory, which may have contents of a killed run, and
    /// recovers an earlier result that such a run has moved away.
    fn hidden(target: &Path, existing: Existing, watch: HashProgress<'_>) -> Result<Self> {
        let parent = parent_of(target);
        let staging = partial(target)?;
        // Held until the directory is listed, so that a signal finds either the listed directory or
        // none.
        let mut unfinished = unfinished(target)?;
        fs::create_dir_all(&parent)
            .map_err(|e| Error::io("cannot create the output's parent", &parent, e))?;
        let lock = locked(target, &staging, || open_or_make_directory(&staging))?;
        check_no_mount_in(&staging)?;
        let brought_back =
            bring_back(target, existing, watch).inspect_err(|_| drop(fs::remove_dir(&staging)))?;
        unfinished.insert(staging.clone());
        Ok(Self {
            target: target.to_owned(),
            staging: OpenDir::held(lock, &staging),
            manifest: Manifest::default(),
            committed: false,
            brought_back,
            replaced: None,
            modes: Modes::of(target),
        })
    }

    /// Removes what a killed run left in the hidden directory, whose lock is free. Then takes away
    /// other users' rights, so that they can't read content that was private before.
    fn empty(&self) -> io::Result<()> {
        clear_directory(self.path())?;
        self.modes.as_ref().map_or(Ok(()), |modes| modes.hide(self.path()))
    }

    /// Whether a killed run had left a complete result under a hidden name that was given the
    /// output's name again. That result is then the one to replace.
    pub fn brought_back(&self) -> bool {
        self.brought_back
    }

    /// The directory for files until the commit.
    pub fn path(&self) -> &Path {
        self.staging.path()
    }

    /// Starts writing `shards`. Pass their hashes to [`Self::add_hashes`].
    ///
    /// # Errors
    /// [`Kind::Io`] if the first file can't be created; [`Kind::Stopped`] if the program is ending.
    pub fn writer(&self, shards: Vec<ShardPlan>) -> Result<Writer> {
        self.check_running()?;
        Writer::within(self.staging.clone(), shards)
    }

    /// Refuses early if the disk has less than `bytes` free.
    ///
    /// # Errors
    /// [`Kind::Io`], with both figures.
    pub fn require_space(&self, bytes: u64) -> Result<()> {
        let Ok(disk) = statvfs(self.path()) else { return Ok(()) };
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        if free >= bytes {
            return Ok(());
        }
        Err(Error::new(
            Kind::Io,
            format!("the output takes {bytes} bytes; the disk has {free} free"),
        )
        .file(&self.target)
        .remedy("free space on that disk, or write elsewhere"))
    }

    /// Writes the small file `name` and lists it in the manifest.
    ///
    /// # Errors
    /// [`Kind::Io`] if it can't be written.
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.check_running()?;
        self.staging.write(name, bytes)?;
        self.manifest.files.insert(name.to_owned(), sha256_bytes(bytes));
        Ok(())
    }

    /// Copies the file `from`, of any size, to `name`, which may be in a folder, and lists it in
    /// the manifest.
    ///
    /// # Errors
    /// [`Kind::Io`] if it can't be read or written.
    pub fn carry(&mut self, from: &Path, name: &str) -> Result<()> {
        self.check_running()?;
        let to = self.path().join(name);
        let mut reader =
            File::open(from).map_err(|e| Error::io("cannot read this file", from, e))?;
        let mut writer = self.staging.create(name)?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        loop {
            let read = reader
                .read(&mut buffer)
                .map_err(|e| Error::io("cannot read this file", from, e))?;
            if read == 0 {
                break;
            }
            hasher.update(&buffer[..read]);
            writer
                .write_all(&buffer[..read])
                .map_err(|e| Error::io("cannot write this file", &to, e))?;
        }
        writer.sync_all().map_err(|e| Error::io("cannot write this file", &to, e))?;
        self.manifest.files.insert(name.to_owned(), hex(&hasher.finalize()));
        Ok(())
    }

    /// Returns an error if the program is ending, or something else has the hidden name.
    fn check_running(&self) -> Result<()> {
        if !unfinished(&self.target)?.contains(self.path()) {
            return Err(Error::new(Kind::Stopped, "stopped").file(&self.target));
        }
        self.check_staging()
    }

    /// Returns an error if something else has the hidden directory's name; a link would lead
    /// anywhere.
    ///
    /// # Errors
    /// [`Kind::Mismatch`] in that case; [`Kind::Stopped`] if the program is ending.
    fn check_staging(&self) -> Result<()> {
        let own = self.staging.file().metadata();
        let now = self.path().symlink_metadata();
        if own.is_ok_and(|own| now.is_ok_and(|now| FileId::of(&now) == FileId::of(&own))) {
            return Ok(());
        }
        // A signal may have removed it.
        drop(unfinished(&self.target)?);
        let what = "this directory, in which the run writes, was moved or replaced while it worked";
        Err(Error::new(Kind::Mismatch, what)
            .file(self.path())
            .remedy("leave hidden names alone, and run it again"))
    }

    /// SHA-256 of all files listed so far, by name.
    pub fn files(&self) -> &BTreeMap<String, String> {
        &self.manifest.files
    }

    /// Writes the small file `name` without listing it, for content that differs from run to run.
    ///
    /// # Errors
    /// [`Kind::Io`] if it can't be written.
    pub fn write_unlisted(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.check_running()?;
        self.staging.write(name, bytes)
    }

    /// Copies the file `name` of the directory `from`, which has the SHA-256 `hash`, and lists it
    /// in the manifest.
    ///
    /// # Errors
    /// [`Kind::Io`] if it can't be copied.
    pub fn copy(&mut self, from: &Path, name: &str, hash: &str) -> Result<()> {
        self.check_running()?;
        let (from, mut to) = (from.join(name), self.staging.create(name)?);
        copy_file(&from, &mut to).map_err(|e| Error::io("cannot copy this file", &from, e))?;
        self.manifest.files.insert(name.to_owned(), hash.to_owned());
        Ok(())
    }

    /// Lists files that a [`crate::Writer`] has written and hashed in the manifest.
    pub fn add_hashes(&mut self, hashes: impl IntoIterator<Item = (String, String)>) {
        self.manifest.files.extend(hashes);
    }
}

fn copy_file(from: &Path, to: &mut File) -> io::Result<()> {
    let mut from = File::open(from)?;
    // A private file stays private.
    to.set_permissions(from.metadata()?.permissions())?;
    io::copy(&mut from, to)?;
    to.sync_all()
}

/// Refuses a path with `..` after a directory that doesn't exist: creating its parent would create
/// a directory that wasn't asked for.
fn check_way(target: &Path) -> Result<()> {
    let mut way = PathBuf::new();
    for part in target.components() {
        way.push(part);
        if part == Component::ParentDir && way.symlink_metadata().is_err() {
            let what = "the output's path goes through a directory that isn't there, and back (..)";
            return Err(Error::new(Kind::Usage, what)
                .file(&way)
                .remedy("write the path without that"));
        }
    }
    Ok(())
}

/// Refuses the parent directory of `target` if no output can be created there. If the parent
/// doesn't exist yet, its nearest existing ancestor is checked.
fn check_parent(target: &Path) -> Result<()> {
    let parent = parent_of(target);
    let nearest = parent.ancestors().find(|p| p.exists()).unwrap_or(Path::new("."));
    let nearest =
        nearest.canonicalize().map_err(|e| Error::io("cannot resolve this path", nearest, e))?;
    if !nearest.is_dir() {
        return Err(Error::new(Kind::Usage, "the output's parent is not a directory")
            .file(&nearest)
            .remedy("choose another output"));
    }
    check_takes_names(&nearest)
}

fn open_or_make_directory(dir: &Path) -> io::Result<File> {
    match fs::create_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        other => other?,
    }
    open_options(OFlags::DIRECTORY).open(dir)
}

impl Drop for OutputDir {
    fn drop(&mut self) {
        // If the program is ending, `remove_unfinished` removes the directory.
        if !self.committed
            && unfinished(&self.target).is_ok_and(|mut list| list.remove(self.path()))
        {
            let _ = remove_tree(self.path());
        }
    }
}
