//! Parses a line of JSON Lines as Python's `json` does: NaN and infinities are accepted, the last
//! of equal keys counts, and masks may have any truth values.

use std::fmt;

use moe_checkpoint::json::{keep_numbers, kept_number, kept_text};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use super::wrong::{Cause, Wrong};

/// A document before tokenization.
#[derive(Debug, PartialEq)]
pub(super) enum Record {
    Text(String),
    /// A conversation in the form that chat templates take, and the tools that it offers.
    Messages(Value, Option<Value>),
    /// Token ids, and whether each is visible, if the record has a mask.
    Ids(Vec<u32>, Option<Vec<bool>>),
}

/// What a line begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LineStart {
    /// A complete object, after which more may follow.
    Whole,
    /// An object that doesn't end in the line.
    Open,
    /// Anything else.
    Other,
}

/// Parses the record in `line`.
pub(super) fn parse(line: &[u8]) -> Result<Record, Wrong> {
    let line = std::str::from_utf8(line)
        .map_err(|e| Wrong::new(Cause::NotUtf8, format!("this is not UTF-8: {e}")))?;
    let line = keep_numbers(line);
    let fields = serde_json::from_str::<RecordFields<'_>>(&line);
    fields.map_err(|e| Wrong::of_line(&line, &e))?.record()
}

/// Returns whether `line` begins with a JSON object that has a key.
pub(super) fn object_start(line: &[u8]) -> LineStart {
    let is_object =
        line.first() == Some(&b'{') && line[1..].trim_ascii_start().first() == Some(&b'"');
    if !is_object {
        return LineStart::Other;
    }
    // The examined bytes may end within a character.
    let valid = line.utf8_chunks().next().map_or("", |chunk| chunk.valid());
    match serde_json::Deserializer::from_str(&keep_numbers(valid)).into_iter::<IgnoredAny>().next()
    {
        Some(Ok(_)) => LineStart::Whole,
        Some(Err(error)) if error.is_eof() => LineStart::Open,
        _ => LineStart::Other,
    }
}

/// The known fields of a line. Each is parsed when it is needed, since Python ignores errors in
/// fields that aren't used.
#[derive(Default)]
struct RecordFields<'a> {
    text: Option<&'a RawValue>,
    messages: Option<&'a RawValue>,
    conversations: Option<&'a RawValue>,
    tools: Option<&'a RawValue>,
    input_ids: Option<&'a RawValue>,
    attention_mask: Option<&'a RawValue>,
    /// The keys that aren't known.
    others: Vec<UnknownKey>,
}

/// An unknown key.
struct UnknownKey {
    name: String,
    /// Whether the key's value is an array of objects, or a string.
    has_records: bool,
    has_text: bool,
}

impl UnknownKey {
    fn new(name: String, value: &RawValue) -> Self {
        let value = value.get();
        let has_records =
            value.strip_prefix('[').is_some_and(|list| list.trim_start().starts_with('{'));
        Self { name, has_records, has_text: value.starts_with('"') }
    }
}

/// Names under which data sets keep the text of a record.
const TEXTS: [&str; 8] =
    ["content", "body", "document", "raw_content", "article", "story", "passage", "page"];

/// The error about a record that has no keys but `others`.
fn unknown(others: &[UnknownKey]) -> Wrong {
    if others.is_empty() {
        return wrong("none of the known keys");
    }
    let names: Vec<&str> = others.iter().map(|other| other.name.as_str()).collect();
    let what = format!("none of the known keys, but \"{}\"", names.join("\", \""));
    if let Some(UnknownKey { name, .. }) = others.iter().find(|other| other.has_records) {
        let what = format!("{what}, and a list of records under \"{name}\"");
        return Wrong::new(Cause::RecordsUnder(name.clone()), what);
    }
    match others.iter().find(|other| other.has_text && TEXTS.contains(&other.name.as_str())) {
        Some(UnknownKey { name, .. }) => {
            let what = format!("{what}, and a text under \"{name}\"");
            Wrong::new(Cause::TextUnder(name.clone()), what)
        }
        None => wrong(what),
    }
}

fn wrong(what: impl Into<String>) -> Wrong {
    Wrong::new(Cause::Other, what)
}

/// Maximum number of unknown keys that a message lists.
const MAX_OTHERS: usize = 8;

