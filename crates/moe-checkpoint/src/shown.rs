//! Text out of files, names and paths for people: it is shown, never obeyed.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::path::Path;

/// Whether terminals and pages obey `c` instead of showing it: control characters, marks that turn the direction of text, breaks of
/// lines and paragraphs, characters without a width, and those that are no characters. Joiners stay: scripts and emoji need them.
pub fn is_obeyed(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{061c}'
                | '\u{200b}'
                | '\u{200e}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{fffe}'..='\u{ffff}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

/// `text` for a terminal: what [`is_obeyed`] is escaped as Rust writes it, but for the characters of `layout`.
pub fn shown<'t>(text: &'t str, layout: &str) -> Cow<'t, str> {
    let is_escaped = |c: char| is_obeyed(c) && !layout.contains(c);
    if !text.contains(is_escaped) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match is_escaped(c) {
            // `escape_default` leaves nothing that is obeyed: all but printable ASCII becomes digits.
            true => shown.extend(c.escape_default()),
            false => shown.push(c),
        }
    }
    Cow::Owned(shown)
}

/// `path` for a terminal, in one line.
pub fn shown_path(path: &Path) -> String {
    shown(&path.to_string_lossy(), "").into_owned()
}

/// The JSON document `text` with the same value, in which what [`is_obeyed`] is written as `\u` and digits. JSON has such characters
/// within strings alone, but for line breaks between values.
pub(crate) fn escaped_json(text: String) -> String {
    let is_escaped = |c: char| is_obeyed(c) && c != '\n';
    if !text.contains(is_escaped) {
        return text;
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match is_escaped(c) {
            true => c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| {
                // Writing to a String doesn't fail.
                let _ = write!(escaped, "\\u{unit:04x}");
            }),
            false => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_escaped() {
        assert_eq!(shown("a\u{1b}]0;x\u{7}\u{9b}2J\r\n\t", ""), r"a\u{1b}]0;x\u{7}\u{9b}2J\r\n\t");
        assert_eq!(shown("a\r\n\tb", "\n\t"), "a\\r\n\tb");
        assert_eq!(shown("\u{202e}abc\u{2066}", ""), r"\u{202e}abc\u{2066}");
        let plain = "naïve, 日本語, 👩\u{200d}🔬, ünï → █░ |Δ|";
        assert!(matches!(shown(plain, ""), Cow::Borrowed(text) if text == plain));
    }

    #[test]
    fn escaped_json_has_the_same_value() {
        let value = serde_json::json!({ "a\u{7f}": "\u{9b}2J\u{202e}\u{e0001}\u{1b}\n", "b": ["ü", 1.5] });
        let text = crate::json::to_pretty(&value);
        assert!(!text.contains(|c| is_obeyed(c) && c != '\n'), "{text}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), value);
    }
}
