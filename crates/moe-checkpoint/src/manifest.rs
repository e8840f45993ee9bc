//! `SHA256SUMS`: the hash of every file of an output, in the format of `sha256sum -c`.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Read;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::bounded_read::{read_text, text_without_mark};
use crate::error::{Error, Kind, Result};
use crate::regular::{file_exists, open_file};

/// The manifest's file name.
pub const MANIFEST_FILE: &str = "SHA256SUMS";
/// Maximum size: room for 100,000 shards.
const MAX_BYTES: u64 = 16 << 20;

/// File names with their SHA-256 in hexadecimal.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Manifest {
    /// Hash by file name; names are relative to the directory.
    pub files: BTreeMap<String, String>,
}

impl Manifest {
    /// Reads the manifest of `dir`; `None` if there is none.
    ///
    /// # Errors
    /// [`Kind::Malformed`] if a line isn't `<64 hex digits>  <file name>`, with a name within the
    /// directory.
    pub fn read(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(MANIFEST_FILE);
        if !file_exists(&path)? {
            return Ok(None);
        }
        let mut files = BTreeMap::new();
        let text = read_text(&path, MAX_BYTES)?;
        for (number, text) in text_without_mark(&text).lines().enumerate() {
            let line = number + 1;
            let (hash, name) = parse_line(text)
                .ok_or_else(|| malformed(&path, line, "is not a hash and a file name"))?;
            if files.insert(name.into_owned(), hash.to_ascii_lowercase()).is_some() {
                return Err(malformed(&path, line, "names a file again"));
            }
        }
        Ok(Some(Self { files }))
    }

    /// Whether the manifest in `dir` is exactly the text that this program writes for this one.
    ///
    /// # Errors
    /// As for [`Manifest::read`].
    pub fn is_as_written(&self, dir: &Path) -> Result<bool> {
        Ok(read_text(&dir.join(MANIFEST_FILE), MAX_BYTES)? == self.to_text())
    }

    /// The manifest as text, sorted by file name.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for (name, hash) in &self.files {
            let escaped = ESCAPES
                .iter()
                .fold(name.clone(), |name, (plain, escape)| name.replace(*plain, escape));
            let mark = if escaped == *name { "" } else { "\\" };
            let _ = writeln!(text, "{mark}{hash}  {escaped}");
        }
        text
    }
}

/// Escapes of sha256sum for characters that would end a line, the backslash first. A line with an
/// escape begins with a backslash.
const ESCAPES: [(char, &str); 3] = [('\\', "\\\\"), ('\n', "\\n"), ('\r', "\\r")];

fn malformed(path: &Path, line: usize, what: &str) -> Error {
    Error::new(Kind::Malformed, format!("line {line} {what}"))
        .file(path)
        .remedy("copy the directory again, whole")
}

/// The hash and the file name in a line.
fn parse_line(line: &str) -> Option<(&str, Cow<'_, str>)> {
    let escaped = line.strip_prefix('\\');
    let (hash, name) = escaped.unwrap_or(line).split_once("  ")?;
    let name = if escaped.is_some() { Cow::Owned(unescaped(name)?) } else { Cow::Borrowed(name) };
    let is_hash = hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit());
    // Names may be in folders of the directory, but not outside it, nor ambiguous.
    let is_plain =
        name.split('/').all(|part| !["", ".", ".."].contains(&part)) && !name.contains('\0');
    (is_hash && is_plain).then_some((hash, name))
}

/// `name` with escapes replaced by their characters; None for an unknown escape.
fn unescaped(name: &str) -> Option<String> {
    let mut plain = String::new();
    let mut rest = name;
    while let Some(at) = rest.find('\\') {
        let (character, escape) =
            ESCAPES.iter().find(|(_, escape)| rest[at..].starts_with(escape))?;
        plain.push_str(&rest[..at]);
        plain.push(*character);
        rest = &rest[at + escape.len()..];
    }
    Some(plain + rest)
}

/// The SHA-256 of the file `path`, in hexadecimal.
///
/// # Errors
/// [`Kind::Io`] if it can't be read.
pub fn sha256_file(path: &Path) -> Result<String> {
    sha256_watched(path, &|_| ())
}

/// Like [`sha256_file`], but calls `watch` with the number of bytes hashed since the last call.
pub(crate) fn sha256_watched(path: &Path, watch: &dyn Fn(u64)) -> Result<String> {
    let mut file = open_file(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read =
            file.read(&mut buffer).map_err(|e| Error::io("cannot read this file", path, e))?;
        if read == 0 {
            return Ok(hex(&hasher.finalize()));
        }
        hasher.update(&buffer[..read]);
        watch(read as u64);
    }
}

/// Computes the SHA-256 of bytes that come in parts.
#[derive(Debug, Clone, Default)]
pub struct Hasher(Sha256);

impl Hasher {
    /// Adds `bytes`.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The hash of all bytes added, in hexadecimal.
    pub fn finish(self) -> String {
        hex(&self.0.finalize())
    }
}

/// The SHA-256 of `bytes`, in hexadecimal.
pub fn sha256_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// `bytes` in lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_the_hash_of_sha256sum() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("abc"), "abc").unwrap();
        // FIPS 180-2, appendix B.1.
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256_file(&dir.path().join("abc")).unwrap(), expected);
        let manifest = Manifest { files: [("abc".to_owned(), expected.to_owned())].into() };
        std::fs::write(dir.path().join(MANIFEST_FILE), manifest.to_text()).unwrap();
        assert_eq!(Manifest::read(dir.path()).unwrap(), Some(manifest));
    }

    /// The expected texts are what GNU sha256sum 9.1 writes and reads for these names.
    #[test]
    fn names_that_would_end_a_line_are_escaped() {
        let dir = tempfile::tempdir().unwrap();
        let hash = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881";
        let names = ["a\nb", "a\rb", "b\r", "c\\d", "c\\n", "plain"];
        let manifest =
            Manifest { files: names.map(|name| (name.to_owned(), hash.to_owned())).into() };
        let text = manifest.to_text();
        let lines = [r"\H  a\nb", r"\H  a\rb", r"\H  b\r", r"\H  c\\d", r"\H  c\\n", "H  plain"];
        assert_eq!(text, lines.join("\n").replace('H', hash) + "\n");
        std::fs::write(dir.path().join(MANIFEST_FILE), &text).unwrap();
        assert_eq!(Manifest::read(dir.path()).unwrap(), Some(manifest));
        std::fs::write(dir.path().join(MANIFEST_FILE), format!("\\{hash}  a\\tb\n")).unwrap();
        assert!(Manifest::read(dir.path()).is_err());
    }

    #[test]
    fn a_file_that_is_not_a_manifest_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let hash = "0".repeat(64);
        let refused = |text: String| {
            std::fs::write(dir.path().join(MANIFEST_FILE), text).unwrap();
            let error = Manifest::read(dir.path()).unwrap_err();
            assert_eq!(error.kind(), Kind::Malformed);
            assert!(
                error.to_string().contains("line") && error.to_string().contains("remedy"),
                "{error}"
            );
        };
        for name in
            ["../etc/passwd", "/etc/passwd", "..", ".", "", "a\0b", "a//b", "a/./b", "a/../b", "a/"]
        {
            refused(format!("{hash}  {name}\n"));
        }
        refused(format!("{hash}  twice\n{hash}  twice\n"));
        refused(format!("{}  short\n", &hash[1..]));
    }
}
