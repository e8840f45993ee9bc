//! Carries license and languages from the front matter of the source's card to the result's, since
//! publishing needs them.

use std::fmt::Write as _;
use std::path::Path;

use moe_checkpoint::{is_obeyed, json, read_text, text_without_mark};

use crate::file_names::CARD_FILE;

/// Keys that are carried from one card to the next.
const KEYS: [&str; 4] = ["license", "license_name", "license_link", "language"];
/// Maximum number of lines of front matter, and of a list in it; longer ones don't hold a license
/// or languages.
const MAX_LINES: usize = 256;
const MAX_VALUES: usize = 128;

/// The fields that were found in a card.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Carried {
    /// Lines of YAML. Each value is plain or escaped, so that it can't be anything but a value.
    /// Empty where there is no such card.
    pub yaml: String,
    /// Keys that weren't understood, since their values aren't text or lists of text.
    pub left_out: Vec<&'static str>,
}

/// The value of a key.
enum Value {
    One(Scalar),
    Several(Vec<Scalar>),
}

/// A text, and whether it was quoted.
struct Scalar {
    text: String,
    quoted: bool,
}

/// The fields to carry from the card in `source`.
pub(crate) fn carried(source: &Path) -> Carried {
    let card = read_text(&source.join(CARD_FILE), json::MAX_JSON_BYTES).unwrap_or_default();
    let mut lines = text_without_mark(&card).lines().map(str::trim_end);
    if lines.next() != Some("---") {
        return Carried::default();
    }
    // YAML also allows dots at the end of a document.
    let front: Vec<&str> =
        lines.take_while(|line| !["---", "..."].contains(line)).take(MAX_LINES).collect();
    let mut carried = Carried::default();
    for (index, line) in front.iter().enumerate() {
        let key =
            line.split_once(':').and_then(|(key, _)| KEYS.into_iter().find(|known| *known == key));
        let Some(key) = key else { continue };
        // Lines that are indented, or items of a list, belong to the key above them.
        let belongs = |line: &&&str| line.is_empty() || line.starts_with([' ', '\t', '-', '#']);
        let below: Vec<&str> = front[index + 1..].iter().take_while(belongs).copied().collect();
        match value(&line[key.len() + 1..], &below) {
            Some(value) => value.write(key, &mut carried.yaml),
            None => carried.left_out.push(key),
        }
    }
    carried
}

/// The value of a key: `rest` follows it on its line, and `below` are the lines that belong to it.
fn value(rest: &str, below: &[&str]) -> Option<Value> {
    let below: Vec<&str> = below
        .iter()
        .map(|line| line.trim())
        .filter(|l| !l.is_empty() && !l.starts_with('#'))
        .collect();
    let rest = without_comment(rest.trim());
    if let Some(list) = rest.strip_prefix('[') {
        let items =
            list.strip_suffix(']')?.split(',').map(str::trim).filter(|item| !item.is_empty());
        return below.is_empty().then(|| several(items)).flatten();
    }
    match (rest.is_empty(), below.is_empty()) {
        (false, true) => scalar(rest).map(Value::One),
        (true, false) => {
            several(below.iter().map(|line| line.strip_prefix("- ").map_or("", str::trim)))
        }
        _ => None,
    }
}

fn several<'t>(items: impl Iterator<Item = &'t str>) -> Option<Value> {
    let items: Vec<Scalar> = items.map(scalar).collect::<Option<_>>()?;
    (1..=MAX_VALUES).contains(&items.len()).then_some(Value::Several(items))
}

/// A text on one line; None for what YAML reads as another type.
fn scalar(text: &str) -> Option<Scalar> {
    let text = without_comment(text);
    if text.starts_with('"') {
        // JSON strings are valid YAML strings.
        return serde_json::from_str(text).ok().map(|text| Scalar { text, quoted: true });
    }
    if let Some(rest) = text.strip_prefix('\'') {
        let text = rest.strip_suffix('\'')?.replace("''", "\u{0}");
        return (!text.contains('\''))
            .then(|| Scalar { text: text.replace('\u{0}', "'"), quoted: true });
    }
    const SPECIAL: [char; 18] =
        ['&', '*', '!', '|', '>', '%', '@', '`', '{', '}', '[', ']', ',', '?', ':', '-', '#', '"'];
    let is_text = !text.is_empty()
        && !text.starts_with(SPECIAL)
        && !text.contains(": ")
        && !text.ends_with(':');
    is_text.then(|| Scalar { text: text.to_owned(), quoted: false })
}

/// Cuts off a comment, which begins with ` #`. Within quotes, that is part of the text; a comment
/// after a quoted text isn't supported.
fn without_comment(text: &str) -> &str {
    if text.starts_with(['"', '\'']) {
        return text;
    }
    text.split_once(" #").map_or(text, |(text, _)| text.trim_end())
}

