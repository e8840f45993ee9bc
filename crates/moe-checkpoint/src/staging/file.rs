//! Output files that appear under their final name only when they are complete.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::lock::{locked, options_of};
use super::{partial, unfinished};
use crate::error::{Error, Kind, Result};

/// A file being written: it lies hidden beside its final place until [`StagedFile::commit`]. Dropped without that, it is removed.
#[derive(Debug)]
pub struct StagedFile {
    path: PathBuf,
    staging: PathBuf,
    /// Holds the lock.
    file: File,
    committed: bool,
}

impl StagedFile {
    /// Creates the hidden file beside `path` and locks it, so that no work is done for a file that can't be written.
    ///
    /// # Errors
    /// [`Kind::Io`] where it can't be created, or another run is writing the same file.
    pub fn create(path: &Path) -> Result<Self> {
        let staging = partial(path)?;
        let open = || options_of(OFlags::empty()).write(true).create(true).truncate(false).open(&staging);
        let file = locked(path, &staging, open)?;
        // What a killed run left behind.
        file.set_len(0).map_err(|e| Error::io("cannot write this file", path, e))?;
        unfinished().insert(staging.clone());
        Ok(Self { path: path.to_owned(), staging, file, committed: false })
    }

    /// Lets `fill` write the file, flushes it and lets it appear under its final name.
    ///
    /// # Errors
    /// [`Kind::Io`], and what `fill` returns; the final name is then untouched.
    pub fn commit(mut self, fill: impl FnOnce(&mut File) -> io::Result<()>) -> Result<()> {
        let fail = |e| Error::io("cannot write this file", &self.path, e);
        fill(&mut self.file).and_then(|()| self.file.sync_all()).map_err(fail)?;
        let mut unfinished = unfinished();
        if !unfinished.remove(&self.staging) {
            return Err(Error::new(Kind::Stopped, "stopped").file(&self.path));
        }
        self.committed = true;
        fs::rename(&self.staging, &self.path).map_err(|e| {
            let _ = fs::remove_file(&self.staging);
            fail(e)
        })
    }
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
    fn what_cannot_be_written_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("nowhere/file");
        assert_eq!(StagedFile::create(&missing).unwrap_err().kind(), Kind::Io);
        assert_eq!(StagedFile::create(Path::new("/")).unwrap_err().kind(), Kind::Usage);
    }
}
