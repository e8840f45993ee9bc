//! Permissions of an earlier result, which the one that replaces it takes over: a private one stays
//! private.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, OFlags, XattrFlags, fchown, fremovexattr, fsetxattr, lgetxattr};
use rustix::io::Errno;

use super::lock::options_of;

/// Folders in results are few, and folders in these fewer.
const MAX_DEPTH: usize = 10;
/// Where Linux keeps the access control list of a file.
const ACL: &str = "system.posix_acl_access";
/// The most that an extended attribute holds.
const MAX_ACL_BYTES: usize = 1 << 16;

/// Who else than its owner may do what with a file or folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rights {
    mode: u32,
    /// Whom the middle digit of the mode is about.
    group: u32,
    /// The access control list; empty where there is none. With one, the middle digit limits all
    /// that it names.
    acl: Vec<u8>,
}

impl Rights {
    /// Of what is `found` at `path`; a link is not followed.
    pub fn of(path: &Path, found: &Metadata) -> Self {
        let mut acl = vec![0; MAX_ACL_BYTES];
        // A file system without such lists has nothing to say here.
        let bytes = lgetxattr(path, ACL, &mut acl[..]).unwrap_or(0);
        acl.truncate(bytes);
        Self { mode: found.mode() & 0o7777, group: found.gid(), acl }
    }

    /// Gives them to `file`, which is this process's own. Where the group or the list can't be
    /// given, nobody gets by being of another group what only everybody may do.
    pub fn give(&self, file: &File) -> io::Result<()> {
        // Changing the group takes away bits of the mode, so that it comes first.
        let same_group = file.metadata()?.gid() == self.group;
        let has_group = same_group || fchown(file, None, Some(Gid::from_raw(self.group))).is_ok();
        let mode =
            if has_group && self.give_acl(file) { self.mode } else { without_group(self.mode) };
        file.set_permissions(Permissions::from_mode(mode))
    }

    fn give_acl(&self, file: &File) -> bool {
        if self.acl.is_empty() {
            // A folder may have a list that all files in it get.
            return matches!(fremovexattr(file, ACL), Ok(()) | Err(Errno::NODATA | Errno::NOTSUP));
        }
        fsetxattr(file, ACL, &self.acl, XattrFlags::empty()).is_ok()
    }
}

/// `mode` with no more for the group than for everybody.
fn without_group(mode: u32) -> u32 {
    const SET_GROUP_ID: u32 = 0o2000;
    let (group, others) = (mode & 0o070, (mode & 0o007) << 3);
    mode & !(0o070 | SET_GROUP_ID) | (group & others)
}

/// The permissions of a result.
#[derive(Debug)]
pub(super) struct Modes {
    /// By name below the result, which itself has the empty name.
    rights: BTreeMap<PathBuf, Rights>,
    /// What all of its files permit: for files that it doesn't have.
    file_mode: u32,
    /// The one group of its files, or its own where it has none; None where files have several, or
    /// some have lists.
    file_group: Option<u32>,
}

impl Modes {
    /// The permissions of the result in `dir`; None where there is no result.
    pub fn of(dir: &Path) -> Option<Self> {
        let own = dir.symlink_metadata().ok().filter(Metadata::is_dir)?;
        let own_rights = Rights::of(dir, &own);
        let group = own_rights.group;
        let mut found = Self {
            rights: [(PathBuf::new(), own_rights)].into(),
            file_mode: 0o7777,
            file_group: Some(group),
        };
        let mut files = BTreeSet::new();
        found.add(dir, Path::new(""), 0, &mut files);
        let mut groups: BTreeSet<_> = files.iter().map(|name| found.rights[name].group).collect();
        if groups.is_empty() {
            groups.insert(group);
        }
        let has_lists = files.iter().any(|name| !found.rights[name].acl.is_empty());
        found.file_group = groups.pop_first().filter(|_| groups.is_empty() && !has_lists);
        Some(found)
    }

    fn add(&mut self, dir: &Path, below: &Path, depth: usize, files: &mut BTreeSet<PathBuf>) {
        for entry in fs::read_dir(dir.join(below)).into_iter().flatten().flatten() {
            let (name, Ok(found)) = (below.join(entry.file_name()), entry.metadata()) else {
                continue;
            };
            let rights = Rights::of(&entry.path(), &found);
            if found.is_file() {
                self.file_mode &= rights.mode;
                files.insert(name.clone());
            } else if found.is_dir() && depth < MAX_DEPTH {
                self.add(dir, &name, depth + 1, files);
            }
            self.rights.insert(name, rights);
        }
    }

