//! Results of costly steps in a directory, so that a run that was killed needn't take them again.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::error::{Error, Kind, Result};
use crate::manifest::sha256_bytes;
use crate::staging::write_file_atomically;

/// Says whose results lie in the directory.
const KEY_FILE: &str = "of";
/// Characters of a SHA-256, which each result starts with.
const HASH: usize = 64;

/// Finished steps of a run.
#[derive(Debug)]
pub struct Saved {
    dir: PathBuf,
    key: String,
    resume: bool,
    opened: OnceLock<()>,
}

impl Saved {
    /// Those of the run that `key`, the hash of all that decides what comes of it, stands for. Without `resume`, what an earlier
    /// run left in `dir` is dropped. The directory is made by the first [`Self::put`].
    ///
    /// # Errors
    /// [`Kind::Mismatch`] where another run's are to be resumed; [`Kind::Io`].
    pub fn new(dir: &Path, key: String, resume: bool) -> Result<Self> {
        let path = dir.join(KEY_FILE);
        match std::fs::read_to_string(&path) {
            Ok(found) if resume && found != key => {
                return Err(Error::new(Kind::Mismatch, "what was saved here is of other options, models or texts")
                    .file(&path)
                    .remedy("give the options that it began with, or start over without --resume"));
            }
            Ok(_) if !resume => std::fs::remove_dir_all(dir)
                .map_err(|e| Error::io("cannot remove what an earlier run saved here", dir, e))?,
            Ok(_) | Err(_) => {}
        }
        Ok(Self { dir: dir.to_owned(), key, resume, opened: OnceLock::new() })
    }

    /// The result of step `name`, if it was finished before.
    ///
    /// # Errors
    /// [`Kind::Malformed`] for a file that isn't what was written; [`Kind::Io`].
    pub fn get(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let path = self.dir.join(name);
        if !self.resume || !path.is_file() {
            return Ok(None);
        }
        let bytes = std::fs::read(&path).map_err(|e| Error::io("cannot read what was saved here", &path, e))?;
        match bytes.split_at_checked(HASH) {
            Some((hash, bytes)) if hash == sha256_bytes(bytes).as_bytes() => Ok(Some(bytes.to_vec())),
            _ => Err(Error::new(Kind::Malformed, "this is not what was saved here")
                .file(&path)
                .remedy("remove the file, or start over without --resume")),
        }
    }

    /// Saves the result of step `name`, whole or not at all.
    ///
    /// # Errors
    /// [`Kind::Io`], as where the disk is full.
    pub fn put(&self, name: &str, bytes: &[u8]) -> Result<()> {
        if self.opened.get().is_none() {
            std::fs::create_dir_all(&self.dir).map_err(|e| Error::io("cannot make this directory", &self.dir, e))?;
            write_file_atomically(&self.dir.join(KEY_FILE), |file| file.write_all(self.key.as_bytes()))?;
            let _ = self.opened.set(());
        }
        write_file_atomically(&self.dir.join(name), |file| {
            file.write_all(sha256_bytes(bytes).as_bytes())?;
            file.write_all(bytes)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finished_steps_come_back_to_the_run_that_took_them() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("saved");
        let saved = |key: &str, resume| Saved::new(&dir, key.to_owned(), resume);
        let first = saved("a", false).unwrap();
        assert!(!dir.exists());
        first.put("one", &[1, 2, 3]).unwrap();
        // Within a run, nothing is taken twice.
        assert_eq!(first.get("one").unwrap(), None);
        let resumed = saved("a", true).unwrap();
        assert_eq!(resumed.get("one").unwrap(), Some(vec![1, 2, 3]));
        assert_eq!(resumed.get("two").unwrap(), None);
        assert_eq!(saved("b", true).err().unwrap().kind(), Kind::Mismatch);
        std::fs::write(dir.join("one"), "nonsense").unwrap();
        assert_eq!(resumed.get("one").err().unwrap().kind(), Kind::Malformed);
        // Starting over drops it.
        saved("a", false).unwrap();
        assert!(!dir.exists());
        resumed.put("two", &[]).unwrap();
        assert_eq!(saved("a", true).unwrap().get("two").unwrap(), Some(vec![]));
    }
}
