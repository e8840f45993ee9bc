//! What is said of a line that is not a record, with a way on that fits what is wrong.

use std::ops::Range;

use moe_checkpoint::{Error, Kind};

use super::source::{ARRAY, TextFile};
use super::stream::MAX_RECORD_BYTES;

/// A line of a data file.
pub(super) struct RecordLine {
    /// Its bytes, without the line break.
    pub line: Range<u64>,
    /// Its number from 1 on, where lines were counted.
    pub number: Option<u64>,
}

impl RecordLine {
    /// Where that is in `file`, for people.
    pub fn shown(&self, file: &TextFile) -> String {
        match (file.place_in_list(self.line.start), self.number) {
            (Some((record, line)), _) => format!("record {record} of the list, on line {line}"),
            (None, Some(number)) => format!("line {number}"),
            (None, None) => format!("the line that begins at byte {}", self.line.start),
        }
    }
}

/// What is wrong with a record of so many bytes.
pub(super) fn too_long(bytes: u64) -> String {
    format!(
        "{} MB in one record that isn't \"text\", which must be held whole; the most is {} MB",
        bytes / 1_000_000,
        MAX_RECORD_BYTES / 1_000_000
    )
}

/// The line at `place` of `file` is not a record, and `what` says why.
pub(super) fn malformed(file: &TextFile, place: &RecordLine, what: &str) -> Error {
    let remedy = remedy(file, place, what).replace("FILE", &file.path().to_string_lossy());
    // In a list, a record isn't a line of its own, of which something could be a column.
    let what = if file.unpacked == Some(ARRAY) { without_column(what) } else { what.to_owned() };
    Error::new(Kind::Malformed, format!("{}: {what}", place.shown(file)))
        .file(file.path())
        .remedy(remedy)
}

/// What serde says, without the place in the record.
fn without_column(what: &str) -> String {
    match what.split_once(" at line 1 column ") {
        Some((said, rest)) => {
            format!("{said}{}", rest.trim_start_matches(|c: char| c.is_ascii_digit()))
        }
        None => what.to_owned(),
    }
}

fn remedy(file: &TextFile, place: &RecordLine, what: &str) -> String {
    let has = |parts: &[&str]| parts.iter().any(|part| what.contains(part));
    if has(&["surrogate pair"]) {
        return "leave the record out, or rewrite its text: text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')"
            .to_owned();
    }
    if has(&["in one record that isn't"]) {
        return "cut it into several records, each on a line of its own".to_owned();
    }
    if has(&["recursion limit"]) {
        return "leave the record out, or nest the lists and objects in its \"messages\" and \"tools\" at most 120 deep".to_owned();
    }
    if has(&["EOF", "line ends"]) {
        return of_unfinished(file, place, what);
    }
    if has(&["a comma stands behind"]) {
        return "take the commas off: sed 's/,[[:space:]]*$//' FILE > data.jsonl".to_owned();
    }
    if has(&["trailing characters"]) {
        return "write each record on a line of its own: jq -c . FILE > data.jsonl".to_owned();
    }
    if has(&["UTF-8", "unicode"]) {
        return "write it as UTF-8: if it is Latin-1, iconv -f LATIN1 -t UTF-8 FILE > data.jsonl"
            .to_owned();
    }
    if has(&["\"text\" is a list"]) {
        return "make a record of each: jq -c '.text[] | {text: .}' FILE > data.jsonl".to_owned();
    }
    let element = if file.unpacked == Some(ARRAY) { ".[] | " } else { "" };
    if has(&["invalid type: string"]) && has(&["expected an object"]) {
        return format!("make a record of each: jq -c '{element}{{text: .}}' FILE > data.jsonl");
    }
    if has(&["invalid type: sequence, expected an object"]) {
        return format!(
            "if these are token ids: jq -c '{element}{{input_ids: .}}' FILE > data.jsonl"
        );
    }
    if let Some(key) = what.split_once(LIST_OF_RECORDS).and_then(|(_, rest)| rest.split('"').next())
    {
        return format!("pick them: jq -c '.[\"{key}\"][]' FILE > data.jsonl");
    }
    if let Some(key) = what.split_once(TEXT_UNDER).and_then(|(_, rest)| rest.split('"').next()) {
        return format!("if that is the text: jq -c '{{text: .[\"{key}\"]}}' FILE > data.jsonl");
    }
    if has(&["expected value at line 1 column 1", "expected ident at line 1"])
        && place.line.start == 0
    {
        return "each line is an object with \"text\", \"messages\", \"conversations\" or \"input_ids\"; plain text is taken for such if \
                its name doesn't say JSON: cp FILE data.txt"
            .to_owned();
    }
    let each = if file.unpacked == Some(ARRAY) { "element of the list" } else { "line" };
    format!(
        "each {each} is an object with \"text\", \"messages\", \"conversations\" or \"input_ids\""
    )
}

/// What [`super::record::parse`] says before the name of a key that has a list of objects.
pub(super) const LIST_OF_RECORDS: &str = "a list of records under \"";
/// And before one that seems to have the text.
pub(super) const TEXT_UNDER: &str = "a text under \"";

/// A record that isn't over at the end of its line.
fn of_unfinished(file: &TextFile, place: &RecordLine, what: &str) -> String {
    let is_last = place.line.end >= file.len();
    let begin = file.bytes_before(place.line.start);
    match (is_last, begin) {
        (true, _) if place.line.start == 0 => {
            "the file ends within its record: fetch or write it again".to_owned()
        }
        (true, Some(bytes)) => {
            format!(
                "the file ends within this record: fetch it again, or leave the record out: head -c {bytes} FILE > data.jsonl"
            )
        }
        (true, None) => {
            "the file ends within this record: fetch it again, or leave the record out".to_owned()
        }
        // A line break within a text is no JSON for anybody.
        (false, _) if what.contains("string") => match place.number {
            Some(number) if begin.is_some() => {
                format!("leave out what is cut off: sed '{number}d' FILE > data.jsonl")
            }
            _ => "leave this record out: its text ends within the line".to_owned(),
        },
        (false, _) => {
            "write each record on a line of its own: jq -c . FILE > data.jsonl".to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_serde_says_is_kept_but_for_the_column() {
        for (said, shown) in [
            (
                "invalid type: integer `5`, expected a string at line 1 column 1",
                "invalid type: integer `5`, expected a string",
            ),
            (
                "end of hex escape at line 1 column 12: half of a pair",
                "end of hex escape: half of a pair",
            ),
            ("a text under \"body\"", "a text under \"body\""),
        ] {
            assert_eq!(without_column(said), shown);
        }
    }
}
