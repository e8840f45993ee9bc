//! A file for bytes that don't fit in memory, which no other process can open.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// A temporary file without a name. The system removes it when this is dropped or the process ends
/// for any reason.
#[derive(Debug)]
pub struct Scratch {
    file: File,
    dir: PathBuf,
}

impl Scratch {
    /// Opens a scratch file in the directory `dir`.
    ///
    /// # Errors
    /// [`crate::Kind::Io`], naming `dir`.
    pub fn create(dir: &Path) -> Result<Self> {
        let path = dir.join(format!(".moe-convert-scratch-{}-{:x}", std::process::id(), unique()));
        let file = create_unnamed(&path)
            .map_err(|e| Error::io("cannot make a scratch file in this directory", dir, e))?;
        Ok(Self { file, dir: dir.to_owned() })
    }

    /// Writes `bytes` at `offset`.
    ///
    /// # Errors
    /// [`crate::Kind::Io`], such as for a full disk.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.file
            .write_all_at(bytes, offset)
            .map_err(|e| Error::io("cannot write to a scratch file here", &self.dir, e))
    }

    /// Fills `buffer` with the bytes at `offset`.
    ///
    /// # Errors
    /// [`crate::Kind::Io`].
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.file
            .read_exact_at(buffer, offset)
            .map_err(|e| Error::io("cannot read a scratch file here", &self.dir, e))
    }
}

/// Creates a file that vanishes when it is closed, since it loses its name at once.
fn create_unnamed(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
    std::fs::remove_file(path)?;
    Ok(file)
}

/// A number that no other scratch file of this process has.
fn unique() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_and_no_file_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let scratch = Scratch::create(dir.path()).unwrap();
        scratch.write_at(5, &[1, 2, 3]).unwrap();
        let mut read = [9; 4];
        scratch.read_at(4, &mut read).unwrap();
        assert_eq!(read, [0, 1, 2, 3]);
        assert!(scratch.read_at(6, &mut read).is_err());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(Scratch::create(&dir.path().join("missing")).is_err());
    }
}
