//! The list of files that this process is writing, which are removed when a signal ends it.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::remove::remove_tree;
use crate::error::{Error, Kind, Result};

/// Hidden directories and files that this process is writing, and its temporary directories.
#[derive(Debug)]
struct UnfinishedList {
    paths: BTreeSet<PathBuf>,
    is_ending: bool,
}

fn list() -> MutexGuard<'static, UnfinishedList> {
    static LIST: Mutex<UnfinishedList> =
        Mutex::new(UnfinishedList { paths: BTreeSet::new(), is_ending: false });
    LIST.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The locked list: while it is held, nothing else can change it or end the program.
pub(super) struct Unfinished(MutexGuard<'static, UnfinishedList>);

impl Deref for Unfinished {
    type Target = BTreeSet<PathBuf>;

    fn deref(&self) -> &Self::Target {
        &self.0.paths
    }
}

impl DerefMut for Unfinished {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0.paths
    }
}

/// Locks the list for the writer of `output`. Files to be removed at the end are created and listed
/// under one lock.
///
/// # Errors
/// [`Kind::Stopped`] if the program is ending: then nothing new may appear, since nothing would
/// remove it.
pub(super) fn unfinished(output: &Path) -> Result<Unfinished> {
    let list = list();
    if list.is_ending {
        return Err(Error::new(Kind::Stopped, "stopped").file(output));
    }
    Ok(Unfinished(list))
}

/// Removes what this process was writing, before it ends. Threads that still write there get an
/// error, and nothing new can begin. Called again, it removes what has appeared since.
///
/// # Errors
/// [`Kind::Io`] if something can't be removed.
pub fn remove_unfinished() -> Result<()> {
    let mut list = list();
    list.is_ending = true;
    let remove =
        |path: &PathBuf| removed(path).map_err(|e| Error::io("cannot remove this", path, e));
    let removed: Vec<Result<()>> = list.paths.iter().map(remove).collect();
    removed.into_iter().collect()
}

/// Removes `path` and its contents. It tries repeatedly, since a thread that still writes there may
/// put a file into a directory that was just emptied.
fn removed(path: &Path) -> io::Result<()> {
    const TRIES: usize = 100;
    let mut result = removed_once(path);
    for _ in 1..TRIES {
        match &result {
            Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => std::thread::sleep(PAUSE),
            _ => break,
        }
        result = removed_once(path);
    }
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn removed_once(path: &Path) -> io::Result<()> {
    // The name may belong to a link by now.
    if path.symlink_metadata()?.is_dir() { remove_tree(path) } else { fs::remove_file(path) }
}

/// Pause between two tries to remove a directory.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(5);

/// Removes everything in `dir`.
pub(super) fn clear_directory(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        removed_once(&entry?.path())?;
    }
    Ok(())
}

/// A directory of this process alone. It is removed when this is dropped, and when a signal ends
/// the process.
#[derive(Debug)]
pub struct TemporaryDir(PathBuf);

impl TemporaryDir {
    /// Takes over the directory that `make` creates.
    ///
    /// # Errors
    /// If `make` fails, as an error about the directory `within`; [`Kind::Stopped`] if the program
    /// is ending.
    pub fn made(within: &Path, make: impl FnOnce() -> io::Result<PathBuf>) -> Result<Self> {
        let mut unfinished = unfinished(within)?;
        let path =
            make().map_err(|e| Error::io("cannot make a temporary directory here", within, e))?;
        unfinished.insert(path.clone());
        Ok(Self(path))
    }

    /// Path of the directory.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Removes the directory now.
    ///
    /// # Errors
    /// [`Kind::Io`] if it can't be removed.
    pub fn remove(self) -> Result<()> {
        unfinished(&self.0)?.remove(&self.0);
        removed(&self.0)
            .map_err(|e| Error::io("cannot remove this temporary directory", &self.0, e))
    }
}

impl Drop for TemporaryDir {
    fn drop(&mut self) {
        // If the program is ending, `remove_unfinished` removes the directory.
        if unfinished(&self.0).is_ok_and(|mut list| list.remove(&self.0)) {
            let _ = removed(&self.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::{Existing, OutputDir, write_file_atomically};

    /// Runs in a process of its own, since nothing works in a process that is ending.
    #[test]
    fn nothing_appears_once_the_program_is_ending() {
        let child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--ignored",
                "--exact",
                "staging::unfinished::tests::in_a_process_that_is_ending",
            ])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stdout);
        assert!(child.status.success() && said.contains("1 passed"), "{said}");
    }

    #[test]
    #[ignore = "ends what its process writes: the test above runs it by itself"]
    fn in_a_process_that_is_ending() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let temporary =
            TemporaryDir::made(dir.path(), || fs::create_dir(path("t")).map(|()| path("t")))
                .unwrap();
        let mut output = OutputDir::create(&path("out"), Existing::Kept).unwrap();
        output.write("config.json", b"{}").unwrap();
        remove_unfinished().unwrap();
        // A thread that hasn't noticed creates a folder again.
        fs::create_dir_all(temporary.path().join("deep")).unwrap();
        remove_unfinished().unwrap();
        assert_eq!(output.write("late.json", b"{}").unwrap_err().kind(), Kind::Stopped);
        assert_eq!(output.commit().unwrap_err().kind(), Kind::Stopped);
        assert_eq!(
            write_file_atomically(&path("j.xml"), |_| Ok(())).unwrap_err().kind(),
            Kind::Stopped
        );
        assert_eq!(
            OutputDir::create(&path("new"), Existing::Kept).unwrap_err().kind(),
            Kind::Stopped
        );
        assert!(TemporaryDir::made(dir.path(), || panic!("made")).is_err());
        drop(temporary);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
