//! What a data file holds, by its first bytes. Its name only decides where content can't: a first
//! line that is broken.

use std::ffi::OsStr;
use std::path::Path;

use moe_checkpoint::json::{LFS_POINTER, keep_numbers};
use moe_checkpoint::{Error, Kind, Result, without_mark};
use serde::de::IgnoredAny;

use super::record::{Start, object_start};

/// As much of a file is looked at.
pub(super) const HEAD_BYTES: usize = 64 << 10;

/// How a text is divided into documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// One document.
    Prose,
    /// Lines, each of which is an object of JSON.
    Records,
}

/// What a file holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// Text, behind `start` bytes of a byte order mark.
    Text {
        format: Format,
        start: u64,
    },
    Gzip,
    /// A list of records, behind `start` bytes of a byte order mark.
    Array {
        start: u64,
    },
}

/// Known beginnings of what isn't text, with their names, and what makes text of it (`FILE` is the
/// file).
const OTHERS: &[(&[u8], &str, &str)] = &[
    (
        b"PAR1",
        "Parquet",
        "write it as JSON Lines: python3 -c 'import sys, pandas; pandas.read_parquet(sys.argv[1]).to_json(sys.argv[2], \
         orient=\"records\", lines=True)' FILE data.jsonl",
    ),
    (
        b"ARROW1",
        "Arrow",
        "write it as JSON Lines: python3 -c 'import sys, datasets; datasets.Dataset.from_file(sys.argv[1])\
         .to_json(sys.argv[2])' FILE data.jsonl",
    ),
    (b"\x28\xb5\x2f\xfd", "Zstandard", "unpack it first: zstd -d FILE"),
    (b"\xfd7zXZ\0", "xz", "unpack it first: xz -dk FILE"),
    (b"BZh", "bzip2", "unpack it first: bunzip2 -k FILE"),
    (b"PK\x03\x04", "a zip archive", "unpack it first: unzip FILE"),
    (b"%PDF-", "PDF", "write its text first: pdftotext FILE"),
    (b"\x80\x04\x95", "a pickle", "write its text, or JSON Lines, first"),
    (b"\x89HDF", "HDF5", "write its text, or JSON Lines, first"),
    (b"SQLite format 3\0", "an SQLite database", "write its text, or JSON Lines, first"),
    (LFS_POINTER, "a pointer of Git LFS to the data", "fetch the data: git lfs pull"),
    (b"\xff\xfe\0\0", "UTF-32", "write it as UTF-8: iconv -f UTF-32 -t UTF-8 FILE > data.txt"),
    (b"\0\0\xfe\xff", "UTF-32", "write it as UTF-8: iconv -f UTF-32 -t UTF-8 FILE > data.txt"),
    (b"\xff\xfe", "UTF-16", UTF_16),
    (b"\xfe\xff", "UTF-16", UTF_16),
];
const UTF_16: &str = "write it as UTF-8: iconv -f UTF-16 -t UTF-8 FILE > data.txt";

/// What the file `name` holds, which begins with `head`; that is all of it where `is_all`.
pub(super) fn recognize(name: &Path, head: &[u8], is_all: bool) -> Result<Content> {
    if head.starts_with(b"\x1f\x8b") {
        return Ok(Content::Gzip);
    }
    let refused = |what: &str, remedy: &str| {
        let remedy = remedy.replace("FILE", &name.to_string_lossy());
        Err(Error::new(
            Kind::Unsupported,
            format!("this is {what}; data is UTF-8 text or JSON Lines"),
        )
        .remedy(remedy))
    };
    if let Some((_, what, remedy)) = OTHERS.iter().find(|(magic, _, _)| head.starts_with(magic)) {
        return refused(what, remedy);
    }
    if head.get(257..262) == Some(b"ustar") {
        return refused("a tar archive", "unpack it first: tar -xf FILE");
    }
    if looks_like_utf_16(head) {
        return refused("UTF-16 without a byte order mark, or binary", UTF_16);
    }
    let text = without_mark(head);
    let start = (head.len() - text.len()) as u64;
    let ending = name.extension().and_then(OsStr::to_str).unwrap_or_default().to_ascii_lowercase();
    let records = Content::Text { format: Format::Records, start };
    let body = text.trim_ascii_start();
    // A list of anything else is shown as the records that it should have been, line by line.
    let is_list = body.first() == Some(&b'[');
    if is_list
        && (ending == "json"
            || matches!(object_start(body[1..].trim_ascii_start()), Start::Whole | Start::Open))
    {
        return Ok(Content::Array { start });
    }
    if is_named_for_lines(name) {
        return Ok(records);
    }
    let line_end = body.iter().position(|byte| *byte == b'\n');
    let line = &body[..line_end.unwrap_or(body.len())];
    match object_start(line) {
        Start::Whole => Ok(records),
        // It lacks all keys, as the error will say.
        _ if line.trim_ascii() == b"{}" => Ok(records),
        // It is longer than what is looked at, so that no line end was seen.
        Start::Open if line_end.is_none() && !is_all => Ok(records),
        _ if ending == "json" && !matches!(body.first(), Some(b'{' | b'[')) => refused(
            "not JSON, though its name says so",
            "if it is plain text, give it a name that says so: cp FILE data.txt",
        ),
        _ if ending == "json" || is_json(body, is_all) => {
            refused("JSON, but neither a list of records nor one record per line", &picking(body))
        }
        _ => Ok(Content::Text { format: Format::Prose, start }),
    }
}

