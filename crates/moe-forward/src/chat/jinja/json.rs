//! `tojson`, for which transformers uses Python's `json.dumps`.

use moe_checkpoint::json::{kept_number, kept_text};

use super::held::longest_text;
use super::repr::float;
use super::sorting::sorted;
use super::value::{Dict, Value};
use super::{Fail, Fallible};

/// Converts a JSON value to Python's. Numbers that `moe_checkpoint::json::keep_numbers` has kept
/// become numbers again.
///
/// # Errors
/// An integer of more than 128 bits.
pub(super) fn value(json: &serde_json::Value) -> Fallible<Value> {
    Ok(match json {
        serde_json::Value::Null => Value::None,
        serde_json::Value::Bool(value) => Value::Bool(*value),
        serde_json::Value::Number(number) => {
            let integer = number.as_i64().map(i128::from).or(number.as_u64().map(i128::from));
            integer.map_or_else(|| Value::Float(number.as_f64().unwrap_or(f64::NAN)), Value::Int)
        }
        serde_json::Value::String(text) => match kept_number(text) {
            Some(number) => kept(number)?,
            None => kept_text(text).into(),
        },
        serde_json::Value::Array(items) => {
            items.iter().map(value).collect::<Fallible<Vec<_>>>()?.into()
        }
        serde_json::Value::Object(fields) => {
            let mut dict = Dict::default();
            for (key, field) in fields {
                dict.insert(kept_text(key).into(), value(field)?);
            }
            dict.into_value()
        }
    })
}

fn kept(number: &str) -> Fallible<Value> {
    Ok(match number {
        "NaN" => Value::Float(f64::NAN),
        "Infinity" => Value::Float(f64::INFINITY),
        "-Infinity" => Value::Float(f64::NEG_INFINITY),
        _ => match number.parse::<i128>() {
            Ok(integer) => Value::Int(integer),
            // A number with a point or an exponent overflows to infinity, as in Python.
            Err(_) if number.contains(['.', 'e', 'E']) => {
                Value::Float(number.parse().unwrap_or(f64::NAN))
            }
            Err(_) => return Err(Fail::new("an integer of more than 128 bits is not supported")),
        },
    })
}

/// The options of `tojson`.
pub(super) struct Style {
    pub ensure_ascii: bool,
    pub indent: Option<String>,
    pub item_separator: String,
    pub key_separator: String,
    pub sort_keys: bool,
}

impl Style {
    /// Formats `value` as JSON.
    pub fn dumps(&self, value: &Value) -> Fallible<String> {
        let mut out = String::new();
        self.write(value, &mut out, 0)?;
        Ok(out)
    }

    fn write(&self, value: &Value, out: &mut String, depth: usize) -> Fallible<()> {
        let indentation = self.indent.as_ref().map_or(0, |indent| indent.len() * (depth + 1));
        if depth > 500 || out.len() + indentation > longest_text() {
            return Err(Fail::new("a value is too large for tojson"));
        }
        match value {
            Value::None => out.push_str("null"),
            Value::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            Value::Int(value) => out.push_str(&value.to_string()),
            Value::Float(value) => out.push_str(&number(*value)),
            Value::Str(text) | Value::Markup(text) => self.quote(text, out),
            Value::List(items) | Value::Tuple(items) => self.write_list(items, out, depth)?,
            Value::Dict(dict) => self.write_dict(dict, out, depth)?,
            _ => {
                let name = value.type_name();
                return Err(Fail::new(format!("Object of type {name} is not JSON serializable")));
            }
        }
        Ok(())
    }

    fn write_list(&self, items: &[Value], out: &mut String, depth: usize) -> Fallible<()> {
        out.push('[');
        for (index, item) in items.iter().enumerate() {
            self.separate(index, depth + 1, out);
            self.write(item, out, depth + 1)?;
        }
        self.close(items.is_empty(), depth, out);
        out.push(']');
        Ok(())
    }

    fn write_dict(&self, dict: &Dict, out: &mut String, depth: usize) -> Fallible<()> {
        out.push('{');
        let mut entries: Vec<&(Value, Value)> = dict.entries().iter().collect();
        if self.sort_keys {
            entries = sorted(entries, &mut |a, b| a.0.compare(&b.0))?;
        }
        for (index, (key, item)) in entries.into_iter().enumerate() {
            self.separate(index, depth + 1, out);
            self.quote(&json_key(key)?, out);
            out.push_str(&self.key_separator);
            self.write(item, out, depth + 1)?;
        }
        self.close(dict.entries().is_empty(), depth, out);
        out.push('}');
        Ok(())
    }

    fn separate(&self, index: usize, depth: usize, out: &mut String) {
        if index > 0 {
            out.push_str(&self.item_separator);
        }
        if let Some(indent) = &self.indent {
            out.push('\n');
            out.push_str(&indent.repeat(depth));
        }
    }

    fn close(&self, is_empty: bool, depth: usize, out: &mut String) {
        if let (Some(indent), false) = (&self.indent, is_empty) {
            out.push('\n');
            out.push_str(&indent.repeat(depth));
        }
    }

    fn quote(&self, text: &str, out: &mut String) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\x08' => out.push_str("\\b"),
                '\x0c' => out.push_str("\\f"),
                '\0'..='\x1f' => out.push_str(&format!("\\u{:04x}", u32::from(c))),
                ' '..='~' => out.push(c),
                _ if self.ensure_ascii => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                _ => out.push(c),
            }
        }
        out.push('"');
    }
}

fn number(value: f64) -> String {
    match float(value).as_str() {
        "nan" => "NaN".into(),
        "inf" => "Infinity".into(),
        "-inf" => "-Infinity".into(),
        text => text.into(),
    }
}

fn json_key(key: &Value) -> Fallible<String> {
    match key {
        Value::Str(text) | Value::Markup(text) => Ok(text.to_string()),
        Value::None => Ok("null".into()),
        Value::Bool(value) => Ok(value.to_string()),
        Value::Int(value) => Ok(value.to_string()),
        Value::Float(value) => Ok(number(*value)),
        _ => Err(Fail::new(format!(
            "keys must be str, int, float, bool or None, not {}",
            key.type_name()
        ))),
    }
}
