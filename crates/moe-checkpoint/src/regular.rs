//! Opens files for reading. All files that this program reads are opened here, and none can be a
//! pipe.
//!
//! Opening a FIFO waits until something writes to it, and reading a device may never end. So
//! everything except regular files is refused by name, before it is opened and again when it is
//! open, since another file may have the name by then.

use std::fs::{File, FileType, Metadata, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

use crate::error::{Error, Kind, Result};

/// Opens the regular file `path` for reading.
///
/// # Errors
/// [`Kind::Malformed`] for a directory, a pipe, a device or a socket; [`Kind::Io`] if it can't be
/// opened.
pub fn open_file(path: &Path) -> Result<File> {
    // Opening a device can have effects, so it isn't tried.
    check(path, &path.metadata().map_err(|e| cannot_open(path, e))?)?;
    // Without O_NONBLOCK, opening a pipe that has just taken the name would wait. Regular files
    // ignore the flag.
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits() as i32;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let file = file.map_err(|e| cannot_open(path, e))?;
    check(path, &file.metadata().map_err(|e| cannot_open(path, e))?)?;
    Ok(file)
}

fn cannot_open(path: &Path, source: io::Error) -> Error {
    Error::io("cannot open this file", path, source)
}

/// Whether the regular file `path` exists.
///
/// # Errors
/// [`Kind::Malformed`] if something else has the name; [`Kind::Io`] if that can't be determined.
pub fn file_exists(path: &Path) -> Result<bool> {
    match path.metadata() {
        Ok(metadata) => check(path, &metadata).map(|()| true),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(false),
        Err(e) => Err(Error::io("cannot read this file", path, e)),
    }
}

fn check(path: &Path, metadata: &Metadata) -> Result<()> {
    if metadata.is_file() {
        return Ok(());
    }
    let (what, remedy) = match kind_of(metadata.file_type()) {
        "directory" => (
            "a directory",
            "give one of the files in it; if you gave no such path, move the directory away",
        ),
        "pipe" => (
            "a pipe",
            "write what comes out of it to a file, and give that: it is read more than once",
        ),
        "socket" => ("a socket", "give the path of a regular file"),
        _ => ("a device", "copy what is wanted of it to a file, and give that"),
    };
    Err(Error::new(Kind::Malformed, format!("this is {what}, not a regular file"))
        .file(path)
        .remedy(remedy))
}

fn kind_of(kind: FileType) -> &'static str {
    match () {
        () if kind.is_dir() => "directory",
        () if kind.is_fifo() => "pipe",
        () if kind.is_socket() => "socket",
        () => "device",
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn other_than_regular_files_are_refused_without_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("file"), "words").unwrap();
        assert!(std::process::Command::new("mkfifo").arg(path("pipe")).status().unwrap().success());
        std::os::unix::fs::symlink(path("pipe"), path("link")).unwrap();
        let _socket = UnixListener::bind(path("socket")).unwrap();
        open_file(&path("file")).unwrap();
        assert!(file_exists(&path("file")).unwrap());
        assert!(!file_exists(&path("missing")).unwrap());
        assert_eq!(open_file(&path("missing")).unwrap_err().kind(), Kind::Io);
        let special = [
            (path("pipe"), "a pipe"),
            (path("link"), "a pipe"),
            (path("socket"), "a socket"),
            (dir.path().to_owned(), "a directory"),
            ("/dev/zero".into(), "a device"),
        ];
        for (special, what) in special {
            for error in [open_file(&special).unwrap_err(), file_exists(&special).unwrap_err()] {
                let said = error.to_string();
                let named = said.contains(&*special.to_string_lossy()) && said.contains("remedy");
                assert!(error.kind() == Kind::Malformed && said.contains(what) && named, "{said}");
            }
        }
    }
}
