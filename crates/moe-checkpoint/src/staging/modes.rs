//! Permissions of an earlier result, which the one that replaces it takes over: a private one stays private.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::result::RECEIPT_FILE;

/// Folders in results are few, and folders in these fewer.
const MAX_DEPTH: usize = 10;

/// The permissions of a result.
#[derive(Debug)]
pub(super) struct Modes {
    /// By name below the result, which itself has the empty name.
    modes: BTreeMap<PathBuf, u32>,
    /// What all of its files permit: for files that it doesn't have.
    file: u32,
}

impl Modes {
    /// The permissions of the result in `dir`; None where there is no result.
    pub fn of(dir: &Path) -> Option<Self> {
        let own = dir.symlink_metadata().ok().filter(fs::Metadata::is_dir)?;
        let mut found = Self { modes: [(PathBuf::new(), own.mode() & 0o7777)].into(), file: 0o7777 };
        found.add(dir, Path::new(""), 0);
        Some(found)
    }

    fn add(&mut self, dir: &Path, below: &Path, depth: usize) {
        for entry in fs::read_dir(dir.join(below)).into_iter().flatten().flatten() {
            let (name, Ok(found)) = (below.join(entry.file_name()), entry.metadata()) else { continue };
            let mode = found.mode() & 0o7777;
            if found.is_file() {
                self.file &= mode;
            } else if found.is_dir() && depth < MAX_DEPTH {
                self.add(dir, &name, depth + 1);
            }
            self.modes.insert(name, mode);
        }
    }

    /// Lets nobody but its owner look into `staging` while it is written.
    pub fn hide(&self, staging: &Path) -> io::Result<()> {
        fs::set_permissions(staging, Permissions::from_mode(0o700))
    }

    /// Gives what is in `staging`, and at last the directory itself, the permissions that the same names had.
    pub fn give(&self, staging: &Path) -> io::Result<()> {
        self.give_below(staging, Path::new(""))?;
        // Time stamps tell what was changed after the receipt, so that it comes last.
        self.give_one(staging, Path::new(RECEIPT_FILE))?;
        self.give_one(staging, Path::new(""))
    }

    fn give_below(&self, staging: &Path, below: &Path) -> io::Result<()> {
        for entry in fs::read_dir(staging.join(below))? {
            let name = below.join(entry?.file_name());
            if staging.join(&name).symlink_metadata()?.is_dir() {
                self.give_below(staging, &name)?;
            }
            if name != Path::new(RECEIPT_FILE) {
                self.give_one(staging, &name)?;
            }
        }
        Ok(())
    }

    fn give_one(&self, staging: &Path, name: &Path) -> io::Result<()> {
        let path = staging.join(name);
        let Ok(found) = path.symlink_metadata() else { return Ok(()) };
        let own = found.mode() & 0o7777;
        let wanted = match self.modes.get(name) {
            Some(mode) => *mode,
            None if found.is_file() => own & self.file,
            None => own,
        };
        if wanted == own { Ok(()) } else { fs::set_permissions(&path, Permissions::from_mode(wanted)) }
    }
}
