//! The date that chat templates write: what a conversation becomes depends on the day, too.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use chrono::{DateTime, Local, NaiveDateTime};

/// More formats than these are no longer those of a date in a conversation.
const MAX_FORMATS: usize = 100;

/// Where the present comes from: the system, unless it was set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Clock(Option<NaiveDateTime>);

impl Clock {
    /// The system's.
    pub const SYSTEM: Self = Self(None);

    /// A clock that stands at so many seconds after the beginning of 1970; None where there is no
    /// such date.
    pub fn at(seconds: i64) -> Option<Self> {
        DateTime::from_timestamp(seconds, 0).map(|time| Self(Some(time.naive_utc())))
    }

    /// The present in local time, as transformers gives it. Reproducible builds say in
    /// `SOURCE_DATE_EPOCH` when they are.
    pub(crate) fn now(self) -> NaiveDateTime {
        let of_build = || {
            let seconds = std::env::var("SOURCE_DATE_EPOCH").ok()?.parse().ok()?;
            Self::at(seconds)?.0
        };
        self.0.or_else(of_build).unwrap_or_else(|| Local::now().naive_local())
    }
}

/// The present as templates wrote it: what `strftime_now` gave, by its format.
pub(crate) type Dates = BTreeMap<String, String>;

/// The present, of which templates write what they ask for.
#[derive(Debug)]
pub(crate) struct Present {
    now: NaiveDateTime,
    /// What was written.
    pub written: Dates,
}

impl Present {
    pub fn new(now: NaiveDateTime) -> Self {
        Self { now, written: Dates::new() }
    }

    /// The present in this format of `strftime`, which is then known to have been written.
    ///
    /// # Errors
    /// What isn't supported, in words.
    pub fn write(&mut self, format: &str) -> Result<String, String> {
        if let Some(text) = self.written.get(format) {
            return Ok(text.clone());
        }
        if self.written.len() >= MAX_FORMATS {
            return Err(format!("dates in more than {MAX_FORMATS} formats are not supported"));
        }
        let unsupported = || format!("the time format {format:?} is not supported");
        let mut text = String::new();
        let translated = translated(format).ok_or_else(unsupported)?;
        write!(text, "{}", self.now.format(&translated)).map_err(|_| unsupported())?;
        self.written.insert(format.to_owned(), text.clone());
        Ok(text)
    }
}

/// A format of Python's `strftime` as one of chrono, if it has nothing that only chrono knows.
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

    /// What `datetime(2026, 3, 4, 5, 6, 7).strftime(format)` of Python 3.11 on Linux gives.
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
