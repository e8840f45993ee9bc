//! Prose: a file whose whole content is one document.

use std::ops::Range;

use moe_checkpoint::Result;
use moe_checkpoint::json::keep_numbers;
use serde::de::IgnoredAny;

use crate::text::bytes::TextBytes;
use crate::text::command::jq;
use crate::text::documents::{CellUnit, Document, Documents, LongLines, NextDocument};
use crate::text::escaped::Passage;
use crate::text::kind::{FileStart, OpenedText, TextFormat};
use crate::text::reader::TextReader;
use crate::text::source::TextFile;

/// Plain text, which is one document.
pub(super) struct Prose;

impl TextFormat for Prose {
    fn recognizes(&self, head: &FileStart<'_>) -> Result<bool> {
        let body = head.body();
        let is_named_json = head.ending() == "json";
        if is_named_json && !matches!(body.first(), Some(b'{' | b'[')) {
            return Err(head.refused(
                "not JSON, though its name says so",
                "if it is plain text, give it a name that says so: cp FILE data.txt",
            ));
        }
        if is_named_json || is_json(body, head.is_all) {
            let what = "JSON, but neither a list of records nor one record per line";
            return Err(head.refused(what, &picking(body)));
        }
        Ok(true)
    }

    fn open(&self, bytes: TextBytes, head: &FileStart<'_>) -> Result<OpenedText> {
        Ok(OpenedText::Text(TextFile::of(bytes.skipping(head.mark()), &Prose)))
    }
}

impl Documents for Prose {
    fn next(&self, reader: &mut TextReader<'_>, at: u64) -> Result<NextDocument> {
        let bytes = at..reader.text.len();
        let passage = Passage { range: 0..reader.text.len(), is_escaped: false };
        Ok(NextDocument { bytes, document: Document::Text(passage), following: None })
    }

    fn in_cell(
        &self,
        reader: &mut TextReader<'_>,
        cell: Range<u64>,
        _: &mut LongLines,
    ) -> Result<Vec<CellUnit>> {
        let passage = Passage { range: 0..reader.text.len(), is_escaped: false };
        Ok(vec![CellUnit::Part { passage, part: cell }])
    }

    fn is_named_so(&self, ending: &str) -> bool {
        other_format(ending).is_none()
    }

    fn taken_for(&self, ending: &str) -> String {
        match other_format(ending) {
            None => "plain text, one document".to_owned(),
            Some(what) => format!("plain text, one document, {what} included"),
        }
    }
}

/// Returns what a file with this ending usually contains around its text, such as markup, which is
/// read as text too.
fn other_format(ending: &str) -> Option<&'static str> {
    Some(match ending {
        "csv" => "commas, quotes and the header of CSV",
        "tsv" | "tab" | "psv" => "separators and the header of the table",
        "html" | "htm" | "xhtml" | "xml" | "svg" | "rss" => "tags",
        "yaml" | "yml" | "toml" | "ini" => "keys",
        "tex" | "bib" => "commands",
        "rtf" => "commands of RTF",
        _ => return None,
    })
}

/// Returns whether `text` is a JSON object or array and nothing else or, if the file has more than
/// `text`, the beginning of one.
fn is_json(text: &[u8], is_all: bool) -> bool {
    if !matches!(text.first(), Some(b'{' | b'[')) {
        return false;
    }
    match serde_json::from_str::<IgnoredAny>(&keep_numbers(&String::from_utf8_lossy(text))) {
        Ok(_) => true,
        Err(error) => error.is_eof() && !is_all,
    }
}

/// Returns the command that makes records of JSON that begins with `body`.
fn picking(body: &[u8]) -> String {
    let body = String::from_utf8_lossy(body);
    let element = body.strip_prefix('[').map(str::trim_start);
    match element.and_then(|element| element.chars().next()) {
        Some('"') => {
            return format!("make a record of each: {}", jq(".[] | {text: .}"));
        }
        Some('[') => {
            return format!("make a record of each: {}", jq(".[] | {input_ids: .}"));
        }
        Some(_) => return format!("pick its records: {}", jq(".[]")),
        None => {}
    }
    match list_key(&body) {
        Some(key) => format!("pick its records: {}", jq(&format!(".[\"{key}\"][]"))),
        None => "write it on one line, if it is a record: jq -c . FILE > data.jsonl".to_owned(),
    }
}

/// Returns the first key of a JSON object whose value is an array of objects, as the JSON spells
/// it.
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

/// Returns the position of the closing quote of the string that begins at `start`.
fn end_of_string(bytes: &[u8], start: usize) -> Option<usize> {
    let mut at = start + 1;
    while *bytes.get(at)? != b'"' {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    Some(at)
}
