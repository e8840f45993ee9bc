//! What this process is writing, and must not leave behind.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};

/// Hidden directories and files that this process is writing.
pub(super) fn unfinished() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    static UNFINISHED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes what this process was writing: for one that ends at once. Who still writes there gets an error.
///
/// # Errors
/// [`crate::Kind::Io`] where something can't be removed.
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

/// Removes all that lies in `dir`.
pub(super) fn clear_directory(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        match path.symlink_metadata()?.is_dir() {
            true => fs::remove_dir_all(&path)?,
            false => fs::remove_file(&path)?,
        }
    }
    Ok(())
}
