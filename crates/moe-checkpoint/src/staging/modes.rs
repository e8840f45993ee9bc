//! Permissions of an earlier result, which a new one takes over, so that a private result stays
//! private.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, OFlags, XattrFlags, fchown, fremovexattr, fsetxattr, lgetxattr};
use rustix::io::Errno;

use super::lock::open_options;

/// Maximum depth of folders in a result.
const MAX_DEPTH: usize = 10;
/// The attribute in which Linux keeps the access control list of a file.
const ACL: &str = "system.posix_acl_access";
/// Maximum size of an extended attribute.
const MAX_ACL_BYTES: usize = 1 << 16;

/// The rights of users other than the owner of a file or folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rights {
    mode: u32,
    /// The group that the middle digit of the mode applies to.
    group: u32,
    /// The access control list; empty if there is none. With a list, the middle digit limits
    /// everyone that it names.
    acl: Vec<u8>,
}

impl Rights {
    /// The rights of what was `found` at `path`; a link is not followed.
    pub fn of(path: &Path, found: &Metadata) -> Self {
        let mut acl = vec![0; MAX_ACL_BYTES];
        // File systems without such lists return an error.
        let bytes = lgetxattr(path, ACL, &mut acl[..]).unwrap_or(0);
        acl.truncate(bytes);
        Self { mode: found.mode() & 0o7777, group: found.gid(), acl }
    }

    /// Gives the rights to `file`, which belongs to this process. If the group or the list can't be
    /// set, the group gets no more rights than everyone.
    pub fn give(&self, file: &File) -> io::Result<()> {
        // This comes first, since changing the group clears bits of the mode.
        let same_group = file.metadata()?.gid() == self.group;
        let has_group = same_group || fchown(file, None, Some(Gid::from_raw(self.group))).is_ok();
        let mode =
            if has_group && self.give_acl(file) { self.mode } else { without_group(self.mode) };
        file.set_permissions(Permissions::from_mode(mode))
    }

    fn give_acl(&self, file: &File) -> bool {
        if self.acl.is_empty() {
            // It may have inherited a list from its folder.
            return matches!(fremovexattr(file, ACL), Ok(()) | Err(Errno::NODATA | Errno::NOTSUP));
        }
        fsetxattr(file, ACL, &self.acl, XattrFlags::empty()).is_ok()
    }
}

/// `mode` with no more rights for the group than for everyone.
fn without_group(mode: u32) -> u32 {
    const SET_GROUP_ID: u32 = 0o2000;
    let (group, others) = (mode & 0o070, (mode & 0o007) << 3);
    mode & !(0o070 | SET_GROUP_ID) | (group & others)
}

/// The permissions of a result.
#[derive(Debug)]
pub(super) struct Modes {
    /// Rights by name within the result, which itself has the empty name.
    rights: BTreeMap<PathBuf, Rights>,
    /// The permissions that all of its files share; used for new files.
    file_mode: u32,
    /// The group of all its files, or its own if it has no files. None if files have several
    /// groups, or some have lists.
    file_group: Option<u32>,
}

impl Modes {
    /// The permissions of the result in `dir`; None if it isn't a directory.
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

    /// Lets only its owner access `staging` while it is written.
    pub fn hide(&self, staging: &Path) -> io::Result<()> {
        fs::set_permissions(staging, Permissions::from_mode(0o700))
    }

    /// Gives what is in `staging`, and finally the directory itself, the permissions that the same
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
        let file = open_options(OFlags::NONBLOCK).open(staging.join(name))?;
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
    fn another_group_gets_the_rights_of_everyone() {
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

    /// Shows what a user sees who can't change the group: the mode has no rights for the other
    /// group.
    #[test]
    fn a_group_that_cannot_be_given_gets_nothing() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let group = file.as_file().metadata().unwrap().gid() + 4711;
        let rights = Rights { mode: 0o660, group, acl: Vec::new() };
        rights.give(file.as_file()).unwrap();
        let found = file.as_file().metadata().unwrap();
        let (mode, given) = (found.mode() & 0o7777, found.gid() == group);
        // Root can set any group.
        assert_eq!(mode, if given { 0o660 } else { 0o600 });
        // An invalid list can't be set either.
        Rights { mode: 0o660, group: found.gid(), acl: vec![1, 2, 3] }
            .give(file.as_file())
            .unwrap();
        assert_eq!(file.as_file().metadata().unwrap().mode() & 0o7777, 0o600);
    }

    #[test]
    fn new_files_get_the_group_of_all_others() {
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
                // Only root can set any group; tests/root/ uses another user's.
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
