//! Formats values as Python does.

use super::held::longest_text;
use super::value::{Dict, Value};
use super::{Fail, Fallible};

impl Value {
    /// Python's `str`.
    pub fn to_text(&self) -> Fallible<String> {
        match self {
            Self::Undefined(_) => Ok(String::new()),
            Self::Str(text) | Self::Markup(text) => Ok(text.to_string()),
            _ => self.repr(),
        }
    }

    /// Python's `repr`.
    pub fn repr(&self) -> Fallible<String> {
        let mut text = String::new();
        self.write(&mut text, 0)?;
        Ok(text)
    }

    fn write(&self, out: &mut String, depth: usize) -> Fallible<()> {
        if depth > 500 || out.len() > longest_text() {
            return Err(Fail::new("a value is too large to be printed"));
        }
        match self {
            Self::Undefined(_) => out.push_str("Undefined"),
            Self::None => out.push_str("None"),
            Self::Bool(value) => out.push_str(if *value { "True" } else { "False" }),
            Self::Int(value) => out.push_str(&value.to_string()),
            Self::Float(value) => out.push_str(&float(*value)),
            Self::Str(text) => quoted(text, out),
            Self::Markup(text) => {
                out.push_str("Markup(");
                quoted(text, out);
                out.push(')');
            }
            Self::List(items) => write_list(items, ["[", "]"], out, depth)?,
            Self::Tuple(items) if items.len() == 1 => {
                write_list(items, ["(", ",)"], out, depth)?;
            }
            Self::Tuple(items) => write_list(items, ["(", ")"], out, depth)?,
            Self::View(_, items) => {
                out.push_str(self.type_name());
                write_list(items, ["([", "])"], out, depth)?;
            }
            Self::Dict(dict) => write_dict(dict, out, depth)?,
            Self::Range { start, step, length } => {
                let stop = start + step * *length as i128;
                out.push_str(&format!("range({start}, {stop}"));
                out.push_str(&if *step == 1 { ")".to_owned() } else { format!(", {step})") });
            }
            Self::Namespace(fields) => {
                out.push_str("<Namespace ");
                write_dict(&fields.fields.borrow(), out, depth)?;
                out.push('>');
            }
            Self::Macro(macro_) => out.push_str(&format!("<Macro '{}'>", macro_.0.name)),
            Self::Loop(state) => {
                out.push_str(&format!("<LoopContext {}/{}>", state.index(), state.length()))
            }
            Self::Blocks(_) => out.push_str("<TemplateReference None>"),
            Self::Generator(_)
            | Self::Block(_)
            | Self::Method(_)
            | Self::Function(_)
            | Self::Cycler(_)
            | Self::Joiner(_) => return Err(printed_by_address(self.type_name())),
        }
        Ok(())
    }
}

fn printed_by_address(type_name: &str) -> Fail {
    Fail::new(format!("a {type_name} is printed with its address in memory: add | list"))
}

fn write_list(
    items: &[Value],
    [begin, end]: [&str; 2],
    out: &mut String,
    depth: usize,
) -> Fallible<()> {
    out.push_str(begin);
    for (index, item) in items.iter().enumerate() {
        out.push_str(if index > 0 { ", " } else { "" });
        item.write(out, depth + 1)?;
    }
    out.push_str(end);
    Ok(())
}

fn write_dict(dict: &Dict, out: &mut String, depth: usize) -> Fallible<()> {
    out.push('{');
    for (index, (key, value)) in dict.entries().iter().enumerate() {
        out.push_str(if index > 0 { ", " } else { "" });
        key.write(out, depth + 1)?;
        out.push_str(": ");
        value.write(out, depth + 1)?;
    }
    out.push('}');
    Ok(())
}

/// Python's `repr` of a float.
pub(super) fn float(value: f64) -> String {
    if value.is_nan() {
        return "nan".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf".into() } else { "-inf".into() };
    }
    let text = format!("{value:e}");
    let Some((digits, exponent)) = text.split_once('e') else { return text };
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if value == 0.0 || (-4..16).contains(&exponent) {
        let plain = format!("{value}");
        return if plain.contains('.') { plain } else { plain + ".0" };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

/// Returns whether Python prints `c` as it is. The standard library's escapes follow the same rule
/// of Unicode, except for combining marks at the start of a text.
pub(super) fn is_printable(c: char) -> bool {
    if c.is_alphanumeric() {
        return true;
    }
    let mut text = String::from("a");
    text.push(c);
    !text.escape_debug().to_string().starts_with("a\\u{")
}

fn quoted(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            _ if c == quote => {
                out.push('\\');
                out.push(c);
            }
            ' '..='~' => out.push(c),
            _ if u32::from(c) > 0x7f && is_printable(c) => out.push(c),
            _ => escape(c, out),
        }
    }
    out.push(quote);
}

fn escape(c: char, out: &mut String) {
    match u32::from(c) {
        code @ 0..=0xff => out.push_str(&format!("\\x{code:02x}")),
        code @ 0x100..=0xffff => out.push_str(&format!("\\u{code:04x}")),
        code => out.push_str(&format!("\\U{code:08x}")),
    }
}

/// Returns Python's `ascii` of a value with this `repr`.
pub(super) fn ascii(repr: &str) -> String {
    let mut result = String::with_capacity(repr.len());
    for c in repr.chars() {
        if c.is_ascii() { result.push(c) } else { escape(c, &mut result) }
    }
    result
}
