//! Files that must stay as they are while a run reads them.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Kind, Result};

/// Files as they were when they were first looked at. What is read of them before
/// [`Snapshot::check`] finds them unchanged is of one piece, and hashes of them are those of what
/// was read.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    files: BTreeMap<PathBuf, Identity>,
}

/// What another file, or other content, changes. The time of a file's attributes is left out: it
/// changes when a link is made to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
}

impl Identity {
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
    /// Looks at `path`, which is about to be read; one that isn't there is left to whoever reads
    /// it.
    pub fn add(&mut self, path: &Path) {
        if let Ok(metadata) = path.metadata() {
            self.files.entry(path.to_owned()).or_insert_with(|| Identity::of(&metadata));
        }
    }

    /// Looks at all of `paths`.
    pub fn extend<P: AsRef<Path>>(&mut self, paths: impl IntoIterator<Item = P>) {
        paths.into_iter().for_each(|path| self.add(path.as_ref()));
    }

    /// Looks again.
    ///
    /// # Errors
    /// [`Kind::Io`], naming the first file that changed or is gone.
    pub fn check(&self) -> Result<()> {
        for (path, before) in &self.files {
            let what = match path.metadata() {
                Ok(now) if Identity::of(&now) == *before => continue,
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

    #[test]
    fn changes_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let look = || {
            fs::write(&path, "words").unwrap();
            let mut snapshot = Snapshot::default();
            snapshot.extend([&path, &dir.path().join("nothing")]);
            snapshot.check().unwrap();
            snapshot
        };
        let found = |snapshot: Snapshot| snapshot.check().unwrap_err().to_string();
        let snapshot = look();
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        assert!(found(snapshot).contains("changed while"));
        let snapshot = look();
        fs::write(dir.path().join("other"), "words").unwrap();
        fs::rename(dir.path().join("other"), &path).unwrap();
        assert!(found(snapshot).contains("changed while"));
        let snapshot = look();
        fs::write(&path, "more words").unwrap();
        assert!(found(snapshot).contains("changed while"));
        let snapshot = look();
        fs::remove_file(&path).unwrap();
        assert!(found(snapshot).contains("vanished"));
        // A link to it is no change.
        let snapshot = look();
        fs::hard_link(&path, dir.path().join("link")).unwrap();
        snapshot.check().unwrap();
    }
}