impl RecordFields<'_> {
    fn record(self) -> Result<Record, Wrong> {
        if let Some(ids) = self.input_ids.map(read::<Option<Vec<TokenId>>>).transpose()?.flatten() {
            return tokens(ids, self.attention_mask);
        }
        if self.text.is_some_and(|text| text.get().starts_with('[')) {
            return Err(Wrong::new(Cause::TextIsList, "\"text\" is a list, expected a string"));
        }
        if let Some(text) = self.text.map(read::<Option<String>>).transpose()?.flatten() {
            return match kept_number(&text) {
                Some(number) => Err(wrong(format!("\"text\" is {number}, expected a string"))),
                None => Ok(Record::Text(kept_text(&text).to_owned())),
            };
        }
        let conversation = self.conversation()?;
        Ok(Record::Messages(conversation, self.tools.map(read::<Value>).transpose()?))
    }

    fn conversation(&self) -> Result<Value, Wrong> {
        let messages = self.messages.map(read::<Value>).transpose()?;
        let turns = self.conversations.map(read::<Value>).transpose()?;
        match (messages, turns) {
            (Some(Value::Array(messages)), _) => Ok(Value::from(messages)),
            (None | Some(Value::Null), Some(Value::Array(turns))) => share_gpt(turns),
            (None | Some(Value::Null), None | Some(Value::Null)) => Err(unknown(&self.others)),
            (None | Some(Value::Null), Some(_)) => Err(wrong("\"conversations\" is not a list")),
            (Some(_), _) => Err(wrong("\"messages\" is not a list")),
        }
    }
}

/// Returns token ids, with the visibility that the mask gives each.
fn tokens(ids: Vec<TokenId>, mask: Option<&RawValue>) -> Result<Record, Wrong> {
    let ids: Vec<u32> = ids.into_iter().map(|TokenId(id)| id).collect();
    let mask = mask.map(read::<Option<Vec<Truth>>>).transpose()?.flatten();
    let Some(mask) = mask else { return Ok(Record::Ids(ids, None)) };
    if mask.len() != ids.len() {
        let what = format!("{} token ids, but an attention_mask of {}", ids.len(), mask.len());
        return Err(wrong(what));
    }
    Ok(Record::Ids(ids, Some(mask.into_iter().map(|Truth(seen)| seen).collect())))
}

fn read<'a, T: Deserialize<'a>>(value: &'a RawValue) -> Result<T, Wrong> {
    serde_json::from_str(value.get()).map_err(|e| Wrong::of_value(value.get(), &e))
}

/// Converts turns of ShareGPT (`from`, `value`) to messages (`role`, `content`). Turns that are
/// messages already stay unchanged.
fn share_gpt(turns: Vec<Value>) -> Result<Value, Wrong> {
    turns.into_iter().map(message).collect::<Result<Vec<_>, _>>().map(Value::from)
}

fn message(turn: Value) -> Result<Value, Wrong> {
    let (Some(from), Some(value)) = (turn["from"].as_str(), turn.get("value")) else {
        return match turn.get("role") {
            Some(_) => Ok(turn),
            None => Err(wrong("a turn of \"conversations\" lacks \"from\" or \"value\"")),
        };
    };
    let role = match from {
        "human" | "user" => "user",
        "gpt" | "assistant" | "chatgpt" | "bing" | "bard" | "model" => "assistant",
        "system" | "tool" => from,
        other => {
            return Err(wrong(format!(
                "\"conversations\" has a turn from {other:?}, which is not a known role"
            )));
        }
    };
    Ok(serde_json::json!({ "role": role, "content": value }))
}

impl<'de> Deserialize<'de> for RecordFields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(FieldsVisitor)
    }
}

struct FieldsVisitor;

impl<'de> Visitor<'de> for FieldsVisitor {
    type Value = RecordFields<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RecordFields<'de>, A::Error> {
        let mut fields = RecordFields::default();
        // As in Python, the last of equal keys counts.
        while let Some(RecordKey(key)) = map.next_key()? {
            let field = match key.as_str() {
                "text" => &mut fields.text,
                "messages" => &mut fields.messages,
                "conversations" => &mut fields.conversations,
                "tools" => &mut fields.tools,
                "input_ids" => &mut fields.input_ids,
                "attention_mask" => &mut fields.attention_mask,
                _ => {
                    let value = map.next_value::<&RawValue>()?;
                    if fields.others.len() < MAX_OTHERS {
                        fields.others.push(UnknownKey::new(key, value));
                    }
                    continue;
                }
            };
            *field = Some(map.next_value()?);
        }
        Ok(fields)
    }
}

/// A key. Half of a surrogate pair isn't an error in it, since no such key is looked up.
struct RecordKey(String);

impl<'de> Deserialize<'de> for RecordKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct KeyVisitor;
        impl Visitor<'_> for KeyVisitor {
            type Value = RecordKey;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<RecordKey, E> {
                Ok(RecordKey(String::from_utf8_lossy(bytes).into_owned()))
            }
        }
        deserializer.deserialize_bytes(KeyVisitor)
    }
}

/// A token id. As in Python, -0 is 0.
struct TokenId(u32);

impl<'de> Deserialize<'de> for TokenId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TokenIdVisitor;
        impl Visitor<'_> for TokenIdVisitor {
            type Value = TokenId;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a token id")
            }

            fn visit_u64<E: serde::de::Error>(self, id: u64) -> Result<TokenId, E> {
                let unexpected = serde::de::Unexpected::Unsigned(id);
                u32::try_from(id).map(TokenId).map_err(|_| E::invalid_value(unexpected, &self))
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<TokenId, E> {
                match kept_number(text) {
                    Some("-0") => Ok(TokenId(0)),
                    Some(number) => Err(E::custom(format!("{number} is not a token id"))),
                    None => Err(E::invalid_type(serde::de::Unexpected::Str(text), &self)),
                }
            }
        }
        deserializer.deserialize_any(TokenIdVisitor)
    }
}

