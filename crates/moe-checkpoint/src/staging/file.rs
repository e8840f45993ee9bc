//! Output files that appear under their final name only when they are complete.

use std::fs::{self, File, Metadata};
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::lock::{locked, open_options};
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

/// A kind of file, which may replace others of its kind.
#[derive(Debug, Clone, Copy)]
pub struct FileKind {
    /// The content in words, such as "logits".
    pub content: &'static str,
    /// Whether the regular file at this path has such content.
    pub holds: fn(&Path) -> bool,
    /// Whether it is text, which may also go to a pipe, a terminal or /dev/null.
    pub is_text: bool,
}

/// The file or stream at a path when it was checked; nothing else is replaced later. By default
/// there was none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FoundFile(There);

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum There {
    #[default]
    Nothing,
    File(Version),
    /// Writing to a stream replaces nothing.
    Stream,
}

impl FoundFile {
    /// Looks at `path` now; a link is not followed.
    fn at(path: &Path) -> Self {
        Self(
            path.symlink_metadata()
                .map_or(There::Nothing, |found| There::File(Version::of(&found))),
        )
    }

    /// Whether it is a pipe or a device, where nothing is replaced.
    pub fn is_stream(&self) -> bool {
        self.0 == There::Stream
    }
}

/// Checks whether a file of `kind` may be written to `path`, without touching the disk. The path
/// must be free or have an empty file; with `overwrite` it may have a file of this kind; for text
/// it may be a stream. Pass the result to [`StagedFile::create`].
///
/// # Errors
/// [`Kind::Usage`] if something else is there, it is write-protected, or a file can't have this
/// path; [`Kind::Missing`] if its directory doesn't exist.
pub fn check_file(path: &Path, kind: &FileKind, overwrite: bool) -> Result<FoundFile> {
    let parent = parent_of(path);
    check_exists(&parent)?;
    if names_a_directory(path) {
        let what = "the output must be a file, but its path ends like that of a directory";
        return Err(refused(path, what, "give a file name, without / or /. at the end"));
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

/// Checks what [`check_file`] does, for something that was `found` at `path`.
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

/// Refuses to replace a file whose content isn't of `kind`.
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

/// Whether `path` is in the folder of a model or a result, at any depth.
pub fn lies_in_a_model(path: &Path) -> bool {
    let parent = parent_of(path);
    parent.canonicalize().unwrap_or(parent).ancestors().any(holds_a_model)
}

/// Whether `folder` contains a checkpoint or an earlier result. A `config.json` alone may belong to
/// any program.
fn holds_a_model(folder: &Path) -> bool {
    if [RECEIPT_FILE, SINGLE_FILE, INDEX_FILE].iter().any(|name| folder.join(name).is_file()) {
        return true;
    }
    let config = json::read_python(&folder.join(CONFIG_FILE)).unwrap_or_default();
    ["model_type", "architectures"].iter().any(|key| config.contains_key(*key))
}

fn cannot_write(path: &Path, source: io::Error) -> Error {
    Error::io("cannot write this file", path, source)
}

/// Whether `path` ends in `/` or `/.`, which [`Path`] ignores and a rename doesn't.
fn names_a_directory(path: &Path) -> bool {
    let path = path.as_os_str().as_bytes();
    path.ends_with(b"/") || path.ends_with(b"/.")
}

/// A file being written: it is hidden next to its final path until [`StagedFile::commit`], and
/// removed if dropped before that. A stream is written only on commit.
#[derive(Debug)]
pub struct StagedFile {
    path: PathBuf,
    /// None for a stream.
    staging: Option<PathBuf>,
    /// The file that it may replace.
    replaced: FoundFile,
    /// The open file, which holds the lock.
    file: File,
}

/// The outcome of committing a file.
#[derive(Debug)]
pub struct PlacedFile {
    /// The file that is there now, for replacing it again.
    pub found: FoundFile,
    /// The path of the file if something else has its name, and the error that explains this.
    pub elsewhere: Option<(PathBuf, Error)>,
}

impl StagedFile {
    /// Creates and locks the hidden file next to `path`, so that no work is lost on a file that
    /// can't be written. It replaces what [`check_file`] has `found`, and takes over its
    /// permissions.
    ///
    /// # Errors
    /// [`Kind::Io`] if it can't be created, or another run is writing the same file;
    /// [`Kind::Stopped`] if the program is ending; [`Kind::Usage`] for a pipe without a reader.
    pub fn create(path: &Path, found: FoundFile) -> Result<Self> {
        if found.is_stream() {
            let file = open_stream(path)?;
            return Ok(Self { path: path.to_owned(), staging: None, replaced: found, file });
        }
        // Until it has the permissions of the file that it replaces, others must not open it, or
        // they could read what is written later.
        let is_new = found == FoundFile::default();
        let mode = if is_new { 0o666 } else { 0o600 };
        let staging = partial(path)?;
        // Held until the file is listed, so that a signal finds either the listed file or no file.
        let mut unfinished = unfinished(path)?;
        let there = path.symlink_metadata().ok().filter(|_| !is_new);
        let rights = there.map(|there| Rights::of(path, &there));
        let file = locked(path, &staging, || open_or_make(&staging, mode))?;
        check_own(&file, &staging)?;
        unfinished.insert(staging.clone());
        let created = Self { path: path.to_owned(), staging: Some(staging), replaced: found, file };
        drop(unfinished);
        let emptied = created.empty(rights);
        emptied.map_err(|e| cannot_write(path, e))?;
        Ok(created)
    }

    /// Removes what a killed run left in the file, after giving it the `rights` of what it
    /// replaces, so that other users can't read content that was private before.
    fn empty(&self, rights: Option<Rights>) -> io::Result<()> {
        rights.map_or(Ok(()), |rights| rights.give(&self.file))?;
        self.file.set_len(0)
    }

    /// Calls `fill` to write to the file, and flushes it. It keeps its hidden name.
    ///
    /// # Errors
    /// [`Kind::Io`], also if `fill` fails.
    fn fill(&mut self, fill: impl FnOnce(&mut File) -> io::Result<()>) -> Result<()> {
        let filled = fill(&mut self.file);
        let flushed = match self.staging {
            Some(_) => filled.and_then(|()| self.file.sync_all()),
            None => unless_closed(filled),
        };
        flushed.map_err(|e| cannot_write(&self.path, e))
    }

    /// Calls `fill` to write the file, flushes it, and gives it its final name. Returns what is
    /// there then, for replacing it again.
    ///
    /// # Errors
    /// As for [`Self::place`]. If something else is there by then, the file gets a free name next
    /// to it, which the error says.
    pub fn commit(self, fill: impl FnOnce(&mut File) -> io::Result<()>) -> Result<FoundFile> {
        let placed = self.place(fill)?;
        placed.elsewhere.map_or(Ok(placed.found), |(_, error)| Err(error))
    }

    /// Like [`Self::commit`], but a name next to the final one isn't an error.
    ///
    /// # Errors
    /// [`Kind::Io`], also if `fill` fails; the final name is then untouched. A complete file
    /// that can't get its name stays under the hidden one, which the error says.
    pub fn place(mut self, fill: impl FnOnce(&mut File) -> io::Result<()>) -> Result<PlacedFile> {
        self.fill(fill)?;
        let path = self.path.clone();
        let Some(staging) = self.staging.clone() else {
            return Ok(PlacedFile { found: self.replaced, elsewhere: None });
        };
        let mut unfinished = unfinished(&path)?;
        unfinished.remove(&staging);
        // Nothing may remove it any more.
        self.staging = None;
        let moved = self.rename(&staging).map_err(|e| unmoved(&staging, &path, e))?;
        let written = self.file.metadata().ok();
        let found =
            FoundFile(written.map_or(There::Nothing, |written| There::File(Version::of(&written))));
        let elsewhere = moved.map(|place| {
            let error = in_the_way(&path, &place, None);
            (place, error)
        });
        Ok(PlacedFile { found, elsewhere })
    }

    /// Gives the file at `staging` its name, or a free one next to it, which is returned. Since
    /// hours may have passed, only what was checked is replaced.
    fn rename(&self, staging: &Path) -> io::Result<Option<PathBuf>> {
        match FoundFile::at(&self.path) {
            now @ FoundFile(There::File(_)) if now == self.replaced => {
                fs::rename(staging, &self.path).map(|()| None)
            }
            _ => rename_to_free(staging, &self.path),
        }
    }
}

/// Opens the hidden file `staging`, and creates it with `mode` if needed.
fn open_or_make(staging: &Path, mode: u32) -> io::Result<File> {
    let mut options = open_options(OFlags::empty());
    options.write(true).create(true).truncate(false).mode(mode).open(staging)
}

/// Refuses the hidden `file` if it has another name too: emptying it here would empty someone's
/// file.
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
        // If the program is ending, `remove_unfinished` removes the file.
        if unfinished(&self.path).is_ok_and(|mut files| files.remove(staging)) {
            let _ = fs::remove_file(staging);
        }
    }
}

