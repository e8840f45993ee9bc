//! Output files that appear under their final name only when they are complete.

use std::fs::{self, File, Metadata};
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
use crate::error::{Error, Kind, Result};
use crate::formats::CONFIG_FILE;
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
    check_exists(&parent)?;
    if names_a_directory(path) {
        let what =
            "the output's path ends as a directory's does, and a file is to be written there";
        return Err(refused(path, what, "give a file name, without / or /. behind it"));
    }
    if kind.is_text && is_stream(path) {
        return Ok(FoundFile(There::Stream));
    }
    partial(path)?;
    if holds_a_model(&parent) {
        let what = "a file of its own can't be written into the folder of a model or a result";
        return Err(refused(path, what, "give a path outside of models and results"));
    }
    check_takes_names(&parent)?;
    match path.symlink_metadata() {
        Ok(found) => check_found(path, &found, kind, overwrite),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(FoundFile::default()),
        Err(e) => Err(Error::io("cannot look at the output", path, e)),
    }
}

fn check_exists(dir: &Path) -> Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    let what = "the output's directory doesn't exist";
    Err(Error::new(Kind::Missing, what).file(dir).remedy("make it first"))
}

/// Checks what [`check_file`] does where something was `found` at `path`.
fn check_found(
    path: &Path,
    found: &Metadata,
    kind: &FileKind,
    overwrite: bool,
) -> Result<FoundFile> {
    check_regular(path, found)?;
    if found.len() > 0 {
        check_holds(path, kind)?;
    }
    if found.len() > 0 && !overwrite {
        let what = format!("the output exists and holds {}", kind.content);
        return Err(refused(path, &what, "choose another name, or give --overwrite"));
    }
    check_no_mount(path, found)?;
    check_replaceable(path, found)?;
    Ok(FoundFile(There::File(Version::of(found))))
}

fn check_regular(path: &Path, found: &Metadata) -> Result<()> {
    if found.is_dir() {
        return Err(refused(path, "the output is a directory", "give a file name"));
    }
    if found.is_symlink() {
        let what = "the output exists and is a link, which is not followed";
        let remedy = "give the path that it leads to, or choose another name";
        return Err(refused(path, what, remedy));
    }
    if !found.is_file() {
        let what = "the output exists and is not a regular file";
        return Err(refused(path, what, "choose another name"));
    }
    Ok(())
}

/// Refuses to replace a file that holds something else than those of `kind`.
fn check_holds(path: &Path, kind: &FileKind) -> Result<()> {
    if (kind.holds)(path) {
        return Ok(());
    }
    let content = kind.content;
    let what = format!("the output exists and holds something other than {content}");
    let remedy =
        format!("choose another name, or remove it yourself: --overwrite replaces only {content}");
    Err(refused(path, &what, &remedy))
}

fn refused(path: &Path, what: &str, remedy: &str) -> Error {
    Error::new(Kind::Usage, what).file(path).remedy(remedy)
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
            let file = open_stream(path)?;
            return Ok(Self { path: path.to_owned(), staging: None, replaced: found, file });
        }
        // Who opens it before it has the permissions of what it replaces could read what is written
        // later.
        let is_new = found == FoundFile::default();
        let mode = if is_new { 0o666 } else { 0o600 };
        let staging = partial(path)?;
        // Held until the file is listed: a signal that comes meanwhile finds it there, or finds no
        // file.
        let mut unfinished = unfinished(path)?;
        let there = path.symlink_metadata().ok().filter(|_| !is_new);
        let rights = there.map(|there| Rights::of(path, &there));
        let file = locked(path, &staging, || open_or_make(&staging, mode))?;
        check_own(&file, &staging)?;
        unfinished.insert(staging.clone());
        let created = Self { path: path.to_owned(), staging: Some(staging), replaced: found, file };
        drop(unfinished);
        let emptied = created.empty(rights);
        emptied.map_err(|e| Error::io("cannot write this file", path, e))?;
        Ok(created)
    }

    /// Removes what a killed run left in the file, once it has the `rights` of what it replaces:
    /// nobody may read now what nobody else could read before.
    fn empty(&self, rights: Option<Rights>) -> io::Result<()> {
        rights.map_or(Ok(()), |rights| rights.give(&self.file))?;
        self.file.set_len(0)
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

    /// Does what [`Self::commit`] does, where a name beside the final one will do.
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
        let moved = self.rename(&staging).map_err(|e| unmoved(&staging, &path, e))?;
        let written = self.file.metadata().ok();
        let found =
            FoundFile(written.map_or(There::Nothing, |written| There::File(Version::of(&written))));
        let beside = moved.map(|place| {
            let error = in_the_way(&path, &place, None);
            (place, error)
        });
        Ok(Placed { found, beside })
    }

    /// Gives the file at `staging` its name, or gives back a free one beside that, which it got.
    /// Hours may have passed: only what was looked at then is replaced.
    fn rename(&self, staging: &Path) -> io::Result<Option<PathBuf>> {
        match FoundFile::at(&self.path) {
            now @ FoundFile(There::File(_)) if now == self.replaced => {
                fs::rename(staging, &self.path).map(|()| None)
            }
            _ => rename_to_free(staging, &self.path),
        }
    }
}

/// Opens the hidden file `staging`, which gets `mode` where it has to be made.
fn open_or_make(staging: &Path, mode: u32) -> io::Result<File> {
    let mut options = options_of(OFlags::empty());
    options.write(true).create(true).truncate(false).mode(mode).open(staging)
}

/// Refuses the hidden `file` if it has another name, too: that would be another file of somebody's,
/// which is emptied here.
fn check_own(file: &File, staging: &Path) -> Result<()> {
    if file.metadata().is_ok_and(|found| found.nlink() > 1 || !found.is_file()) {
        let what =
            "no run of this program made this, which has the hidden name that the output needs";
        return Err(refused(staging, what, "remove it, or choose another output"));
    }
    Ok(())
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
mod tests;
