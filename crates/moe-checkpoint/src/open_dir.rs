//! A directory that is held open, so that files are written into it even if it is renamed or
//! replaced.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, mkdirat, openat};
use rustix::io::Errno;

use crate::error::{Error, Result};

/// A directory in which files are made.
#[derive(Debug, Clone)]
pub(crate) struct OpenDir {
    dir: Arc<File>,
    /// The path when it was opened.
    path: PathBuf,
}

impl OpenDir {
    /// Opens the directory `path`.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = openat(rustix::fs::CWD, path, flags, Mode::empty())?;
        Ok(Self::held(File::from(dir), path))
    }

    /// Wraps the open directory `dir`, whose path is `path`.
    pub fn held(dir: File, path: &Path) -> Self {
        Self { dir: Arc::new(dir), path: path.to_owned() }
    }

    /// The directory itself.
    pub fn file(&self) -> &File {
        &self.dir
    }

    /// The path when it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Creates the file `name`, or empties it; missing folders on the way are created. Links aren't
    /// followed.
    ///
    /// # Errors
    /// [`crate::Kind::Io`], with the file's path.
    pub fn create(&self, name: &str) -> Result<File> {
        let made = self.make(name).map(File::from);
        made.map_err(|e| Error::io("cannot create this file", self.path.join(name), e.into()))
    }

    fn make(&self, name: &str) -> rustix::io::Result<OwnedFd> {
        let mut parts: Vec<&str> = name.split('/').collect();
        let file = parts.pop().unwrap_or_default();
        let mut within = self
            .dir
            .as_fd()
            .try_clone_to_owned()
            .map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::MFILE))?;
        for part in parts {
            within = folder(&within, part)?;
        }
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // The umask removes bits as usual.
        openat(within, file, flags, Mode::from_raw_mode(0o666))
    }

    /// Writes the file `name` with `bytes`, and waits until they are on the disk.
    ///
    /// # Errors
    /// As for [`Self::create`].
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let mut file = self.create(name)?;
        let written = file.write_all(bytes).and_then(|()| file.sync_all());
        written.map_err(|e| Error::io("cannot write this file", self.path.join(name), e))
    }
}

/// Opens the folder `name` in `within`, and creates it if needed. A link is refused.
fn folder(within: &OwnedFd, name: &str) -> rustix::io::Result<OwnedFd> {
    match mkdirat(within, name, Mode::from_raw_mode(0o777)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(e) => return Err(e),
    }
    openat(within, name, OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn files_are_written_to_a_renamed_directory() {
        let parent = tempfile::tempdir().unwrap();
        let path = |name: &str| parent.path().join(name);
        fs::create_dir(path("dir")).unwrap();
        fs::create_dir(path("elsewhere")).unwrap();
        let dir = OpenDir::open(&path("dir")).unwrap();
        fs::rename(path("dir"), path("moved")).unwrap();
        symlink("elsewhere", path("dir")).unwrap();
        dir.write("a/b/file", b"words").unwrap();
        dir.write("a/file", b"words").unwrap();
        dir.write("file", b"longer words").unwrap();
        dir.write("file", b"words").unwrap();
        for name in ["moved/a/b/file", "moved/a/file", "moved/file"] {
            assert_eq!(fs::read_to_string(path(name)).unwrap(), "words");
        }
        // Links within the directory aren't followed either.
        symlink("../elsewhere", path("moved/link")).unwrap();
        symlink("../elsewhere/file", path("moved/file2")).unwrap();
        assert!(dir.write("link/file", b"words").is_err() && dir.write("file2", b"words").is_err());
        assert_eq!(fs::read_dir(path("elsewhere")).unwrap().count(), 0);
    }
}
