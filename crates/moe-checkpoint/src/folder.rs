//! Checks where links in a model's folder lead, since the folder may come from anyone.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, Kind, Result};

/// The folder of a model. A file is read only if, with links resolved, it is in this folder or
/// among the blobs of the hub cache that the folder is a snapshot of. A link elsewhere could copy
/// files that its author can't read into a result that the user publishes.
#[derive(Debug, Clone)]
pub struct Folder {
    path: PathBuf,
    /// The path without links.
    root: PathBuf,
    /// The blobs of a hub cache, if the folder is a snapshot.
    blobs: Option<PathBuf>,
}

impl Folder {
    /// Returns the folder at `path`, which must exist.
    ///
    /// # Errors
    /// [`Kind::Io`] if the path can't be resolved.
    pub fn of(path: &Path) -> Result<Self> {
        let root =
            path.canonicalize().map_err(|e| Error::io("cannot resolve this directory", path, e))?;
        // The layout is models--OWNER--NAME/snapshots/REVISION. The path of the blobs isn't
        // resolved, since an archive can bring its own links.
        let given = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let cached = repository_of(&root).or_else(|| repository_of(&given)?.canonicalize().ok());
        Ok(Self {
            path: path.to_owned(),
            blobs: cached.map(|repository| repository.join("blobs")),
            root,
        })
    }

    /// The path as it was given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Resolves `path`, which is in this folder.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] if it leads out of bounds; [`Kind::Missing`] for a link to nothing.
    pub fn resolve(&self, path: &Path) -> Result<PathBuf> {
        let resolved = path.canonicalize().map_err(|e| match path.symlink_metadata() {
            Ok(_) if e.kind() == io::ErrorKind::NotFound => {
                Error::new(Kind::Missing, "this link leads nowhere")
                    .file(path)
                    .remedy("put the file there that it stands for, or remove the link")
            }
            _ => Error::io("cannot resolve this path", path, e),
        })?;
        let in_blobs = self.blobs.as_ref().is_some_and(|blobs| resolved.starts_with(blobs));
        if resolved.starts_with(&self.root) || in_blobs {
            return Ok(resolved);
        }
        let what = format!(
            "this leads out of the model's folder, to {}, and is not followed",
            resolved.display()
        );
        Err(Error::new(Kind::Unsupported, what).file(path).remedy(
            "if you trust it, put what its links stand for in their place: cp -rL DIR COPY, or cp -rLl, which \
                 takes no space on the same disk",
        ))
    }

    /// Refuses `path`, which is in this folder, unless it leads to a regular file within bounds.
    ///
    /// # Errors
    /// As for [`Folder::resolve`]; [`Kind::Malformed`] for a directory, a pipe or a device.
    pub fn check_file(&self, path: &Path) -> Result<()> {
        // Checked first, since a pipe or a device must not be copied.
        if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
            return Err(Error::new(Kind::Malformed, "this is not a regular file")
                .file(path)
                .remedy("put the file there that belongs to this model, or remove it"));
        }
        self.resolve(path).map(drop)
    }
}

/// The repository, by its name, of the hub cache that `snapshot` is part of.
fn repository_of(snapshot: &Path) -> Option<PathBuf> {
    let repository = snapshot.parent().filter(|parent| parent.ends_with("snapshots"))?.parent()?;
    let name = repository.file_name()?.to_string_lossy();
    name.starts_with("models--").then(|| repository.to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// Links of a snapshot: where each leads, and its name.
    const LINKS: [(&str, &str); 9] = [
        ("../../blobs/file", "blob"),
        ("blob", "chain"),
        ("../../../../hub/models--owner--other/blobs/file", "others"),
        ("others", "chain-out"),
        ("/etc/passwd", "absolute"),
        ("/dev/zero", "device"),
        ("inner", "directory"),
        ("nothing", "dangling"),
        ("turn", "turn"),
    ];

    /// A hub's cache in `dir`: a repository with a snapshot and blobs, and blobs of another.
    struct Cache {
        dir: tempfile::TempDir,
        repository: PathBuf,
        snapshot: PathBuf,
        blobs: PathBuf,
        of_another: PathBuf,
    }

    fn cache() -> Cache {
        let dir = tempfile::tempdir().unwrap();
        let repository = dir.path().join("hub/models--owner--name");
        let (snapshot, blobs) = (repository.join("snapshots/4f2a"), repository.join("blobs"));
        let of_another = dir.path().join("hub/models--owner--other/blobs");
        for made in [&snapshot, &blobs, &of_another] {
            fs::create_dir_all(made).unwrap();
            fs::write(made.join("file"), "words").unwrap();
        }
        fs::create_dir(snapshot.join("inner")).unwrap();
        for (target, name) in LINKS {
            symlink(target, snapshot.join(name)).unwrap();
        }
        Cache { dir, repository, snapshot, blobs, of_another }
    }

    #[test]
    fn links_are_followed_within_the_folder_and_into_the_blobs_of_its_cache() {
        let cache = cache();
        let link = cache.dir.path().join("a name for it");
        symlink(&cache.snapshot, &link).unwrap();
        for path in [&cache.snapshot, &link] {
            let folder = Folder::of(path).unwrap();
            for name in ["file", "blob", "chain"] {
                folder.check_file(&path.join(name)).unwrap();
            }
        }
    }

    #[test]
    fn links_that_lead_elsewhere_are_refused_by_name() {
        let cache = cache();
        let link = cache.dir.path().join("a name for it");
        symlink(&cache.snapshot, &link).unwrap();
        for path in [&cache.snapshot, &link] {
            let folder = Folder::of(path).unwrap();
            let refused = |name: &str| folder.check_file(&path.join(name)).unwrap_err().to_string();
            for name in ["others", "chain-out", "absolute"] {
                let message = refused(name);
                assert!(
                    message.contains("leads out")
                        && message.contains(name)
                        && message.contains("remedy")
                );
            }
            assert!(refused("directory").contains("not a regular file"));
            assert!(refused("device").contains("not a regular file"));
            assert!(refused("dangling").contains("leads nowhere"));
            assert!(refused("turn").contains("cannot resolve"));
        }
    }

    #[test]
    fn links_are_followed_in_a_repository_that_was_moved_to_another_disk() {
        let Cache { dir, repository, snapshot, .. } = cache();
        fs::rename(&repository, dir.path().join("elsewhere")).unwrap();
        symlink("../elsewhere", &repository).unwrap();
        Folder::of(&snapshot).unwrap().check_file(&snapshot.join("blob")).unwrap();
    }

    #[test]
    fn blobs_that_are_themselves_a_link_are_a_trap() {
        let Cache { dir: _dir, snapshot, blobs, of_another, .. } = cache();
        fs::remove_dir_all(&blobs).unwrap();
        symlink(&of_another, &blobs).unwrap();
        assert!(Folder::of(&snapshot).unwrap().check_file(&snapshot.join("blob")).is_err());
    }

    #[test]
    fn a_folder_that_only_looks_like_a_cache_is_refused() {
        let Cache { dir, of_another, .. } = cache();
        let plain = dir.path().join("plain/snapshots/1");
        fs::create_dir_all(&plain).unwrap();
        symlink(of_another.join("file"), plain.join("file")).unwrap();
        assert!(Folder::of(&plain).unwrap().check_file(&plain.join("file")).is_err());
    }
}
