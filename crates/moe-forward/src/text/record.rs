//! A line of JSON Lines, read as Python's `json` reads it: NaN and infinities, the last of two equal keys, any mask of truth values.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

/// A document, before it is tokenized.
#[derive(Debug, PartialEq)]
pub(super) enum Record {
    Text(String),
    /// A conversation, as a chat template takes it, and the tools that it is offered.
    Messages(Value, Option<Value>),
    /// Token ids, and which of them are to be seen, if it says.
    Ids(Vec<u32>, Option<Vec<bool>>),
}

/// What the beginning of a line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// An object, and maybe more behind it.
    Whole,
    /// An object that isn't over.
    Open,
    /// Something else.
    Other,
}

/// The record that `line` holds, else what is wrong with it.
pub(super) fn parse(line: &[u8]) -> Result<Record, String> {
    let error = match serde_json::from_slice::<Fields<'_>>(line) {
        Ok(fields) => return fields.record(),
        Err(error) => error,
    };
    let Some(line) = without_nan(line) else { return Err(said(&error)) };
    serde_json::from_slice::<Fields<'_>>(&line).map_err(|e| said(&e))?.record()
}

/// Whether `line` begins with an object of JSON that has a key.
pub(super) fn object_start(line: &[u8]) -> Start {
    let is_object = line.first() == Some(&b'{') && line[1..].trim_ascii_start().first() == Some(&b'"');
    if !is_object {
        return Start::Other;
    }
    let line = without_nan(line).map_or(Cow::Borrowed(line), Cow::Owned);
    match serde_json::Deserializer::from_slice(&line).into_iter::<IgnoredAny>().next() {
        Some(Ok(_)) => Start::Whole,
        Some(Err(error)) if error.is_eof() => Start::Open,
        _ => Start::Other,
    }
}

fn said(error: &serde_json::Error) -> String {
    let text = error.to_string().replace("expected u32", "expected a token id");
    if text.contains("surrogate") || text.contains("end of hex escape") {
        return format!("{text}: half of a surrogate pair is no character, and no tokenizer takes it");
    }
    text
}

/// `line` with `null` in the place of NaN and infinities, which Python writes; none where it has no such.
fn without_nan(line: &[u8]) -> Option<Vec<u8>> {
    let mut found = false;
    let mut clean = Vec::new();
    let mut at = 0;
    while at < line.len() {
        let rest = &line[at..];
        if rest[0] == b'"' {
            let end = string_end(rest);
            clean.extend_from_slice(&rest[..end]);
            at += end;
            continue;
        }
        let name = [&b"NaN"[..], b"Infinity", b"-Infinity"].into_iter().find(|name| rest.starts_with(name));
        clean.extend_from_slice(name.map_or(&rest[..1], |_| b"null"));
        at += name.map_or(1, <[u8]>::len);
        found |= name.is_some();
    }
    found.then_some(clean)
}

/// Where the string ends that `text` begins with: behind its quote, or at the end.
fn string_end(text: &[u8]) -> usize {
    let mut at = 1;
    while let Some(found) = memchr::memchr2(b'"', b'\\', text.get(at..).unwrap_or_default()) {
        at += found;
        if text[at] == b'"' {
            return at + 1;
        }
        at += 2;
    }
    text.len()
}

/// What a line holds of what we know.
#[derive(Default)]
struct Fields<'a> {
    text: Option<String>,
    messages: Option<Value>,
    conversations: Option<Value>,
    tools: Option<Value>,
    input_ids: Option<Vec<u32>>,
    attention_mask: Option<Vec<Truth>>,
    /// Names of its other keys.
    others: Vec<Cow<'a, str>>,
}

/// A name that isn't known is said with a few of its neighbours.
const MAX_OTHERS: usize = 8;

impl Fields<'_> {
    fn record(self) -> Result<Record, String> {
        let Fields { text, messages, conversations, tools, input_ids, attention_mask, others } = self;
        if let Some(ids) = input_ids {
            let Some(mask) = attention_mask else { return Ok(Record::Ids(ids, None)) };
            if mask.len() != ids.len() {
                return Err(format!("{} token ids, but an attention_mask of {}", ids.len(), mask.len()));
            }
            return Ok(Record::Ids(ids, Some(mask.into_iter().map(|Truth(seen)| seen).collect())));
        }
        match (text, messages, conversations) {
            (Some(text), _, _) => Ok(Record::Text(text)),
            (None, Some(Value::Array(messages)), _) => Ok(Record::Messages(messages.into(), tools)),
            (None, Some(_), _) => Err("\"messages\" is not a list".to_owned()),
            (None, None, Some(Value::Array(turns))) => Ok(Record::Messages(share_gpt(turns)?, tools)),
            (None, None, Some(_)) => Err("\"conversations\" is not a list".to_owned()),
            (None, None, None) if others.is_empty() => Err("none of the known keys".to_owned()),
            (None, None, None) => Err(format!("none of the known keys, but \"{}\"", others.join("\", \""))),
        }
    }
}

