//! Output files that appear under their final name only when they are complete.

use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use serde_json::Value;

use super::lock::{locked, options_of};
use super::modes::Rights;
use super::names::{parent_of, partial};
use super::protected::{check_no_mount, check_replaceable, check_takes_names};
use super::rename::{in_the_way, rename_to_free, unmoved};
use super::stream::{is_stream, open_stream, unless_closed};
use super::unfinished::unfinished;
use super::version::Version;
use crate::checkpoint::CONFIG_FILE;
use crate::error::{Error, Kind, Result};
use crate::index::{INDEX_FILE, SINGLE_FILE};
use crate::json;
use crate::result::RECEIPT_FILE;

/// What a file holds, so that one of this kind may replace it.
#[derive(Debug, Clone, Copy)]
pub struct FileKind {
    /// What it holds, in words, such as "logits".
    pub content: &'static str,
    /// Whether the regular file of this path holds that.
    pub holds: fn(&Path) -> bool,
    /// Whether it is text, which may go to a pipe, a terminal or /dev/null, too.
    pub is_text: bool,
}

/// What had a path when it was looked at, so that nothing but this is replaced later. By default
/// there was nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FoundFile(There);

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum There {
    #[default]
    Nothing,
    File(Version),
    /// What is written there replaces nothing.
    Stream,
}

impl FoundFile {
    /// What has the name `path` now; a link is not followed.
    fn at(path: &Path) -> Self {
        Self(
            path.symlink_metadata()
                .map_or(There::Nothing, |found| There::File(Version::of(&found))),
        )
    }

    /// Whether it is a pipe or a device, in which nothing is ever replaced.
    pub fn is_stream(&self) -> bool {
        self.0 == There::Stream
    }
}

/// Checks whether a file of `kind` may be written to `path`, without touching the disk: nothing or
/// an empty file may be there, or, with `overwrite`, a file of this kind, or a stream if this is
/// text. [`StagedFile::create`] takes what was found.
///
/// # Errors
/// [`Kind::Usage`] where something else is there, it is write-protected, or the path can't be a
/// file's; [`Kind::Missing`] where its directory isn't there.
pub fn check_file(path: &Path, kind: &FileKind, overwrite: bool) -> Result<FoundFile> {
    let parent = parent_of(path);
    if !parent.is_dir() {
        let what = "the output's directory doesn't exist";
        return Err(Error::new(Kind::Missing, what).file(parent).remedy("make it first"));
    }
    if names_a_directory(path) {
        let what =
            "the output's path ends as a directory's does, and a file is to be written there";
        return Err(Error::new(Kind::Usage, what)
            .file(path)
            .remedy("give a file name, without / or /. behind it"));
    }
    if kind.is_text && is_stream(path) {
        return Ok(FoundFile(There::Stream));
    }
    partial(path)?;
    if holds_a_model(&parent) {
        let what = "a file of its own can't be written into the folder of a model or a result";
        return Err(Error::new(Kind::Usage, what)
            .file(path)
            .remedy("give a path outside of models and results"));
    }
    check_takes_names(&parent)?;
    let refused =
        |what: String, remedy: &str| Err(Error::new(Kind::Usage, what).file(path).remedy(remedy));
    let found = match path.symlink_metadata() {
        Ok(found) => found,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(FoundFile::default()),
        Err(e) => return Err(Error::io("cannot look at the output", path, e)),
    };
    if found.is_dir() {
        return refused("the output is a directory".to_owned(), "give a file name");
    }
    if found.is_symlink() {
        let what = "the output exists and is a link, which is not followed";
        return refused(what.to_owned(), "give the path that it leads to, or choose another name");
    }
    if !found.is_file() {
        return refused(
            "the output exists and is not a regular file".to_owned(),
            "choose another name",
        );
    }
    let content = kind.content;
    if found.len() > 0 && !(kind.holds)(path) {
        let what = format!("the output exists and holds something other than {content}");
        let remedy = format!(
            "choose another name, or remove it yourself: --overwrite replaces only {content}"
        );
        return refused(what, &remedy);
    }
    if found.len() > 0 && !overwrite {
        return refused(
            format!("the output exists and holds {content}"),
            "choose another name, or give --overwrite",
        );
    }
    check_no_mount(path, &found)?;
    check_replaceable(path, &found)?;
    Ok(FoundFile(There::File(Version::of(&found))))
}