    /// Lets nobody but its owner look into `staging` while it is written.
    pub fn hide(&self, staging: &Path) -> io::Result<()> {
        fs::set_permissions(staging, Permissions::from_mode(0o700))
    }

    /// Gives what is in `staging`, and at last the directory itself, the permissions that the same
    /// names had.
    pub fn give(&self, staging: &Path) -> io::Result<()> {
        self.give_below(staging, Path::new(""))?;
        self.give_one(staging, Path::new(""))
    }

    fn give_below(&self, staging: &Path, below: &Path) -> io::Result<()> {
        for entry in fs::read_dir(staging.join(below))? {
            let name = below.join(entry?.file_name());
            if staging.join(&name).symlink_metadata()?.is_dir() {
                self.give_below(staging, &name)?;
            }
            self.give_one(staging, &name)?;
        }
        Ok(())
    }

    fn give_one(&self, staging: &Path, name: &Path) -> io::Result<()> {
        let file = options_of(OFlags::NONBLOCK).open(staging.join(name))?;
        if let Some(rights) = self.rights.get(name) {
            return rights.give(&file);
        }
        let found = file.metadata()?;
        if !found.is_file() {
            return Ok(());
        }
        let mode = found.mode() & 0o7777 & self.file_mode;
        let group = self.file_group.unwrap_or_else(|| found.gid());
        let mode = if self.file_group.is_none() { without_group(mode) } else { mode };
        Rights { mode, group, acl: Vec::new() }.give(&file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_group_gets_what_everybody_has() {
        for (mode, wanted) in [
            (0o600, 0o600),
            (0o640, 0o600),
            (0o660, 0o600),
            (0o644, 0o644),
            (0o664, 0o644),
            (0o604, 0o604),
            (0o2770, 0o700),
            (0o2775, 0o755),
            (0o751, 0o711),
        ] {
            assert_eq!(without_group(mode), wanted, "{mode:o}");
        }
    }

    /// Who may change no group here sees that much: another user's group is taken from the mode.
    #[test]
    fn a_group_that_cannot_be_given_gets_nothing() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let group = file.as_file().metadata().unwrap().gid() + 4711;
        let rights = Rights { mode: 0o660, group, acl: Vec::new() };
        rights.give(file.as_file()).unwrap();
        let found = file.as_file().metadata().unwrap();
        let (mode, given) = (found.mode() & 0o7777, found.gid() == group);
        // As root, any group can be given.
        assert_eq!(mode, if given { 0o660 } else { 0o600 });
        // A list that is none can't be given either.
        Rights { mode: 0o660, group: found.gid(), acl: vec![1, 2, 3] }
            .give(file.as_file())
            .unwrap();
        assert_eq!(file.as_file().metadata().unwrap().mode() & 0o7777, 0o600);
    }

    #[test]
    fn files_that_were_not_there_get_the_group_of_all_others() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = (dir.path().join("old"), dir.path().join("new"));
        for made in [&old, &new] {
            fs::create_dir(made).unwrap();
        }
        for (name, group) in [("a", 4711), ("b", 4711)] {
            fs::write(old.join(name), "").unwrap();
            let file = File::open(old.join(name)).unwrap();
            file.set_permissions(Permissions::from_mode(0o640)).unwrap();
            if fchown(&file, None, Some(Gid::from_raw(group))).is_err() {
                // Only root can give any group; tests/root/ has another user's.
                return;
            }
        }
        let given = || {
            fs::write(new.join("c"), "").unwrap();
            fs::set_permissions(new.join("c"), Permissions::from_mode(0o664)).unwrap();
            Modes::of(&old).unwrap().give(&new).unwrap();
            let found = new.join("c").metadata().unwrap();
            (found.mode() & 0o7777, found.gid())
        };
        assert_eq!(given(), (0o640, 4711));
        fchown(File::open(old.join("a")).unwrap(), None, Some(Gid::from_raw(4712))).unwrap();
        fs::remove_file(new.join("c")).unwrap();
        let (mode, group) = given();
        assert_eq!((mode, group == 4711), (0o600, false));
    }
}