/// A truth value as in Python: true, or a number other than 0.
#[derive(Clone, Copy)]
struct Truth(bool);

impl<'de> Deserialize<'de> for Truth {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TruthVisitor)
    }
}

struct TruthVisitor;

impl<'de> Visitor<'de> for TruthVisitor {
    type Value = Truth;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("0, 1, true or false")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Truth, E> {
        Ok(Truth(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Truth, E> {
        Ok(Truth(value != 0))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Truth, E> {
        Ok(Truth(value != 0))
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Truth, E> {
        // NaN is true, and so are numbers that are out of range.
        kept_number(text)
            .map(|number| Truth(number != "-0"))
            .ok_or_else(|| E::invalid_type(serde::de::Unexpected::Str(text), &self))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Truth, E> {
        Ok(Truth(value != 0.0))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<Truth, A::Error> {
        Err(serde::de::Error::custom(
            "\"attention_mask\" is a list of lists: give one sequence a line",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(line: &str) -> Result<String, Wrong> {
        match parse(line.as_bytes())? {
            Record::Text(text) => Ok(text),
            other => panic!("{other:?}"),
        }
    }

    /// The result of Python 3.11's `json.loads(line)["text"]`.
    #[test]
    fn lines_are_read_as_python_reads_them() {
        let cases = [
            (r#"{"text": "a", "score": NaN}"#, "a"),
            (r#"{"score": Infinity, "text": "a", "low": -Infinity}"#, "a"),
            (
                r#"{"text": "NaN is \"Infinity\\", "x": [NaN, {"y": -Infinity}]}"#,
                "NaN is \"Infinity\\",
            ),
            (r#"{"text": "a", "text": "b"}"#, "b"),
            (r#"{"text": "fine \ud83d\ude00"}"#, "fine 😀"),
            ("\t{\"text\": \"a\"} \r", "a"),
            // Half of a pair, and other mistakes, in values that aren't read.
            (r#"{"text": "a", "other": "\ud83d"}"#, "a"),
            (r#"{"text": "a", "\ud83d": 1}"#, "a"),
            (r#"{"text": "a", "messages": [{"content": "\ud83d"}], "tools": "\ud83d"}"#, "a"),
            (r#"{"text": "a", "attention_mask": 1}"#, "a"),
            (r#"{"text": "a", "input_ids": null}"#, "a"),
            (r#"{"other": {"text": 5}, "text": "a", "messages": null}"#, "a"),
        ];
        for (line, wanted) in cases {
            assert_eq!(text(line), Ok(wanted.to_owned()), "{line}");
        }
    }

    #[test]
    fn errors_name_what_is_wrong() {
        let cases = [
            (r#"{"text": "half \ud83d pair"}"#, "surrogate pair"),
            (r#"{"text": "half \ude00 pair"}"#, "surrogate pair"),
            (r#"{"text": 5}"#, "expected a string"),
            (r#"{"instruction": "a", "output": "b"}"#, r#""instruction", "output""#),
            (r#"{"messages": "[]"}"#, "not a list"),
            (r#"{"conversations": [{"from": "weather", "value": "a"}]}"#, "\"weather\""),
            (
                r#"{"input_ids": [1, 2], "attention_mask": [1]}"#,
                "2 token ids, but an attention_mask of 1",
            ),
            (r#"{"input_ids": [1, -100]}"#, "-100"),
            (r#"{"input_ids": [NaN]}"#, "NaN is not a token id"),
            (r#"{"text": 5, "messages": []}"#, "expected a string"),
            (r#"{"text": "a"},"#, "trailing"),
            ("{}", "none of the known keys"),
            ("[]", "an object"),
            ("{", "EOF"),
        ];
        for (line, wanted) in cases {
            let error = parse(line.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(wanted), "{line}: {error}");
        }
    }

    #[test]
    fn masks_are_truth_values() {
        for mask in ["[1, 0, 1]", "[true, false, true]", "[1.0, 0.0, 2]", "[-1, -0, NaN]"] {
            let line = format!(r#"{{"input_ids": [5, 6, 7], "attention_mask": {mask}}}"#);
            let wanted = Record::Ids(vec![5, 6, 7], Some(vec![true, false, true]));
            assert_eq!(parse(line.as_bytes()), Ok(wanted), "{line}");
        }
    }

    #[test]
    fn turns_of_share_gpt_become_messages() {
        let line = r#"{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes"},
                       {"role": "user", "content": "So"}]}"#;
        let wanted = serde_json::json!([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"},
                                        {"role": "user", "content": "So"}]);
        assert_eq!(parse(line.as_bytes()), Ok(Record::Messages(wanted, None)));
    }
}
