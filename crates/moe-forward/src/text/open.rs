//! Opens data files and detects their kind from the content.

use std::path::Path;

use moe_checkpoint::{Error, Kind, Result, open_file};

use super::bytes::TextBytes;
use super::kind::{FileStart, HEAD_BYTES, OpenedText, TextFormat};
use super::kinds::KINDS;
use super::source::{TextFile, TextOrigin};

impl TextFile {
    /// Opens `path`.
    ///
    /// # Errors
    /// [`Kind::Missing`] where there is no such file, [`Kind::Malformed`] where it isn't a regular
    /// one, [`Kind::Unsupported`] for a known format that isn't text.
    pub fn open(path: &Path) -> Result<Self> {
        if path.metadata().is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound) {
            return Err(Error::new(Kind::Missing, "no such data file")
                .file(path)
                .remedy("check the path, which --data, --held-out or --pool gives"));
        }
        let file = open_file(path)?;
        let end =
            file.metadata().map_err(|e| Error::io("cannot read this data file", path, e))?.len();
        opened(TextBytes::of_file(path, file, end), path).map_err(|e| e.file(path))
    }
}

/// Detects the kind of `bytes`, from the file that the user calls `name`, and unpacks it where
/// needed.
fn opened(mut bytes: TextBytes, name: &Path) -> Result<TextFile> {
    let mut name = name.to_owned();
    let mut from: Option<Box<dyn TextOrigin>> = None;
    loop {
        let mut start = vec![0; (bytes.len() as usize).min(HEAD_BYTES)];
        bytes.read_at(0, &mut start)?;
        let is_all = start.len() as u64 == bytes.len();
        let head = FileStart { name: &name, bytes: &start, is_all };
        match kind_of(&head)?.open(bytes, &head)? {
            OpenedText::Text(text) => return Ok(TextFile { origin: text.origin.or(from), ..text }),
            OpenedText::Unpacked(inner, origin) => (bytes, from) = (inner, Some(origin)),
        }
        name.set_extension("");
    }
}