/// ShareGPT's turns (`from`, `value`) as messages (`role`, `content`); turns that are messages already stay as they are.
fn share_gpt(turns: Vec<Value>) -> Result<Value, String> {
    let message = |turn: Value| {
        let (Some(from), Some(value)) = (turn["from"].as_str(), turn.get("value")) else {
            let is_message = turn.get("role").is_some();
            return if is_message {
                Ok(turn)
            } else {
                Err("a turn of \"conversations\" lacks \"from\" or \"value\"".into())
            };
        };
        let role = match from {
            "human" | "user" => "user",
            "gpt" | "assistant" | "chatgpt" | "bing" | "bard" | "model" => "assistant",
            "system" | "tool" => from,
            other => {
                return Err(format!("\"conversations\" has a turn from {other:?}, which is no role that is known"));
            }
        };
        Ok(serde_json::json!({ "role": role, "content": value }))
    };
    turns.into_iter().map(message).collect::<Result<Vec<_>, _>>().map(Value::from)
}

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<'de>, A::Error> {
                let mut fields = Fields::default();
                // As in Python, a key that comes again takes the place of the first.
                while let Some(key) = map.next_key::<Cow<'de, str>>()? {
                    match &*key {
                        "text" => fields.text = map.next_value()?,
                        "messages" => fields.messages = map.next_value()?,
                        "conversations" => fields.conversations = map.next_value()?,
                        "tools" => fields.tools = map.next_value()?,
                        "input_ids" => fields.input_ids = map.next_value()?,
                        "attention_mask" => fields.attention_mask = map.next_value()?,
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                            if fields.others.len() < MAX_OTHERS {
                                fields.others.push(key);
                            }
                        }
                    }
                }
                Ok(fields)
            }
        }
        deserializer.deserialize_map(Object)
    }
}

/// A truth value as Python has them: a number that isn't 0, or true.
#[derive(Clone, Copy)]
struct Truth(bool);

impl<'de> Deserialize<'de> for Truth {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
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

            fn visit_f64<E>(self, value: f64) -> Result<Truth, E> {
                Ok(Truth(value != 0.0))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<Truth, A::Error> {
                Err(serde::de::Error::custom("\"attention_mask\" is a list of lists: give one sequence a line"))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(line: &str) -> Result<String, String> {
        match parse(line.as_bytes())? {
            Record::Text(text) => Ok(text),
            other => panic!("{other:?}"),
        }
    }

    /// What Python 3.11's `json.loads(line)["text"]` gives.
    #[test]
    fn lines_are_read_as_python_reads_them() {
        let cases = [
            (r#"{"text": "a", "score": NaN}"#, "a"),
            (r#"{"score": Infinity, "text": "a", "low": -Infinity}"#, "a"),
            (r#"{"text": "NaN is \"Infinity\\", "x": [NaN, {"y": -Infinity}]}"#, "NaN is \"Infinity\\"),
            (r#"{"text": "a", "text": "b"}"#, "b"),
            (r#"{"text": "fine \ud83d\ude00"}"#, "fine 😀"),
            ("\t{\"text\": \"a\"} \r", "a"),
            // Half a pair where nobody looks.
            (r#"{"text": "a", "other": "\ud83d"}"#, "a"),
            (r#"{"other": {"text": 5}, "text": "a", "messages": null}"#, "a"),
        ];
        for (line, wanted) in cases {
            assert_eq!(text(line).as_deref(), Ok(wanted), "{line}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let cases = [
            (r#"{"text": "half \ud83d pair"}"#, "surrogate pair"),
            (r#"{"text": "half \ude00 pair"}"#, "surrogate pair"),
            (r#"{"text": 5}"#, "expected a string"),
            (r#"{"instruction": "a", "output": "b"}"#, r#""instruction", "output""#),
            (r#"{"messages": "[]"}"#, "not a list"),
            (r#"{"conversations": [{"from": "weather", "value": "a"}]}"#, "\"weather\""),
            (r#"{"input_ids": [1, 2], "attention_mask": [1]}"#, "2 token ids, but an attention_mask of 1"),
            (r#"{"input_ids": [1, -100]}"#, "-100"),
            (r#"{"input_ids": [NaN]}"#, "null"),
            (r#"{"text": "a"},"#, "trailing"),
            ("{}", "none of the known keys"),
            ("[]", "an object"),
            ("{", "EOF"),
        ];
        for (line, wanted) in cases {
            let error = parse(line.as_bytes()).unwrap_err();
            assert!(error.contains(wanted), "{line}: {error}");
        }
    }

    #[test]
    fn masks_are_truth_values() {
        for mask in ["[1, 0, 1]", "[true, false, true]", "[1.0, 0.0, 2]"] {
            let line = format!(r#"{{"input_ids": [5, 6, 7], "attention_mask": {mask}}}"#);
            let wanted = Record::Ids(vec![5, 6, 7], Some(vec![true, false, true]));
            assert_eq!(parse(line.as_bytes()), Ok(wanted), "{line}");
        }
    }

    #[test]
    fn share_gpts_turns_are_messages() {
        let line = r#"{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes"},
                       {"role": "user", "content": "So"}]}"#;
        let wanted = serde_json::json!([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"},
                                        {"role": "user", "content": "So"}]);
        assert_eq!(parse(line.as_bytes()), Ok(Record::Messages(wanted, None)));
    }
}
