//! Splits strings as Python does: into words, at separators, into lines.

use super::lexer::is_space;

/// Characters that end a line in Python.
pub(super) const BREAKS: [char; 10] =
    ['\n', '\r', '\x0b', '\x0c', '\x1c', '\x1d', '\x1e', '\u{85}', '\u{2028}', '\u{2029}'];

/// Python's `splitlines`.
pub(super) fn lines(own: &str, keep: bool) -> Vec<&str> {
    let mut lines = Vec::new();
    let mut rest = own;
    while !rest.is_empty() {
        let end = rest.find(BREAKS).unwrap_or(rest.len());
        let width = match rest[end..].chars().next() {
            Some('\r') if rest[end..].starts_with("\r\n") => 2,
            Some(c) => c.len_utf8(),
            None => 0,
        };
        lines.push(&rest[..if keep { end + width } else { end }]);
        rest = &rest[end + width..];
    }
    lines
}

/// Splits `own` at separators, at most `limit` times; without a limit if that is negative.
pub(super) fn parts<'a>(
    own: &'a str,
    separator: &str,
    limit: i128,
    from_end: bool,
) -> Vec<&'a str> {
    let most = usize::try_from(limit).map_or(usize::MAX, |limit| limit.saturating_add(1));
    if !from_end {
        return own.splitn(most, separator).collect();
    }
    let mut parts: Vec<&str> = own.rsplitn(most, separator).collect();
    parts.reverse();
    parts
}

/// Splits `own` into words: `limit` of them and then the rest; all of them if `limit` is negative.
pub(super) fn words(own: &str, limit: i128, from_end: bool) -> Vec<&str> {
    let most = usize::try_from(limit).unwrap_or(usize::MAX);
    let mut words = Vec::new();
    let mut rest =
        if from_end { own.trim_end_matches(is_space) } else { own.trim_start_matches(is_space) };
    while !rest.is_empty() && words.len() < most {
        let (word, others) = if from_end { last_word(rest) } else { first_word(rest) };
        words.push(word);
        rest = others;
    }
    if !rest.is_empty() {
        words.push(rest);
    }
    if from_end {
        words.reverse();
    }
    words
}

/// Returns the first word of `text`, and the rest.
fn first_word(text: &str) -> (&str, &str) {
    let end = text.find(is_space).unwrap_or(text.len());
    (&text[..end], text[end..].trim_start_matches(is_space))
}

/// Returns the last word of `text`, and the words before it.
fn last_word(text: &str) -> (&str, &str) {
    let gap = text.char_indices().rev().find(|(_, c)| is_space(*c));
    let begin = gap.map_or(0, |(at, c)| at + c.len_utf8());
    (&text[begin..], text[..begin].trim_end_matches(is_space))
}
