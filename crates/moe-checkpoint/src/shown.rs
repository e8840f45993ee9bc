//! Shows text from files, names and paths to people in a form that terminals don't obey.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::path::Path;

use unicode_general_category::{GeneralCategory, get_general_category};

/// Whether terminals and pages obey `c` instead of showing it: control characters, direction marks,
/// line and paragraph separators, characters without a width, and noncharacters. Joiners are
/// allowed, since scripts and emoji need them.
pub fn is_obeyed(c: char) -> bool {
    if c.is_ascii() {
        return c.is_ascii_control();
    }
    match get_general_category(c) {
        GeneralCategory::Control
        | GeneralCategory::LineSeparator
        | GeneralCategory::ParagraphSeparator => true,
        GeneralCategory::Format => !is_joiner(c) && !is_visible_format(c),
        _ => is_ignorable(c) || is_noncharacter(c),
    }
}

fn is_joiner(c: char) -> bool {
    matches!(c, '\u{200c}' | '\u{200d}')
}

/// Signs around numbers and words in Arabic, Syriac and Kaithi: Unicode's
/// Prepended_Concatenation_Mark.
fn is_visible_format(c: char) -> bool {
    matches!(
        c,
        '\u{0600}'..='\u{0605}'
            | '\u{06dd}'
            | '\u{070f}'
            | '\u{0890}'..='\u{0891}'
            | '\u{08e2}'
            | '\u{110bd}'
            | '\u{110cd}'
    )
}

/// Letters, marks and unassigned characters that are shown as nothing: Unicode's
/// Default_Ignorable_Code_Point, except for those in the category of formats.
fn is_ignorable(c: char) -> bool {
    matches!(
        c,
        '\u{034f}'
            | '\u{115f}'..='\u{1160}'
            | '\u{17b4}'..='\u{17b5}'
            | '\u{180b}'..='\u{180f}'
            | '\u{2065}'
            | '\u{3164}'
            | '\u{fe00}'..='\u{fe0f}'
            | '\u{ffa0}'
            | '\u{fff0}'..='\u{fff8}'
            | '\u{e0000}'..='\u{e0fff}'
    )
}

/// The last two characters of each plane, and 32 more.
fn is_noncharacter(c: char) -> bool {
    u32::from(c) & 0xfffe == 0xfffe || matches!(c, '\u{fdd0}'..='\u{fdef}')
}

/// `text` for a terminal: characters for which [`is_obeyed`] holds are escaped as in Rust, except
/// for those in `layout`.
pub fn shown<'t>(text: &'t str, layout: &str) -> Cow<'t, str> {
    if !text.contains(|c| is_escaped(c, layout)) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_escaped(c, layout) {
            // The result of `escape_default` is printable ASCII, so nothing in it is obeyed.
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    Cow::Owned(shown)
}

/// `path` for a terminal, on one line.
pub fn shown_path(path: &Path) -> String {
    shown(&path.to_string_lossy(), "").into_owned()
}

fn is_escaped(c: char, layout: &str) -> bool {
    is_obeyed(c) && !layout.contains(c)
}

/// The JSON document `text`, with `\u` escapes for characters for which [`is_obeyed`] holds. Its
/// value is the same, since JSON has such characters only in strings, except for line breaks
/// between values.
pub(crate) fn escaped_json(text: String) -> String {
    if !text.contains(|c| is_escaped(c, "\n")) {
        return text;
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_escaped(c, "\n") {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing to a String can't fail.
                let _ = write!(escaped, "\\u{unit:04x}");
            }
        } else {
            escaped.push(c);
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_that_a_terminal_obeys_are_escaped() {
        assert_eq!(shown("a\u{1b}]0;x\u{7}\u{9b}2J\r\n\t", ""), r"a\u{1b}]0;x\u{7}\u{9b}2J\r\n\t");
        assert_eq!(shown("a\r\n\tb", "\n\t"), "a\\r\n\tb");
        assert_eq!(shown("\u{202e}abc\u{2066}", ""), r"\u{202e}abc\u{2066}");
        let plain = "naïve, 日本語, 👩\u{200d}🔬, ünï → █░ |Δ|";
        assert!(matches!(shown(plain, ""), Cow::Borrowed(text) if text == plain));
    }

    #[test]
    fn invisible_characters_are_escaped_and_visible_ones_are_not() {
        let obeyed = "\u{0}\u{7f}\u{85}\u{ad}\u{34f}\u{61c}\u{115f}\u{1160}\u{17b4}\u{180b}\u{180e}\u{200b}\u{200e}\u{2028}\u{2029}\
                      \u{202e}\u{2060}\u{2065}\u{206f}\u{3164}\u{fdd0}\u{fe00}\u{fe0f}\u{feff}\u{ffa0}\u{fff9}\u{fffe}\u{1d173}\u{1fffe}\
                      \u{1ffff}\u{e0001}\u{e0100}\u{e01ef}\u{10ffff}";
        obeyed.chars().for_each(|c| assert!(is_obeyed(c), "U+{:04X}", u32::from(c)));
        let seen = "a~é\u{301}日\u{3163}\u{ffa1}\u{600}\u{6dd}\u{200c}\u{200d}👩\u{e000}\u{fdf0}";
        seen.chars().for_each(|c| assert!(!is_obeyed(c), "U+{:04X}", u32::from(c)));
    }

    #[test]
    fn escaped_json_has_the_same_value() {
        let value =
            serde_json::json!({ "a\u{7f}": "\u{9b}2J\u{202e}\u{e0001}\u{1b}\n", "b": ["ü", 1.5] });
        let text = crate::json::to_pretty(&value);
        assert!(!text.contains(|c| is_obeyed(c) && c != '\n'), "{text}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), value);
    }
}