/// Whether `path` lies in the folder of a model or a result, however deep.
pub fn lies_in_a_model(path: &Path) -> bool {
    let parent = parent_of(path);
    parent.canonicalize().unwrap_or(parent).ancestors().any(holds_a_model)
}

/// Whether a checkpoint or an earlier result lies in `folder`. A `config.json` alone may be any
/// program's.
fn holds_a_model(folder: &Path) -> bool {
    if [RECEIPT_FILE, SINGLE_FILE, INDEX_FILE].iter().any(|name| folder.join(name).is_file()) {
        return true;
    }
    let config: Value = json::read_tree(&folder.join(CONFIG_FILE)).unwrap_or_default();
    ["model_type", "architectures"].iter().any(|key| config.get(key).is_some())
}

/// Whether `path` ends in `/` or `/.`, which [`Path`] passes over and a rename doesn't.
fn names_a_directory(path: &Path) -> bool {
    let path = path.as_os_str().as_bytes();
    path.ends_with(b"/") || path.ends_with(b"/.")
}

/// A file being written: it lies hidden beside its final place until [`StagedFile::commit`].
/// Dropped without that, it is removed. What goes to a stream is written there when it is
/// committed.
#[derive(Debug)]
pub struct StagedFile {
    path: PathBuf,
    /// None for a stream.
    staging: Option<PathBuf>,
    /// What it replaces.
    replaced: FoundFile,
    /// Holds the lock.
    file: File,
}

/// What became of a file that was committed.
#[derive(Debug)]
pub struct Placed {
    /// What is there now, for who writes it again.
    pub found: FoundFile,
    /// Where it lies if something else has its name, and what to say of that.
    pub beside: Option<(PathBuf, Error)>,
}

impl StagedFile {
    /// Creates the hidden file beside `path` and locks it, so that no work is done for a file that
    /// can't be written. It replaces what [`check_file`] has `found`, whose permissions it takes
    /// over.
    ///
    /// # Errors
    /// [`Kind::Io`] where it can't be created, or another run is writing the same file;
    /// [`Kind::Stopped`] where the program is ending; [`Kind::Usage`] for a pipe that nobody reads.
    pub fn create(path: &Path, found: FoundFile) -> Result<Self> {
        if found.is_stream() {
            return Ok(Self {
                path: path.to_owned(),
                staging: None,
                replaced: found,
                file: open_stream(path)?,
            });
        }
        let staging = partial(path)?;
        // Held until the file is listed: a signal that comes meanwhile finds it there, or finds no
        // file.
        let mut unfinished = unfinished(path)?;
        let is_new = found == FoundFile::default();
        let there = path.symlink_metadata().ok().filter(|_| !is_new);
        let rights = there.map(|there| Rights::of(path, &there));
        // Who opens it before it has the permissions of what it replaces could read what is written
        // later.
        let mode = if is_new { 0o666 } else { 0o600 };
        let open = || {
            options_of(OFlags::empty())
                .write(true)
                .create(true)
                .truncate(false)
                .mode(mode)
                .open(&staging)
        };
        let file = locked(path, &staging, open)?;
        // Another name would be another file of somebody's, which is emptied here.
        if file.metadata().is_ok_and(|found| found.nlink() > 1 || !found.is_file()) {
            let what =
                "no run of this program made this, which has the hidden name that the output needs";
            return Err(Error::new(Kind::Usage, what)
                .file(&staging)
                .remedy("remove it, or choose another output"));
        }
        unfinished.insert(staging.clone());
        let created = Self { path: path.to_owned(), staging: Some(staging), replaced: found, file };
        drop(unfinished);
        // What a killed run left behind. Nobody may read now what nobody else could read before.
        let permitted = rights.map_or(Ok(()), |rights| rights.give(&created.file));
        let emptied = permitted.and_then(|()| created.file.set_len(0));
        emptied.map_err(|e| Error::io("cannot write this file", path, e))?;
        Ok(created)
    }

