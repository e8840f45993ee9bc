//! Reads small files whole, with a limit on their size.

use std::io::Read;
use std::path::Path;

use crate::error::{Error, Kind, Result};
use crate::regular::open_file;

/// Some editors, and PowerShell, put this before UTF-8 text.
pub const BYTE_ORDER_MARK: &[u8; 3] = b"\xef\xbb\xbf";

/// `bytes` without the [`BYTE_ORDER_MARK`] that they may begin with.
pub fn without_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes)
}

/// Like [`without_mark`], for text.
pub fn text_without_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

/// Whether the file `path` begins with a [`BYTE_ORDER_MARK`], on which Python's `json` fails.
pub fn begins_with_mark(path: &Path) -> bool {
    let mut start = [0; BYTE_ORDER_MARK.len()];
    open_file(path)
        .and_then(|mut file| {
            file.read_exact(&mut start).map_err(|e| Error::io("cannot read this file", path, e))
        })
        .is_ok()
        && start == *BYTE_ORDER_MARK
}

/// The bytes of the file `path`, at most `max_bytes`.
///
/// # Errors
/// [`Kind::Io`] if it can't be read, [`Kind::Malformed`] if it is larger or isn't a regular file.
pub fn read_whole(path: &Path, max_bytes: u64) -> Result<Vec<u8>> {
    let file = open_file(path)?;
    let mut bytes = Vec::new();
    // A file that grows in the meantime must not exceed the limit.
    file.take(max_bytes + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::io("cannot read this file", path, e))?;
    if bytes.len() as u64 > max_bytes {
        return Err(Error::new(
            Kind::Malformed,
            format!("this file has more than {max_bytes} bytes"),
        )
        .file(path)
        .remedy("no file of its kind is that large: is it the right one?"));
    }
    Ok(bytes)
}

/// The text of the file `path`, of at most `max_bytes`.
///
/// # Errors
/// As for [`read_whole`]; [`Kind::Malformed`] if it isn't UTF-8.
pub fn read_text(path: &Path, max_bytes: u64) -> Result<String> {
    String::from_utf8(read_whole(path, max_bytes)?).map_err(|e| {
        let what = format!("byte {} is not UTF-8 text", e.utf8_error().valid_up_to());
        Error::new(Kind::Malformed, what).file(path).remedy("write it as UTF-8 first")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_than_small_text_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "four").unwrap();
        assert_eq!(read_text(&path, 4).unwrap(), "four");
        let refused = |path: &Path, limit| read_text(path, limit).unwrap_err();
        assert!(refused(&path, 3).to_string().contains("more than 3 bytes"));
        assert!(refused(dir.path(), 4).to_string().contains("not a regular file"));
        assert!(refused(Path::new("/dev/zero"), 4).to_string().contains("not a regular file"));
        assert_eq!(refused(&dir.path().join("missing"), 4).kind(), Kind::Io);
        std::fs::write(&path, b"ab\xff").unwrap();
        assert!(refused(&path, 4).to_string().contains("byte 2"));
    }
}