impl Value {
    fn write(&self, key: &str, yaml: &mut String) {
        // Writing to a String can't fail.
        let _ = match self {
            Self::One(scalar) => writeln!(yaml, "{key}: {}", scalar.written()),
            Self::Several(items) => {
                let items: String =
                    items.iter().map(|item| format!("- {}\n", item.written())).collect();
                write!(yaml, "{key}:\n{items}")
            }
        };
    }
}

impl Scalar {
    /// A value that was plain and is a word or an address stays plain. All others are quoted, with
    /// characters that could be markup as `\u` and digits, since some readers show front matter as
    /// a part of the page.
    fn written(&self) -> String {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-._/:+".contains(c);
        if !self.quoted
            && self.text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && self.text.chars().all(is_plain)
        {
            return self.text.clone();
        }
        let mut written = String::from("\"");
        for c in self.text.chars() {
            match c {
                '"' | '\\' => written.extend(['\\', c]),
                c if is_obeyed(c) || "<>&`*[]()!|~#$@".contains(c) => {
                    let code = u32::from(c);
                    let _ = if code > 0xffff {
                        write!(written, "\\U{code:08x}")
                    } else {
                        write!(written, "\\u{code:04x}")
                    };
                }
                c => written.push(c),
            }
        }
        written + "\""
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn carried_of(card: &str) -> Carried {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(CARD_FILE), card).unwrap();
        carried(dir.path())
    }

    fn yaml_of(card: &str) -> String {
        let carried = carried_of(card);
        assert!(carried.left_out.is_empty(), "{carried:?}");
        carried.yaml
    }

    #[test]
    fn licences_and_languages_are_carried() {
        assert_eq!(carried(Path::new("nowhere")), Carried::default());
        let card = "---\nlicense: other\nlicense_name: qwen\ntags:\n- chat\nlanguage:\n- en\n- es\nbase_model: x/y\n---\nlicense: no\n";
        assert_eq!(yaml_of(card), "license: other\nlicense_name: qwen\nlanguage:\n- en\n- es\n");
        assert_eq!(yaml_of("# A model\nlicense: mit\n"), "");
        assert_eq!(yaml_of("---\nlicense: mit\r\n---\n"), "license: mit\n");
        assert_eq!(
            yaml_of("---\nlanguage: [en, 'no', \"es\"]  # three\n---\n"),
            "language:\n- en\n- \"no\"\n- \"es\"\n"
        );
        assert_eq!(
            yaml_of("---\nlanguage:\n  - en\n\n  # and\n  - zh-Hans\n---\n"),
            "language:\n- en\n- zh-Hans\n"
        );
        let link = "license_link: https://huggingface.co/Qwen/Qwen3-8B/blob/main/LICENSE\n";
        assert_eq!(yaml_of(&format!("---\n{link}---\n")), link);
        assert_eq!(
            yaml_of("---\nlicense_name: My own, version 2\n---\n"),
            "license_name: \"My own, version 2\"\n"
        );
    }

    /// A value of the source's card is a value in the result's, even if it would mean something
    /// else there unquoted.
    #[test]
    fn values_stay_values() {
        let hostile = [
            (
                "license: mit\r---\r# Owned <script>",
                "license: \"mit\\u000d---\\u000d\\u0023 Owned \\u003cscript\\u003e\"\n",
            ),
            (
                "license_name: <img src=x onerror=y>",
                "license_name: \"\\u003cimg src=x onerror=y\\u003e\"\n",
            ),
            (
                "language:\n- en\n- '![x](http://e.vil)'",
                "language:\n- en\n- \"\\u0021\\u005bx\\u005d\\u0028http://e.vil\\u0029\"\n",
            ),
            ("license: \"a\\u001b[2J\"", "license: \"a\\u001b\\u005b2J\"\n"),
        ];
        for (front, expected) in hostile {
            let yaml = yaml_of(&format!("---\n{front}\n---\n"));
            assert_eq!(yaml, expected, "{front}");
        }
    }

    #[test]
    fn values_that_are_not_text_are_left_out_and_named() {
        for front in [
            "license: |\n  <b>\n  # heading",
            "license: >-\n  a",
            "license: &a mit",
            "license: {a: b}",
            "license: mit\n  # x\n  more",
            "license:\n  name: mit",
            "license:\n- - mit",
            "license: [[mit]]",
            "license: a: b",
            "license:",
        ] {
            let found = carried_of(&format!("---\n{front}\ntags: [x]\n---\n"));
            assert_eq!(
                found,
                Carried { yaml: String::new(), left_out: vec!["license"] },
                "{front}"
            );
        }
    }
}