    /// Lets `fill` write the file, flushes it and lets it appear under its final name. Gives what
    /// is there then, for who writes it again.
    ///
    /// # Errors
    /// As for [`Self::place`]. Where something else than what was found is there by now, the file
    /// gets a name beside it, which the error says.
    pub fn commit(self, fill: impl FnOnce(&mut File) -> io::Result<()>) -> Result<FoundFile> {
        let placed = self.place(fill)?;
        placed.beside.map_or(Ok(placed.found), |(_, error)| Err(error))
    }

    /// As [`Self::commit`], where a name beside the final one will do.
    ///
    /// # Errors
    /// [`Kind::Io`], and what `fill` returns; the final name is then untouched. A file that is
    /// whole and can't be given its name stays under the hidden one, which the error says.
    pub fn place(mut self, fill: impl FnOnce(&mut File) -> io::Result<()>) -> Result<Placed> {
        let path = self.path.clone();
        let fail = |e| Error::io("cannot write this file", &path, e);
        let filled = fill(&mut self.file);
        let Some(staging) = self.staging.clone() else {
            unless_closed(filled).map_err(fail)?;
            return Ok(Placed { found: self.replaced, beside: None });
        };
        filled.and_then(|()| self.file.sync_all()).map_err(fail)?;
        let mut unfinished = unfinished(&path)?;
        unfinished.remove(&staging);
        // It is nobody's to remove any more.
        self.staging = None;
        // Hours may have passed: only what was looked at then is replaced.
        let moved = match FoundFile::at(&path) {
            now @ FoundFile(There::File(_)) if now == self.replaced => {
                fs::rename(&staging, &path).map(|()| None)
            }
            _ => rename_to_free(&staging, &path),
        };
        let moved = moved.map_err(|e| unmoved(&staging, &path, e))?;
        let written = self.file.metadata().ok();
        let found =
            FoundFile(written.map_or(There::Nothing, |written| There::File(Version::of(&written))));
        let beside = moved.map(|place| {
            let error = in_the_way(&path, &place, None);
            (place, error)
        });
        Ok(Placed { found, beside })
    }
}

impl Drop for StagedFile {
    fn drop(&mut self) {
        let Some(staging) = &self.staging else { return };
        // Where the program is ending, who ends it has removed the file.
        if unfinished(&self.path).is_ok_and(|mut files| files.remove(staging)) {
            let _ = fs::remove_file(staging);
        }
    }
}

/// Writes one result file so that it is whole or not there: `fill` writes a hidden file beside it.
/// It replaces what is there now.
///
/// # Errors
/// [`Kind::Io`], and what `fill` returns.
pub fn write_file_atomically(
    path: &Path,
    fill: impl FnOnce(&mut File) -> io::Result<()>,
) -> Result<()> {
    StagedFile::create(path, FoundFile::at(path))?.commit(fill).map(drop)
}

/// Opens the file `path`, which may have to be made, to add to its end. A link under that name is
/// not followed, and a file that has another name, too, is refused: that may be one that the run
/// reads.
///
/// # Errors
/// [`Kind::Io`]; [`Kind::Usage`] for a file of two names.
pub fn open_to_append(path: &Path) -> Result<File> {
    let open = options_of(OFlags::NONBLOCK).append(true).create(true).open(path);
    let file = open.map_err(|e| Error::io("cannot write to this file", path, e))?;
    let found = file.metadata().map_err(|e| Error::io("cannot look at this file", path, e))?;
    if found.nlink() > 1 {
        let what = "this would be appended to a file that has another name, too (a hard link)";
        return Err(Error::new(Kind::Usage, what).file(path).remedy("give a file of its own"));
    }
    Ok(file)
}