/// Writes a result file completely or not at all: `fill` writes a hidden file next to `path`, which
/// then replaces the file there.
///
/// # Errors
/// [`Kind::Io`], also if `fill` fails.
pub fn write_file_atomically(
    path: &Path,
    fill: impl FnOnce(&mut File) -> io::Result<()>,
) -> Result<()> {
    StagedFile::create(path, FoundFile::at(path))?.commit(fill).map(drop)
}

/// Writes `files`: the path of each, what [`check_file`] found there, and its content. No file gets
/// its name before all are written, so that a full disk leaves everything as it was.
///
/// # Errors
/// As for [`StagedFile::create`] and [`StagedFile::commit`].
pub fn write_files<'f>(
    files: impl IntoIterator<Item = (&'f Path, FoundFile, &'f [u8])>,
) -> Result<()> {
    let mut written = Vec::new();
    for (path, found, content) in files {
        let mut staged = StagedFile::create(path, found)?;
        staged.fill(|file| file.write_all(content))?;
        written.push(staged);
    }
    for staged in written {
        staged.commit(|_| Ok(()))?;
    }
    Ok(())
}

/// Opens the file `path` for appending, and creates it if needed. A link is not followed. A file
/// with another name is refused, since it may be one that the run reads.
///
/// # Errors
/// [`Kind::Io`]; [`Kind::Usage`] for a file with two names.
pub fn open_to_append(path: &Path) -> Result<File> {
    let open = open_options(OFlags::NONBLOCK).append(true).create(true).open(path);
    let file = open.map_err(|e| Error::io("cannot write to this file", path, e))?;
    let found = file.metadata().map_err(|e| Error::io("cannot look at this file", path, e))?;
    if found.nlink() > 1 {
        let what = "this would be appended to a file that has another name, too (a hard link)";
        return Err(Error::new(Kind::Usage, what).file(path).remedy("give a file of its own"));
    }
    Ok(file)
}

/// Opens the file `path` for reading, unless it is a link.
pub(crate) fn open_no_link(path: &Path) -> io::Result<File> {
    open_options(OFlags::empty()).open(path)
}

#[cfg(test)]
mod tests;
