//! The date that chat templates write: the tokens of a conversation may depend on the day.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use chrono::{DateTime, Local, NaiveDateTime};

/// Maximum number of date formats in a conversation; no real template needs that many.
const MAX_FORMATS: usize = 100;

/// The source of the present: the system, unless a time was set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Clock(Option<NaiveDateTime>);

impl Clock {
    /// The system's clock.
    pub const SYSTEM: Self = Self(None);

    /// A clock that is fixed at `seconds` after the beginning of 1970; None if there is no such
    /// date.
    pub fn at(seconds: i64) -> Option<Self> {
        DateTime::from_timestamp(seconds, 0).map(|time| Self(Some(time.naive_utc())))
    }

    /// Returns the present in local time, as in transformers. Reproducible builds set it by
    /// `SOURCE_DATE_EPOCH`.
    pub(crate) fn now(self) -> NaiveDateTime {
        self.0.or_else(Self::build_date).unwrap_or_else(|| Local::now().naive_local())
    }

    fn build_date() -> Option<NaiveDateTime> {
        let seconds = std::env::var("SOURCE_DATE_EPOCH").ok()?.parse().ok()?;
        Self::at(seconds)?.0
    }
}

/// The dates that templates wrote: results of `strftime_now` by format.
pub(crate) type Dates = BTreeMap<String, String>;

/// The present, with a record of the formats in which templates wrote it.
#[derive(Debug)]
pub(crate) struct Present {
    now: NaiveDateTime,
    /// The dates written so far.
    pub written: Dates,
}

impl Present {
    pub fn new(now: NaiveDateTime) -> Self {
        Self { now, written: Dates::new() }
    }

    /// Returns the present in this format of `strftime`, and records it.
    ///
    /// # Errors
    /// A message if the format isn't supported.
    pub fn write(&mut self, format: &str) -> Result<String, String> {
        if let Some(text) = self.written.get(format) {
            return Ok(text.clone());
        }
        if self.written.len() >= MAX_FORMATS {
            return Err(format!("dates in more than {MAX_FORMATS} formats are not supported"));
        }
        let text = formatted(self.now, format)
            .ok_or_else(|| format!("the time format {format:?} is not supported"))?;
        self.written.insert(format.to_owned(), text.clone());
        Ok(text)
    }
}

fn formatted(time: NaiveDateTime, format: &str) -> Option<String> {
    let mut text = String::new();
    write!(text, "{}", time.format(&translated(format)?)).ok()?;
    Some(text)
}

/// Converts a format of Python's `strftime` to one of chrono; None if it has an element that only
/// chrono knows.
fn translated(format: &str) -> Option<String> {
    let mut translated = String::new();
    let mut rest = format.chars();
    while let Some(character) = rest.next() {
        if character != '%' {
            translated.push(character);
            continue;
        }
        match rest.next()? {
            // Microseconds; chrono would write nanoseconds.
            'f' => translated.push_str("%6f"),
            // Python's datetime.now() has no time zone.
            'z' | 'Z' => {}
            '+' | 'v' | '.' | ':' | '#' | '0'..='9' => return None,
            known => translated.extend(['%', known]),
        }
    }
    Some(translated)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The results of `datetime(2026, 3, 4, 5, 6, 7).strftime(format)` in Python 3.11 on Linux.
    #[test]
    fn dates_are_written_as_python_writes_them() {
        let now = Clock::at(1_772_600_767).unwrap().now();
        let mut present = Present::new(now);
        let cases = [
            ("%d %b %Y", "04 Mar 2026"),
            ("%Y-%m-%d", "2026-03-04"),
            ("%A, %B %-d, %y", "Wednesday, March 4, 26"),
            ("%H:%M:%S.%f", "05:06:07.000000"),
            ("%I %p|%j|%e|%%|%z%Z|", "05 AM|063| 4|%||"),
            ("%c", "Wed Mar  4 05:06:07 2026"),
            ("%x %X %D %F %T %R", "03/04/26 05:06:07 03/04/26 2026-03-04 05:06:07 05:06"),
            ("", ""),
        ];
        for (format, wanted) in cases {
            assert_eq!(present.write(format).as_deref(), Ok(wanted), "{format}");
        }
        for refused in ["%Q", "%+", "%:z", "%3f", "%"] {
            assert!(present.write(refused).unwrap_err().contains("time format"), "{refused}");
        }
        assert_eq!(present.written.len(), cases.len());
        let endless = (0..1000).map(|number| present.write(&format!("{number}")));
        assert!(endless.filter_map(Result::err).any(|error| error.contains("100 formats")));
    }
}
