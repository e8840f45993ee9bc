//! Outputs that aren't files: pipes, terminals, /dev/null, /dev/stdout. Nothing can be replaced
//! there, so they are written directly.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::stdio;

use crate::error::{Error, Kind, Result};

/// Whether `path` is this process's standard output or error, a pipe, or a character device.
pub fn is_stream(path: &Path) -> bool {
    descriptor(path).is_some()
        || path
            .metadata()
            .map(|found| found.file_type())
            .is_ok_and(|kind| kind.is_fifo() || kind.is_char_device())
}

/// A stream that this process already has open.
enum Descriptor {
    Output,
    Error,
}

fn descriptor(path: &Path) -> Option<Descriptor> {
    match path.to_str()? {
        "/dev/stdout" | "/dev/fd/1" | "/proc/self/fd/1" => Some(Descriptor::Output),
        "/dev/stderr" | "/dev/fd/2" | "/proc/self/fd/2" => Some(Descriptor::Error),
        _ => None,
    }
}

/// Opens the stream `path` for writing, without waiting for a reader of a pipe.
///
/// # Errors
/// [`Kind::Io`] if it can't be opened; [`Kind::Usage`] for a pipe without a reader.
pub fn open_stream(path: &Path) -> Result<File> {
    // Standard output is used here as a file that the user named. If it is redirected to a file,
    // opening it by name would write from the file's beginning again.
    let opened = match descriptor(path) {
        Some(Descriptor::Output) => stdio::stdout().try_clone_to_owned().map(File::from),
        Some(Descriptor::Error) => stdio::stderr().try_clone_to_owned().map(File::from),
        None => open(path),
    };
    opened.map_err(|e| match Errno::from_io_error(&e) {
        Some(Errno::NXIO) => Error::new(Kind::Usage, "the output is a pipe that nobody reads")
            .file(path)
            .remedy("start what reads it first, or give a file"),
        _ => Error::io("cannot write to this", path, e),
    })
}

fn open(path: &Path) -> io::Result<File> {
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits() as i32;
    let file = File::options().write(true).custom_flags(flags).open(path)?;
    // The reader may be slow.
    fcntl_setfl(&file, fcntl_getfl(&file)? - OFlags::NONBLOCK)?;
    Ok(file)
}

/// Returns `written`, but Ok if a reader, such as head, has closed the pipe.
pub fn unless_closed(written: io::Result<()>) -> io::Result<()> {
    match written {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    #[test]
    fn a_pipe_with_a_reader_is_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        std::fs::write(dir.path().join("file"), "").unwrap();
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        for (path, expected) in [
            (pipe.as_path(), true),
            (Path::new("/dev/null"), true),
            (Path::new("/dev/stdout"), true),
        ] {
            assert_eq!(is_stream(path), expected, "{}", path.display());
        }
        assert!(
            !is_stream(dir.path())
                && !is_stream(&dir.path().join("file"))
                && !is_stream(&dir.path().join("no"))
        );
        assert_eq!(open_stream(&pipe).unwrap_err().kind(), Kind::Usage);
        let from = pipe.clone();
        let reader = std::thread::spawn(move || {
            let mut text = String::new();
            File::open(from).unwrap().read_to_string(&mut text).unwrap();
            text
        });
        let mut file = loop {
            // Tries until the reader is there.
            if let Ok(file) = open_stream(&pipe) {
                break file;
            }
        };
        // Longer than a pipe's buffer.
        let text = "words".repeat(100_000);
        file.write_all(text.as_bytes()).unwrap();
        drop(file);
        assert_eq!(reader.join().unwrap(), text);
        open_stream(Path::new("/dev/null")).unwrap().write_all(b"words").unwrap();
    }
}
