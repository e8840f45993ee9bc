//! What is said of a line that is not a record, with a way on that fits what is wrong.

use std::ops::Range;

use moe_checkpoint::{Error, Kind};

use super::source::TextFile;
use super::wrong::{Cause, Wrong};

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
        match (file.place(self.line.start), self.number) {
            (Some(place), _) => place,
            (None, Some(number)) => format!("line {number}"),
            (None, None) => format!("the line that begins at byte {}", self.line.start),
        }
    }
}

/// The line at `place` of `file` is not a record, and `wrong` says why.
pub(super) fn malformed(file: &TextFile, place: &RecordLine, wrong: &Wrong) -> Error {
    let remedy = remedy(file, place, &wrong.cause);
    let what = if file.unit().is_line { wrong.to_string() } else { wrong.without_place() };
    Error::new(Kind::Malformed, format!("{}: {what}", place.shown(file)))
        .file(file.path())
        .remedy(remedy.replace("FILE", &file.path().to_string_lossy()))
}

fn remedy(file: &TextFile, place: &RecordLine, cause: &Cause) -> String {
    let unit = file.unit();
    let fixed = match cause {
        Cause::HalfPair => {
            "leave the record out, or rewrite its text: text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')"
        }
        Cause::TooLong => "cut it into several records, each on a line of its own",
        Cause::TooDeep => {
            "leave the record out, or nest the lists and objects in its \"messages\" and \"tools\" at most 120 deep"
        }
        Cause::Unfinished { in_string } => return of_unfinished(file, place, *in_string),
        Cause::Comma => "take the commas off: sed 's/,[[:space:]]*$//' FILE > data.jsonl",
        Cause::Trailing => "write each record on a line of its own: jq -c . FILE > data.jsonl",
        Cause::NotUtf8 => {
            "write it as UTF-8: if it is Latin-1, iconv -f LATIN1 -t UTF-8 FILE > data.jsonl"
        }
        Cause::TextIsList => "make a record of each: jq -c '.text[] | {text: .}' FILE > data.jsonl",
        Cause::IsString => {
            return format!(
                "make a record of each: jq -c '{}{{text: .}}' FILE > data.jsonl",
                unit.jq
            );
        }
        Cause::IsList => {
            return format!(
                "if these are token ids: jq -c '{}{{input_ids: .}}' FILE > data.jsonl",
                unit.jq
            );
        }
        Cause::RecordsUnder(key) => {
            return format!("pick them: jq -c '.[\"{key}\"][]' FILE > data.jsonl");
        }
        Cause::TextUnder(key) => {
            return format!(
                "if that is the text: jq -c '{{text: .[\"{key}\"]}}' FILE > data.jsonl"
            );
        }
        Cause::NotJson if place.line.start == 0 => {
            "each line is an object with \"text\", \"messages\", \"conversations\" or \"input_ids\"; plain text is taken for such if \
                its name doesn't say JSON: cp FILE data.txt"
        }
        Cause::NotJson | Cause::Other => {
            return format!(
                "each {} is an object with \"text\", \"messages\", \"conversations\" or \"input_ids\"",
                unit.name
            );
        }
    };
    fixed.to_owned()
}

/// A record that isn't over at the end of its line.
fn of_unfinished(file: &TextFile, place: &RecordLine, in_string: bool) -> String {
    let is_last = place.line.end >= file.len();
    let begin = file.bytes.before(place.line.start);
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
        (false, _) if in_string => match place.number {
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