/// What makes records of the JSON that begins with `body`.
fn picking(body: &[u8]) -> String {
    let body = String::from_utf8_lossy(body);
    let element = body.strip_prefix('[').map(str::trim_start);
    match element.and_then(|element| element.chars().next()) {
        Some('"') => {
            return "make a record of each: jq -c '.[] | {text: .}' FILE > data.jsonl".to_owned();
        }
        Some('[') => {
            return "make a record of each: jq -c '.[] | {input_ids: .}' FILE > data.jsonl"
                .to_owned();
        }
        Some(_) => return "pick its records: jq -c '.[]' FILE > data.jsonl".to_owned(),
        None => {}
    }
    match list_key(&body) {
        Some(key) => format!("pick its records: jq -c '.[\"{key}\"][]' FILE > data.jsonl"),
        None => "write it on one line, if it is a record: jq -c . FILE > data.jsonl".to_owned(),
    }
}

/// The first key of an object of JSON that has a list of objects.
fn list_key(text: &str) -> Option<&str> {
    let (mut depth, mut at, mut key) = (0, 0, "");
    let bytes = text.as_bytes();
    while at < bytes.len() {
        match bytes[at] {
            b'"' => {
                let end = end_of_string(bytes, at)?;
                key = if depth == 1 { &text[at + 1..end] } else { key };
                at = end;
            }
            b'[' if depth == 1 && text[at + 1..].trim_start().starts_with('{') => return Some(key),
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth -= 1,
            _ => {}
        }
        at += 1;
    }
    None
}

/// Where the string ends that begins at `start`.
fn end_of_string(bytes: &[u8], start: usize) -> Option<usize> {
    let mut at = start + 1;
    while *bytes.get(at)? != b'"' {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    Some(at)
}

/// Whether a part of the name says that the file has a record of JSON in each line, as in
/// `a.jsonl.txt`.
fn is_named_for_lines(name: &Path) -> bool {
    const WORDS: [&str; 5] = ["jsonl", "jsonlines", "ndjson", "ldjson", "jl"];
    let name = name.file_name().and_then(OsStr::to_str).unwrap_or_default().to_ascii_lowercase();
    name.split('.').skip(1).any(|part| WORDS.contains(&part))
}

/// Whether `text` is an object or a list of JSON, and nothing else; or begins so, where it isn't
/// all there is.
fn is_json(text: &[u8], is_all: bool) -> bool {
    if !matches!(text.first(), Some(b'{' | b'[')) {
        return false;
    }
    match serde_json::from_str::<IgnoredAny>(&keep_numbers(&String::from_utf8_lossy(text))) {
        Ok(_) => true,
        Err(error) => error.is_eof() && !is_all,
    }
}

/// Latin text in UTF-16 has a zero for every other byte.
fn looks_like_utf_16(head: &[u8]) -> bool {
    let pairs = head.chunks_exact(2);
    let count = pairs.len();
    let zeros = pairs.filter(|pair| (pair[0] == 0) != (pair[1] == 0)).count();
    count >= 8 && zeros * 3 > count
}

#[cfg(test)]
mod tests {
    use moe_checkpoint::BYTE_ORDER_MARK;

    use super::*;

    const RECORD: &str = r#"{"text": "words"}"#;

    fn of(name: &str, text: impl AsRef<[u8]>) -> Result<Content> {
        recognize(Path::new(name), text.as_ref(), true)
    }

    #[test]
    fn records_are_known_by_their_first_line_whatever_the_name() {
        let records = Content::Text { format: Format::Records, start: 0 };
        for name in
            ["a.jsonl", "a.JSONL", "a.ndjson", "a.jsonl.txt", "a", "a.txt", "a.json", "a.v1.data"]
        {
            for text in [
                RECORD.to_owned(),
                format!("\n \n{RECORD}\r\n{RECORD}"),
                RECORD.replace("}", ", \"x\": NaN}"),
            ] {
                assert_eq!(of(name, &text).unwrap(), records, "{name} {text}");
            }
        }
        let with_mark = [BYTE_ORDER_MARK, RECORD.as_bytes()].concat();
        assert_eq!(
            of("a", &with_mark).unwrap(),
            Content::Text { format: Format::Records, start: 3 }
        );
        for name in ["a.jsonl", "a.jsonl.bak", "a.jsonlines", "A.LDJSON"] {
            assert_eq!(of(name, "no JSON").unwrap(), records);
        }
        assert_eq!(of("a.txt", format!("{{}}\n{RECORD}")).unwrap(), records);
        // A record that is longer than what is looked at.
        assert_eq!(recognize(Path::new("a"), br#"{"text": "and so on"#, false).unwrap(), records);
    }

    #[test]
    fn prose_is_prose() {
        for text in ["words", "{ words }", "[1] first, [2] second", "", "{\"cut", "a\0b"] {
            let prose = Content::Text { format: Format::Prose, start: 0 };
            assert_eq!(of("a.txt", text).unwrap(), prose, "{text}");
        }
    }

    #[test]
    fn lists_of_records_are_lists_whatever_the_name() {
        for name in ["a.json", "a.jsonl", "a"] {
            assert_eq!(
                of(name, format!(" [ {RECORD},\n{RECORD}]")).unwrap(),
                Content::Array { start: 0 },
                "{name}"
            );
        }
    }

    #[test]
    fn what_is_not_text_is_refused_with_what_makes_text_of_it() {
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
        // More of it than is looked at.
        assert!(recognize(Path::new("a.txt"), b"[\"one\", \"tw", false).is_err());
    }
}
