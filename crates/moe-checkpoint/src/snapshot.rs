//! Files that must not change while a run reads them.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Kind, Result};

/// The state of files when they were first added. If [`Snapshot::check`] finds them unchanged,
/// everything read before is consistent, and their hashes are those of what was read.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    files: BTreeMap<PathBuf, FileState>,
}

/// Identifies a file and its content. The time of change of its attributes is left out, since a new
/// link to the file changes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileState {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
}

impl FileState {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

impl Snapshot {
    /// Adds `path`, which will be read. A missing file is ignored, since its reader reports it.
    pub fn add(&mut self, path: &Path) {
        if let Ok(metadata) = path.metadata() {
            self.files.entry(path.to_owned()).or_insert_with(|| FileState::of(&metadata));
        }
    }

    /// Adds all of `paths`.
    pub fn extend<P: AsRef<Path>>(&mut self, paths: impl IntoIterator<Item = P>) {
        paths.into_iter().for_each(|path| self.add(path.as_ref()));
    }

    /// Compares all files with their first state.
    ///
    /// # Errors
    /// [`Kind::Io`], naming the first file that changed or no longer exists.
    pub fn check(&self) -> Result<()> {
        for (path, before) in &self.files {
            let what = match path.metadata() {
                Ok(now) if FileState::of(&now) == *before => continue,
                Ok(_) => "this file changed while it was being read",
                Err(_) => "this file vanished while it was being read",
            };
            return Err(Error::new(Kind::Io, what)
                .file(path)
                .remedy("run again when nobody changes it, or on a copy"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A file and a snapshot of it, taken beside one of a file that isn't there.
    fn looked_at() -> (tempfile::TempDir, std::path::PathBuf, Snapshot) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "words").unwrap();
        let mut snapshot = Snapshot::default();
        snapshot.extend([&path, &dir.path().join("nothing")]);
        snapshot.check().unwrap();
        (dir, path, snapshot)
    }

    /// What is found of a file that `change` was made to.
    fn found_after(change: fn(&Path)) -> String {
        let (_dir, path, snapshot) = looked_at();
        change(&path);
        snapshot.check().unwrap_err().to_string()
    }

    #[test]
    fn changes_are_found() {
        let of_another_time = found_after(|path| {
            let file = fs::File::options().write(true).open(path).unwrap();
            file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        });
        assert!(of_another_time.contains("changed while"));
        let replaced = found_after(|path| {
            fs::write(path.with_file_name("other"), "words").unwrap();
            fs::rename(path.with_file_name("other"), path).unwrap();
        });
        assert!(replaced.contains("changed while"));
        let rewritten = found_after(|path| fs::write(path, "more words").unwrap());
        assert!(rewritten.contains("changed while"));
        let removed = found_after(|path| fs::remove_file(path).unwrap());
        assert!(removed.contains("vanished"));
    }

    #[test]
    fn a_new_link_to_a_file_is_no_change() {
        let (dir, path, snapshot) = looked_at();
        fs::hard_link(&path, dir.path().join("link")).unwrap();
        snapshot.check().unwrap();
    }
}
