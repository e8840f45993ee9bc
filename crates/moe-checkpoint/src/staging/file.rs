//! Output files that appear under their final name only when they are complete.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::lock::{locked, options_of};
use super::names::{parent_of, partial};
use super::rename::{in_the_way, rename_to_free};
use super::unfinished::unfinished;
use crate::error::{Error, Kind, Result};
use crate::locations::Id;

/// What a file holds, so that one of this kind may replace it.
#[derive(Debug, Clone, Copy)]
pub struct FileKind {
    /// What it holds, in words, such as "logits".
    pub content: &'static str,
    /// Whether the regular file of this path holds that.
    pub holds: fn(&Path) -> bool,
}

/// Checks whether a file of `kind` may be written to `path`, without touching the disk: nothing or an empty file may be there, or, with
/// `overwrite`, a file of this kind.
///
/// # Errors
/// [`Kind::Usage`] where something else is there, or the path can't be a file's; [`Kind::Missing`] where its directory isn't there.
pub fn check_file(path: &Path, kind: &FileKind, overwrite: bool) -> Result<()> {
    let parent = parent_of(path);
    if !parent.is_dir() {
        let what = "the output's directory doesn't exist";
        return Err(Error::new(Kind::Missing, what).file(parent).remedy("make it first"));
    }
    partial(path)?;
    let refused = |what: String, remedy: &str| Err(Error::new(Kind::Usage, what).file(path).remedy(remedy));
    let found = match path.symlink_metadata() {
        Ok(found) => found,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::io("cannot look at the output", path, e)),
    };
    if found.is_dir() {
        return refused("the output is a directory".to_owned(), "give a file name");
    }
    if found.is_symlink() {
        let what = "the output exists and is a link, which is not followed";
        return refused(what.to_owned(), "give the path that it leads to, or choose another name");
    }
    if !found.is_file() {
        return refused("the output exists and is not a regular file".to_owned(), "choose another name");
    }
    let content = kind.content;
    if found.len() > 0 && !(kind.holds)(path) {
        let what = format!("the output exists and holds something other than {content}");
        let remedy = format!("choose another name, or remove it yourself: --overwrite replaces {content} only");
        return refused(what, &remedy);
    }
    if found.len() > 0 && !overwrite {
        return refused(format!("the output exists and holds {content}"), "choose another name, or give --overwrite");
    }
    Ok(())
}

/// A file being written: it lies hidden beside its final place until [`StagedFile::commit`]. Dropped without that, it is removed.
#[derive(Debug)]
pub struct StagedFile {
    path: PathBuf,
    staging: PathBuf,
    /// What it replaces: what has its name when it is begun.
    replaced: Option<Id>,
    /// Holds the lock.
    file: File,
    committed: bool,
}

impl StagedFile {
    /// Creates the hidden file beside `path` and locks it, so that no work is done for a file that can't be written. Whether what is
    /// there may be replaced is for [`check_file`] to say.
    ///
    /// # Errors
    /// [`Kind::Io`] where it can't be created, or another run is writing the same file.
    pub fn create(path: &Path) -> Result<Self> {
        let staging = partial(path)?;
        let open = || options_of(OFlags::empty()).write(true).create(true).truncate(false).open(&staging);
        let file = locked(path, &staging, open)?;
        // Another name would be another file of somebody's, which is emptied here.
        if file.metadata().is_ok_and(|found| found.nlink() > 1 || !found.is_file()) {
            let what = "no run of this program made this, which has the hidden name that the output needs";
            return Err(Error::new(Kind::Usage, what).file(&staging).remedy("remove it, or choose another output"));
        }
        // What a killed run left behind.
        file.set_len(0).map_err(|e| Error::io("cannot write this file", path, e))?;
        unfinished().insert(staging.clone());
        Ok(Self { path: path.to_owned(), staging, replaced: there(path), file, committed: false })
    }

    /// Lets `fill` write the file, flushes it and lets it appear under its final name.
    ///
    /// # Errors
    /// [`Kind::Io`], and what `fill` returns; the final name is then untouched. Where something has come there meanwhile, the file gets a
    /// name beside it, which the error says.
    pub fn commit(mut self, fill: impl FnOnce(&mut File) -> io::Result<()>) -> Result<()> {
        let fail = |e| Error::io("cannot write this file", &self.path, e);
        fill(&mut self.file).and_then(|()| self.file.sync_all()).map_err(fail)?;
        let mut unfinished = unfinished();
        if !unfinished.remove(&self.staging) {
            return Err(Error::new(Kind::Stopped, "stopped").file(&self.path));
        }
        self.committed = true;
        let moved = match there(&self.path) {
            // Hours may have passed: only what was looked at then is replaced.
            Some(now) if self.replaced == Some(now) => fs::rename(&self.staging, &self.path).map(|()| None),
            _ => rename_to_free(&self.staging, &self.path),
        };
        let moved = moved.map_err(|e| {
            let _ = fs::remove_file(&self.staging);
            fail(e)
        })?;
        moved.map_or(Ok(()), |place| Err(in_the_way(&self.path, &place)))
    }
}