/// Returns the kind of a file that begins with `head`.
fn kind_of(head: &FileStart<'_>) -> Result<&'static dyn TextFormat> {
    for kind in KINDS {
        if kind.recognizes(head)? {
            return Ok(kind);
        }
    }
    unreachable!("the last kind takes what it doesn't refuse")
}

#[cfg(test)]
mod tests {
    use moe_checkpoint::BYTE_ORDER_MARK;

    use super::*;

    const RECORD: &str = r#"{"text": "words"}"#;
    const LINES: &str = "JSON Lines, a document a line";
    const PROSE: &str = "plain text, one document";
    const ARRAY: &str = "JSON Lines, a document a line, out of a JSON array";

    fn head<'a>(name: &'a Path, bytes: &'a [u8], is_all: bool) -> FileStart<'a> {
        FileStart { name, bytes, is_all }
    }

    fn open(name: &str, text: impl AsRef<[u8]>) -> Result<TextFile> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, text.as_ref()).unwrap();
        let bytes = TextBytes::of_file(&path, open_file(&path)?, text.as_ref().len() as u64);
        opened(bytes, Path::new(name))
    }

    /// Returns how a file is described after detection.
    fn of(name: &str, text: impl AsRef<[u8]>) -> Result<String> {
        Ok(open(name, text)?.taken_for())
    }

    #[test]
    fn records_are_recognized_by_their_first_line_whatever_the_name() {
        for name in
            ["a.jsonl", "a.JSONL", "a.ndjson", "a.jsonl.txt", "a", "a.txt", "a.json", "a.v1.data"]
        {
            for text in [
                RECORD.to_owned(),
                format!("\n \n{RECORD}\r\n{RECORD}"),
                RECORD.replace("}", ", \"x\": NaN}"),
            ] {
                assert_eq!(of(name, &text).unwrap(), LINES, "{name} {text}");
            }
        }
        let with_mark = [BYTE_ORDER_MARK, RECORD.as_bytes()].concat();
        let marked = open("a", &with_mark).unwrap();
        assert_eq!(marked.taken_for(), LINES);
        assert_eq!((marked.len(), marked.bytes.before(0)), (RECORD.len() as u64, Some(3)));
        for name in ["a.jsonl", "a.jsonl.bak", "a.jsonlines", "A.LDJSON"] {
            assert_eq!(of(name, "no JSON").unwrap(), LINES);
        }
        assert_eq!(of("a.txt", format!("{{}}\n{RECORD}")).unwrap(), LINES);
        // A record that is longer than the examined part of the file.
        assert_eq!(
            of("a", format!("{{\"text\": \"{}\"}}", "a".repeat(HEAD_BYTES))).unwrap(),
            LINES
        );
    }

    #[test]
    fn prose_is_recognized() {
        for text in ["words", "{ words }", "[1] first, [2] second", "", "{\"cut", "a\0b"] {
            assert_eq!(of("a.txt", text).unwrap(), PROSE, "{text}");
        }
    }

    #[test]
    fn arrays_of_records_are_recognized_whatever_the_name() {
        for name in ["a.json", "a.jsonl", "a"] {
            assert_eq!(of(name, format!(" [ {RECORD},\n{RECORD}]")).unwrap(), ARRAY, "{name}");
        }
    }

    #[test]
    fn other_formats_are_refused_with_a_command_that_converts_them() {
        let utf_16: Vec<u8> =
            "some words here and there".encode_utf16().flat_map(u16::to_le_bytes).collect();
        let cases: [(&[u8], &str, &str); 7] = [
            (b"PAR1\0\0\0\0", "Parquet", "read_parquet"),
            (b"\x28\xb5\x2f\xfd\0", "Zstandard", "zstd -d a.bin"),
            (b"\xff\xfes\0o\0", "UTF-16", "iconv -f UTF-16 -t UTF-8 a.bin"),
            (&utf_16, "UTF-16", "iconv"),
            (b"PK\x03\x04", "zip", "unzip a.bin"),
            (b"version https://git-lfs.github.com/spec/v1", "Git LFS", "git lfs pull"),
            (b"BZh91AY", "bzip2", "bunzip2"),
        ];
        for (text, what, remedy) in cases {
            let error = of("a.bin", text).unwrap_err().to_string();
            assert!(error.contains(what) && error.contains(remedy), "{error}");
        }
        for (name, text, picks) in [
            (
                "a.json",
                "{\n \"version\": [1], \"da\\\"ta\": [ {\"text\": \"a\"}]}",
                "jq -c '.[\"da\\\"ta\"][]' a.json",
            ),
            (
                "a b.json",
                "{\n\"it's\": [{\"text\": \"a\"}]}",
                r#"jq -c '.["it'\''s"][]' 'a b.json'"#,
            ),
            ("a.txt", "[\n\"one\"]", "{text: .}"),
            ("a.txt", "[[1, 2]]", "{input_ids: .}"),
            ("a.json", "{\n\"text\": \"a\"}", "jq -c . a.json"),
            ("a.json", "some words", "cp a.json data.txt"),
        ] {
            let error = of(name, text).unwrap_err().to_string();
            assert!(error.contains(picks), "{text}: {error}");
        }
        for (name, text) in [
            ("a.json", "{\n \"data\": [] }"),
            ("a", "{\n  \"text\": NaN\n}"),
            ("a.txt", "[\"one\", \"two\"]"),
            ("a", "[[1, 2]]"),
        ] {
            assert!(of(name, text).unwrap_err().to_string().contains("jq -c"), "{name} {text}");
        }
        // The file continues after the examined part.
        assert!(kind_of(&head(Path::new("a.txt"), b"[\"one\", \"tw", false)).is_err());
    }

    #[test]
    fn a_record_of_an_array_has_a_line_of_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("list.json");
        let text = "\u{feff}\n[\n\n  {\"text\":\n \"a\\nb\"}, {\"text\": \"c\"},\n  {\"text\": \"d\"}\n]\n";
        std::fs::write(&path, text).unwrap();
        let file = TextFile::open(&path).unwrap();
        let at = |record: &str| {
            let bytes = text.find(record).unwrap() - "\u{feff}".len();
            // In the records, a line begins after a comma or bracket.
            let mut before = text.as_bytes()["\u{feff}".len()..][..bytes].iter();
            let start = before.rposition(|byte| b"[,".contains(byte)).unwrap() + 1;
            file.place(start as u64).unwrap()
        };
        assert_eq!(at("{\"text\":\n"), "record 1 of the list, on line 4");
        assert_eq!(at("{\"text\": \"c\""), "record 2 of the list, on line 5");
        assert_eq!(at("{\"text\": \"d\""), "record 3 of the list, on line 6");
        std::fs::write(&path, "{\"text\": \"a\"}\n").unwrap();
        assert_eq!(TextFile::open(&path).unwrap().place(0), None);
        for (text, line) in
            [("[{},\n,{}]", 2), ("[{}]\n\nx", 3), ("[\n{},\n{}\n", 4), ("[{},\n]", 2)]
        {
            std::fs::write(&path, text).unwrap();
            let error = TextFile::open(&path).map(drop).unwrap_err().to_string();
            assert!(error.contains(&format!("line {line}")), "{text}: {error}");
        }
    }
}
