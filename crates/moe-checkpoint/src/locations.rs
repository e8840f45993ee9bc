//! Checks where a run reads and writes: an output must not replace, contain, or be in anything that
//! is read.
//!
//! Locations are compared by their paths without links, and by device and inode. Hard links, links
//! on the way, `..`, bind mounts and other spellings of a name therefore make no difference.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Kind, Result};
use crate::staging::{hidden_names, is_stream};

/// Maximum depth of files in a checkpoint: see [`crate::SideFiles`].
const MAX_DEPTH: usize = 10;

/// The files and folders that a run reads and writes.
///
/// First pass everything that is read to [`Self::reads`]. Then pass every file and folder that may
/// be written, removed or replaced to [`Self::writes`], before any of them is touched.
#[derive(Debug, Default)]
pub struct Locations {
    given: HashSet<PathBuf>,
    read: LocationIndex,
    written: LocationIndex,
}

impl Locations {
    /// Adds a file or folder that is read, with the targets of links in it, such as a hub cache
    /// has.
    pub fn reads(&mut self, path: &Path) {
        if !self.given.insert(path.to_owned()) {
            return;
        }
        self.read.add(&Location::of(path), path);
        self.add_content(path, 0);
    }

    fn add_content(&mut self, folder: &Path, depth: usize) {
        // A folder that can't be listed can't be read either; its reader reports that.
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let Ok(found) = path.symlink_metadata() else { continue };
            if found.is_symlink() {
                self.read.add(&Location::of(&path), &path);
            } else if found.is_dir() && depth + 1 < MAX_DEPTH {
                self.add_content(&path, depth + 1);
            } else {
                // A hard link to it may have any name.
                self.read.ids.entry(FileId::of(&found)).or_insert_with(|| path.clone());
            }
        }
    }

    /// Adds `path`, a file or folder that is written, with the hidden names that it has while it is
    /// unfinished.
    ///
    /// # Errors
    /// [`Kind::Usage`] if it is, contains, or is in something that is read, or another output.
    pub fn writes(&mut self, path: &Path) -> Result<()> {
        // Several outputs may go to one pipe or terminal, where nothing is replaced.
        if is_stream(path) {
            return Ok(());
        }
        let names = std::iter::once(path.to_owned()).chain(hidden_names(path));
        let places: Vec<Location> = names.map(|name| Location::of(&name)).collect();
        for place in &places {
            if let Some(input) = self.read.overlapping(place) {
                let what = "the output would replace an input, lie inside an input, or around one";
                return Err(Error::new(Kind::Usage, format!("{what}: {}", input.display()))
                    .file(path)
                    .remedy("give the output a name of its own, outside of all that is read"));
            }
            if let Some(other) = self.written.overlapping(place) {
                let what = "two outputs would be one, or one would lie inside the other";
                return Err(Error::new(Kind::Usage, format!("{what}: {}", other.display()))
                    .file(path)
                    .remedy("give each output a name of its own, outside of the others"));
            }
        }
        places.iter().for_each(|place| self.written.add(place, path));
        Ok(())
    }
}

/// Locations, each with the path that the user gave.
#[derive(Debug, Default)]
struct LocationIndex {
    paths: BTreeMap<PathBuf, PathBuf>,
    /// The files and folders themselves.
    ids: HashMap<FileId, PathBuf>,
    /// The folders that contain them.
    around: HashMap<FileId, PathBuf>,
}

impl LocationIndex {
    fn add(&mut self, place: &Location, given: &Path) {
        self.paths.entry(place.path.clone()).or_insert_with(|| given.to_owned());
        if let Some(id) = place.own {
            self.ids.entry(id).or_insert_with(|| given.to_owned());
        }
        for id in &place.around {
            self.around.entry(*id).or_insert_with(|| given.to_owned());
        }
    }

    /// A location in the index that is `place`, contains it, or is in it.
    fn overlapping(&self, place: &Location) -> Option<&Path> {
        self.overlapping_path(place).or_else(|| self.overlapping_id(place)).map(PathBuf::as_path)
    }

    fn overlapping_path(&self, place: &Location) -> Option<&PathBuf> {
        let same_or_above = place.path.ancestors().find_map(|path| self.paths.get(path));
        same_or_above.or_else(|| {
            let (path, given) = self.paths.range(place.path.clone()..).next()?;
            path.starts_with(&place.path).then_some(given)
        })
    }

    fn overlapping_id(&self, place: &Location) -> Option<&PathBuf> {
        let same_or_above = place.own.iter().chain(&place.around).find_map(|id| self.ids.get(id));
        same_or_above.or_else(|| self.around.get(&place.own?))
    }
}

/// Identifies a file under all of its names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    pub(crate) fn of(metadata: &Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }
}

/// A place on the disk, whether or not it exists.
#[derive(Debug)]
struct Location {
    /// The path, without links as far as it exists.
    path: PathBuf,
    /// None if nothing exists there.
    own: Option<FileId>,
    /// The folders that contain it, as far as they exist.
    around: Vec<FileId>,
}