/// What has the name `path`, which is not followed where it is a link.
fn there(path: &Path) -> Option<Id> {
    path.symlink_metadata().ok().map(|found| Id::of(&found))
}

impl Drop for StagedFile {
    fn drop(&mut self) {
        if !self.committed && unfinished().remove(&self.staging) {
            let _ = fs::remove_file(&self.staging);
        }
    }
}

/// Writes one result file so that it is whole or not there: `fill` writes a hidden file beside it.
///
/// # Errors
/// [`Kind::Io`], and what `fill` returns.
pub fn write_file_atomically(path: &Path, fill: impl FnOnce(&mut File) -> io::Result<()>) -> Result<()> {
    StagedFile::create(path)?.commit(fill)
}

/// Opens the file `path`, which may have to be made, to add to its end; a link under that name is not followed.
///
/// # Errors
/// [`Kind::Io`].
pub fn open_to_append(path: &Path) -> Result<File> {
    let open = options_of(OFlags::empty()).append(true).create(true).open(path);
    open.map_err(|e| Error::io("cannot write to this file", path, e))
}

/// Opens the file `path` to read it, unless that is a link.
pub(crate) fn open_no_link(path: &Path) -> io::Result<File> {
    options_of(OFlags::empty()).open(path)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_file_appears_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let (path, hidden) = (dir.path().join("file"), dir.path().join(".file.partial-moe-convert"));
        fs::write(&hidden, "what a killed run left behind").unwrap();
        fs::write(&path, "before").unwrap();
        let file = StagedFile::create(&path).unwrap();
        let busy = StagedFile::create(&path).unwrap_err();
        assert!(busy.to_string().contains("another run"), "{busy}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "before");
        file.commit(|file| file.write_all(b"after")).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "after");
        assert!(StagedFile::create(&path).unwrap().commit(|_| Err(io::Error::other("no"))).is_err());
        drop(StagedFile::create(&path).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "after");
        assert!(!hidden.exists());
    }

    #[test]
    fn what_comes_meanwhile_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        for before in [None, Some("an earlier file")] {
            before.iter().for_each(|text| fs::write(&path, text).unwrap());
            let file = StagedFile::create(&path).unwrap();
            // Renamed over it, as programs save that don't write in place.
            fs::write(dir.path().join("thesis"), "words").unwrap();
            fs::rename(dir.path().join("thesis"), &path).unwrap();
            let error = file.commit(|file| file.write_all(b"result")).unwrap_err().to_string();
            assert!(error.contains("file-2") && error.contains("in the way"), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), "words");
            assert_eq!(fs::read_to_string(dir.path().join("file-2")).unwrap(), "result");
            fs::remove_file(dir.path().join("file-2")).unwrap();
        }
    }

    #[test]
    fn a_file_replaces_its_own_kind_where_that_is_wanted() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        const LISTS: FileKind = FileKind {
            content: "a list",
            holds: |path| fs::read_to_string(path).is_ok_and(|text| text.starts_with('[')),
        };
        fs::write(path("list"), "[1]").unwrap();
        fs::write(path("empty"), "").unwrap();
        fs::write(path("thesis"), "words").unwrap();
        fs::create_dir(path("folder")).unwrap();
        std::os::unix::fs::symlink("list", path("link")).unwrap();
        std::os::unix::fs::symlink("nowhere", path("dangling")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
        let refused = |name: &str, overwrite, complaint: &str| {
            let error = check_file(&path(name), &LISTS, overwrite).unwrap_err().to_string();
            assert!(error.contains(complaint) && error.contains("remedy"), "{name}: {error}");
        };
        for overwrite in [false, true] {
            check_file(&path("new"), &LISTS, overwrite).unwrap();
            check_file(&path("empty"), &LISTS, overwrite).unwrap();
            refused("thesis", overwrite, "something other than a list");
            refused("folder", overwrite, "a directory");
            refused("link", overwrite, "is a link");
            refused("dangling", overwrite, "is a link");
            refused("socket", overwrite, "not a regular file");
            refused("nowhere/file", overwrite, "doesn't exist");
            refused("..", overwrite, "no name");
        }
        refused("list", false, "--overwrite");
        check_file(&path("list"), &LISTS, true).unwrap();
    }

    #[test]
    fn what_cannot_be_written_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("nowhere/file");
        assert_eq!(StagedFile::create(&missing).unwrap_err().kind(), Kind::Io);
        assert_eq!(StagedFile::create(Path::new("/")).unwrap_err().kind(), Kind::Usage);
    }
}
