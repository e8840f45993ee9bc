//! Formats the error about a line that is not a record, with a remedy that suits the cause.

use std::ops::Range;

use moe_checkpoint::{Error, Kind};
use serde_json::json;

use super::command::{jq, naming_file};
use super::source::{TextFile, TextUnit};
use super::wrong::{Cause, Wrong};

/// The place of a line in a data file.
pub(super) struct RecordLine {
    /// The line's bytes, without the line break.
    pub line: Range<u64>,
    /// The line's number, from 1 on; None if lines weren't counted.
    pub number: Option<u64>,
}

impl RecordLine {
    /// Describes the place in `file`, for messages.
    pub fn shown(&self, file: &TextFile) -> String {
        match (file.place(self.line.start), self.number) {
            (Some(place), _) => place,
            (None, Some(number)) => format!("line {number}"),
            (None, None) => format!("the line that begins at byte {}", self.line.start),
        }
    }
}

/// Returns the error that the line at `place` of `file` is not a record, for the reason `wrong`.
pub(super) fn malformed(file: &TextFile, place: &RecordLine, wrong: &Wrong) -> Error {
    let remedy = remedy(file, place, &wrong.cause);
    let what = if file.unit().is_line { wrong.to_string() } else { wrong.without_place() };
    Error::new(Kind::Malformed, format!("{}: {what}", place.shown(file)))
        .file(file.path())
        .remedy(naming_file(&remedy, file.path()))
}

fn remedy(file: &TextFile, place: &RecordLine, cause: &Cause) -> String {
    let unit = file.unit();
    match cause {
        Cause::Unfinished { in_string } => of_unfinished(file, place, *in_string),
        Cause::IsString => {
            format!("make a record of each: {}", jq(&format!("{}{{text: .}}", unit.jq)))
        }
        Cause::IsList => {
            format!("if these are token ids: {}", jq(&format!("{}{{input_ids: .}}", unit.jq)))
        }
        Cause::RecordsUnder(key) => {
            format!("pick them: {}", jq(&format!("{}.[{}][]", unit.jq, json!(key))))
        }
        Cause::TextUnder(key) => {
            let filter = format!("{}{{text: .[{}]}}", unit.jq, json!(key));
            format!("if that is the text: {}", jq(&filter))
        }
        Cause::NotJson if place.line.start == 0 => OF_ANOTHER_FORMAT.to_owned(),
        cause => fixed(cause).map_or_else(|| of_form(unit), str::to_owned),
    }
}

fn of_form(unit: &TextUnit) -> String {
    format!(
        "each {} is an object with \"text\", \"messages\", \"conversations\" or \"input_ids\"",
        unit.name
    )
}

const OF_ANOTHER_FORMAT: &str = "each line is an object with \"text\", \"messages\", \"conversations\" or \"input_ids\"; \
     plain text is taken for such if its name doesn't say JSON: cp FILE data.txt";

/// Returns the remedy for `cause`, if it depends on nothing else.
fn fixed(cause: &Cause) -> Option<&'static str> {
    match cause {
        Cause::HalfPair => Some(
            "leave the record out, or rewrite its text: text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')",
        ),
        Cause::TooLong => Some("cut it into several records, each on a line of its own"),
        Cause::TooDeep => Some(
            "leave the record out, or nest the lists and objects in its \"messages\" and \"tools\" at most 120 deep",
        ),
        Cause::Comma => Some("take the commas off: sed 's/,[[:space:]]*$//' FILE > data.jsonl"),
        Cause::Trailing => Some(ON_LINES),
        Cause::NotUtf8 => {
            Some("write it as UTF-8: if it is Latin-1, iconv -f LATIN1 -t UTF-8 FILE > data.jsonl")
        }
        Cause::TextIsList => {
            Some("make a record of each: jq -c '.text[] | {text: .}' FILE > data.jsonl")
        }
        Cause::Unfinished { .. }
        | Cause::IsString
        | Cause::IsList
        | Cause::RecordsUnder(_)
        | Cause::TextUnder(_)
        | Cause::NotJson
        | Cause::Other => None,
    }
}

const ON_LINES: &str = "write each record on a line of its own: jq -c . FILE > data.jsonl";

/// Returns the remedy for a record that doesn't end within its line.
fn of_unfinished(file: &TextFile, place: &RecordLine, in_string: bool) -> String {
    if place.line.end >= file.len() {
        return of_cut_file(file, place);
    }
    if !in_string {
        return ON_LINES.to_owned();
    }
    // A line break within a string isn't JSON to any reader.
    match place.number {
        Some(number) if file.bytes.before(place.line.start).is_some() => {
            format!("leave out what is cut off: sed '{number}d' FILE > data.jsonl")
        }
        _ => "leave this record out: its text ends within the line".to_owned(),
    }
}

/// Returns the remedy for a file whose last record is incomplete.
fn of_cut_file(file: &TextFile, place: &RecordLine) -> String {
    if place.line.start == 0 {
        return "the file ends within its record: fetch or write it again".to_owned();
    }
    let way = "the file ends within this record: fetch it again, or leave the record out";
    match file.bytes.before(place.line.start) {
        Some(bytes) => format!("{way}: head -c {bytes} FILE > data.jsonl"),
        None => way.to_owned(),
    }
}