/// Opens the file `path` to read it, unless that is a link.
pub(crate) fn open_no_link(path: &Path) -> io::Result<File> {
    options_of(OFlags::empty()).open(path)
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_appears_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let (path, hidden) =
            (dir.path().join("file"), dir.path().join(".file.partial-moe-convert"));
        fs::write(&hidden, "what a killed run left behind").unwrap();
        fs::write(&path, "before").unwrap();
        let create = || StagedFile::create(&path, FoundFile::at(&path));
        let file = create().unwrap();
        let busy = create().unwrap_err();
        assert!(busy.to_string().contains("another run"), "{busy}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "before");
        file.commit(|file| file.write_all(b"after")).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "after");
        assert!(create().unwrap().commit(|_| Err(io::Error::other("no"))).is_err());
        drop(create().unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "after");
        assert!(!hidden.exists());
    }

    type Change = fn(&Path);

    /// Ways in which a file comes to a path, or becomes another one, while a run works.
    const CHANGES: [(&str, Change); 4] = [
        ("written in place", |path| fs::write(path, "words").unwrap()),
        ("removed and written", |path| {
            let _ = fs::remove_file(path);
            fs::write(path, "words").unwrap();
        }),
        ("renamed to it, as programs save that don't write in place", |path| {
            let other = path.with_file_name("thesis");
            fs::write(&other, "words").unwrap();
            fs::rename(other, path).unwrap();
        }),
        ("edited, with the time of before", |path| {
            let modified =
                path.metadata().and_then(|found| found.modified()).unwrap_or(std::time::UNIX_EPOCH);
            fs::write(path, "words").unwrap();
            File::options().append(true).open(path).unwrap().set_modified(modified).unwrap();
        }),
    ];

    #[test]
    fn what_comes_meanwhile_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        // Of as many bytes as what comes, too.
        for before in [None, Some(""), Some("early"), Some("an earlier file")] {
            for (how, change) in CHANGES {
                let _ = fs::remove_file(&path);
                before.iter().for_each(|text| fs::write(&path, text).unwrap());
                let file = StagedFile::create(&path, FoundFile::at(&path)).unwrap();
                // Clocks of file systems tick every few milliseconds.
                std::thread::sleep(std::time::Duration::from_millis(20));
                change(&path);
                let error = file.commit(|file| file.write_all(b"result")).unwrap_err().to_string();
                assert!(
                    error.contains("file-2") && error.contains("in the way"),
                    "{before:?} {how}: {error}"
                );
                assert_eq!(fs::read_to_string(&path).unwrap(), "words");
                assert_eq!(fs::read_to_string(dir.path().join("file-2")).unwrap(), "result");
                fs::remove_file(dir.path().join("file-2")).unwrap();
            }
        }
    }

    #[test]
    fn a_run_writes_its_own_file_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let write = |found, text: &str| {
            StagedFile::create(&path, found)?.commit(|file| file.write_all(text.as_bytes()))
        };
        let first = write(FoundFile::default(), "one").unwrap();
        let second = write(first, "two").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "two");
        std::thread::sleep(std::time::Duration::from_millis(20));
        fs::write(&path, "mine").unwrap();
        assert!(write(second, "three").unwrap_err().to_string().contains("in the way"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
    }

    #[test]
    fn what_replaces_a_file_is_as_private_and_what_is_protected_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        const ANY: FileKind = FileKind { content: "anything", holds: |_| true, is_text: false };
        for mode in [0o600, 0o640, 0o444] {
            fs::write(&path, "before").unwrap();
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let found = check_file(&path, &ANY, true);
            if mode == 0o444 {
                let error = found.unwrap_err();
                assert!(
                    error.kind() == Kind::Usage && error.to_string().contains("write-protected"),
                    "{error}"
                );
                continue;
            }
            StagedFile::create(&path, found.unwrap())
                .unwrap()
                .commit(|file| file.write_all(b"after"))
                .unwrap();
            assert_eq!(path.metadata().unwrap().mode() & 0o7777, mode);
        }
    }

    #[test]
    fn nothing_is_appended_to_a_file_of_two_names() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("notes.md"), dir.path().join("model.py"));
        open_to_append(&path).unwrap().write_all(b"one").unwrap();
        open_to_append(&path).unwrap().write_all(b"two").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "onetwo");
        fs::hard_link(&path, &other).unwrap();
        assert_eq!(open_to_append(&path).unwrap_err().kind(), Kind::Usage);
    }

    #[test]
    fn a_file_replaces_its_own_kind_where_that_is_wanted() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        const LISTS: FileKind = FileKind {
            content: "a list",
            holds: |path| fs::read_to_string(path).is_ok_and(|text| text.starts_with('[')),
            is_text: false,
        };
        fs::write(path("list"), "[1]").unwrap();
        fs::write(path("empty"), "").unwrap();
        fs::write(path("thesis"), "words").unwrap();
        fs::create_dir(path("folder")).unwrap();
        std::os::unix::fs::symlink("list", path("link")).unwrap();
        std::os::unix::fs::symlink("nowhere", path("dangling")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
        for (folder, file, text) in [
            ("model", CONFIG_FILE, "{\"model_type\": \"mixtral\"}"),
            ("result", RECEIPT_FILE, "{}"),
            ("weights", SINGLE_FILE, ""),
            ("project", CONFIG_FILE, "{\"port\": 80}"),
        ] {
            fs::create_dir(path(folder)).unwrap();
            fs::write(path(folder).join(file), text).unwrap();
        }
        let refused = |name: &str, overwrite, complaint: &str| {
            let error = check_file(&path(name), &LISTS, overwrite).unwrap_err().to_string();
            assert!(error.contains(complaint) && error.contains("remedy"), "{name}: {error}");
        };
        for overwrite in [false, true] {
            check_file(&path("new"), &LISTS, overwrite).unwrap();
            check_file(&path("empty"), &LISTS, overwrite).unwrap();
            refused("thesis", overwrite, "something other than a list");
            refused("folder", overwrite, "a directory");
            refused("link", overwrite, "is a link");
            refused("dangling", overwrite, "is a link");
            refused("socket", overwrite, "not a regular file");
            refused("nowhere/file", overwrite, "doesn't exist");
            for name in ["model", "result", "weights"] {
                refused(&format!("{name}/new"), overwrite, "folder of a model or a result");
            }
            check_file(&path("project/new"), &LISTS, overwrite).unwrap();
            refused("..", overwrite, "no name");
            for name in ["new/", "new/.", "new//", "new/./", "list/", "folder/", "folder/."] {
                refused(name, overwrite, "ends as a directory's does");
            }
        }
        refused("list", false, "--overwrite");
        let null = Path::new("/dev/null");
        assert!(
            check_file(null, &LISTS, true).unwrap_err().to_string().contains("not a regular file")
        );
        let found = check_file(null, &FileKind { is_text: true, ..LISTS }, false).unwrap();
        let written =
            StagedFile::create(null, found).unwrap().commit(|file| file.write_all(b"[1]")).unwrap();
        assert!(written.is_stream());
        check_file(&path("list"), &LISTS, true).unwrap();
    }

    #[test]
    fn what_cannot_be_written_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("nowhere/file");
        assert_eq!(
            StagedFile::create(&missing, FoundFile::default()).unwrap_err().kind(),
            Kind::Io
        );
        assert_eq!(
            StagedFile::create(Path::new("/"), FoundFile::default()).unwrap_err().kind(),
            Kind::Usage
        );
    }
}