impl Location {
    fn of(path: &Path) -> Self {
        let path = resolved(path);
        let around = path.ancestors().skip(1).filter_map(Self::id).collect();
        Self { own: Self::id(&path), around, path }
    }

    fn id(path: &Path) -> Option<FileId> {
        path.metadata().ok().map(|found| FileId::of(&found))
    }
}

/// `path` without links as far as it exists, and without `..` after that.
fn resolved(path: &Path) -> PathBuf {
    if let Ok(canonical) = path.canonicalize() {
        return canonical;
    }
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => resolved(parent).join(name),
        // The path ends in `..`.
        (Some(parent), None) => {
            let mut resolved = resolved(parent);
            resolved.pop();
            resolved
        }
        // An empty path is the working directory.
        (None, _) => Path::new(".").canonicalize().unwrap_or_else(|_| path.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    /// `root/model` has two files, one of them a link into `root/blobs`. There are also `root/text`
    /// and `root/link` → `root/model`.
    fn inputs(root: &Path) -> Locations {
        for folder in ["model/sub", "blobs", "elsewhere"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        fs::create_dir_all(root.join("model/a/b/c/d/e/f/g/h")).unwrap();
        for file in [
            "model/config.json",
            "model/a/b/c/d/e/f/g/h/tool.py",
            "model/sub/tool.py",
            "blobs/weights",
            "text",
            "elsewhere/old",
        ] {
            fs::write(root.join(file), file).unwrap();
        }
        symlink("../blobs/weights", root.join("model/weights")).unwrap();
        symlink("model", root.join("link")).unwrap();
        symlink("link", root.join("second-link")).unwrap();
        let mut locations = Locations::default();
        locations.reads(&root.join("link"));
        locations.reads(&root.join("text"));
        locations.reads(&root.join("missing"));
        locations
    }

    /// Paths, in the folder of [`inputs`], at which something is read, or that hold or lie in such a path.
    const READ: [&str; 23] = [
        "model",
        "link",
        "second-link",
        "model/config.json",
        "model/new/deep",
        "link/new",
        "second-link/config.json",
        "model/../model/x",
        "elsewhere/../link/x",
        "nowhere/../model/x",
        "nowhere/deep/../../text",
        ".",
        "",
        "text",
        "text/below",
        "hard",
        "hard2",
        "hard3",
        "hard4",
        // The target of the model's link, and the folder around it.
        "blobs/weights",
        "blobs",
        "missing",
        "missing/below",
    ];

    #[test]
    fn inputs_are_not_written_under_any_name() {
        let dir = tempfile::tempdir().unwrap();
        let root = &dir.path().canonicalize().unwrap();
        let mut locations = inputs(root);
        let hard =
            [("model/config.json", "hard"), ("model/sub/tool.py", "hard2"), ("text", "hard3")];
        for (from, to) in hard.into_iter().chain([("model/a/b/c/d/e/f/g/h/tool.py", "hard4")]) {
            fs::hard_link(root.join(from), root.join(to)).unwrap();
        }
        for output in READ {
            let error =
                locations.writes(&root.join(output)).err().unwrap_or_else(|| panic!("{output}"));
            assert_eq!(error.kind(), Kind::Usage);
            assert!(
                error.to_string().contains("inside an input")
                    && error.to_string().contains("remedy"),
                "{error}"
            );
        }
        for output in ["out", "model2", "blobs/other", "elsewhere/old", "nowhere/model", "mod"] {
            locations.writes(&root.join(output)).unwrap_or_else(|e| panic!("{output}: {e}"));
        }
    }

    /// A source with the name of an unfinished output would be taken for a killed run's.
    #[test]
    fn hidden_names_of_outputs_are_outputs() {
        let dir = tempfile::tempdir().unwrap();
        for name in
            [".out.partial-moe-convert", ".out.replaced-moe-convert", ".out.complete-moe-convert"]
        {
            let mut locations = Locations::default();
            fs::create_dir_all(dir.path().join(name)).unwrap();
            locations.reads(&dir.path().join(name));
            assert!(locations.writes(&dir.path().join("out")).is_err(), "{name}");
        }
    }

    #[test]
    fn outputs_must_not_overlap() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let mut locations = Locations::default();
        fs::create_dir(root.join("a")).unwrap();
        symlink("a", root.join("b")).unwrap();
        locations.writes(&root.join("a/out")).unwrap();
        for other in
            ["a/out", "b/out", "a/out/plan.json", "b/./out/x", "a", "a/.out.partial-moe-convert"]
        {
            let error = locations.writes(&root.join(other)).unwrap_err().to_string();
            assert!(error.contains("two outputs"), "{other}: {error}");
        }
        locations.writes(&root.join("a/out.training")).unwrap();
        locations.writes(&root.join("plan.json")).unwrap();
    }
}
