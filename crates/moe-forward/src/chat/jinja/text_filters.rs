//! Filters of strings, and of other values after conversion to strings.

use super::args::{CallArgs, integer, integer_or, is_set, required, text, text_or, unless_none};
use super::interpreter::Interpreter;
use super::lexer::is_space;
use super::sequences::pair;
use super::value::{Dict, Items, Str, Value};
use super::{ENTRY_BYTES, Fail, Fallible, letters, operators, percent, splitting, strings};

impl Interpreter {
    pub fn text_filter(&mut self, name: &str, value: &Value, args: CallArgs) -> Fallible<Value> {
        let own = value.to_text()?;
        self.step(own.len())?;
        match name {
            "replace" => self.replace(&own, args),
            "trim" => {
                let [chars] = args.bind(name, ["chars"])?;
                Ok(strings::stripped(&own, "strip", chars.as_ref())?.into())
            }
            "center" => {
                let [width] = args.bind(name, ["width"])?;
                let width = integer_or(80, width, name)?;
                strings::padded(self, &own, "center", width, " ")
            }
            "indent" => self.indent(&text(value, name)?, args),
            "truncate" => truncate(&text(value, name)?, args),
            "format" => percent::format(self, &Str::new(own), &operands(args)),
            "e" | "escape" | "forceescape" => {
                args.none(name)?;
                let is_safe = name != "forceescape" && matches!(value, Value::Markup(_));
                self.room(operators::escaped_bytes(&own))?;
                Ok(Value::Markup(Str::new(if is_safe { own } else { operators::escaped(&own) })))
            }
            _ => {
                args.none(name)?;
                self.room(own.len().saturating_mul(3))?;
                without_args(name, value, own)
            }
        }
    }

    fn replace(&mut self, own: &str, args: CallArgs) -> Fallible<Value> {
        let [old, new, count] = args.bind("replace", ["old", "new", "count"])?;
        let old = required(old, "replace", "old")?.to_text()?;
        let new = required(new, "replace", "new")?.to_text()?;
        let count = integer_or(-1, unless_none(count), "replace")?;
        strings::replaced(self, own, &old, &new, count)
    }

    fn indent(&mut self, own: &Str, args: CallArgs) -> Fallible<Value> {
        let [width, first, blank] = args.bind("indent", ["width", "first", "blank"])?;
        let indention = indention(width)?;
        let blank = is_set(blank);
        let own = format!("{}\n", &**own);
        self.handled(own.matches(splitting::BREAKS).count() * ENTRY_BYTES)?;
        let lines = splitting::lines(&own, false);
        let bytes = own.len().saturating_add(lines.len().saturating_mul(indention.len()));
        self.handled(bytes)?;
        let mut result = if is_set(first) { indention.clone() } else { String::new() };
        for (index, line) in lines.iter().enumerate() {
            if index > 0 {
                result.push('\n');
                if blank || !line.is_empty() {
                    result.push_str(&indention);
                }
            }
            result.push_str(line);
        }
        Ok(result.into())
    }
}

/// Applies filters that take no arguments.
fn without_args(name: &str, value: &Value, own: String) -> Fallible<Value> {
    Ok(match name {
        "upper" => own.to_uppercase().into(),
        "lower" => own.to_lowercase().into(),
        "capitalize" => letters::capitalized(&own).into(),
        "title" => titled(&own).into(),
        "safe" => Value::Markup(Str::new(own)),
        "string" if value.text().is_some() => value.clone(),
        "wordcount" => Value::Int(words(&own)),
        "urlencode" => urlencode(value, &own)?.into(),
        "striptags" => without_tags(&own)?.into(),
        _ => own.into(),
    })
}

/// Converts the arguments of the filter `format` to the operand after `%`.
fn operands(args: CallArgs) -> Value {
    if args.named.is_empty() {
        return Value::Tuple(Items::new(args.positional));
    }
    let mut dict = Dict::default();
    args.named.into_iter().for_each(|(name, value)| dict.insert(name.into(), value));
    dict.into_value()
}

fn indention(width: Option<Value>) -> Fallible<String> {
    match width {
        Some(Value::Str(text)) => Ok(text.to_string()),
        Some(width) => {
            let width = usize::try_from(integer(&width, "indent")?).unwrap_or(0);
            Ok(" ".repeat(width.min(1 << 20)))
        }
        None => Ok("    ".to_owned()),
    }
}

/// `title` by Jinja2's own definition of words. Each word is lowercased separately, so that whether
/// a sigma is final depends on its own word alone.
fn titled(text: &str) -> String {
    let mut result = String::new();
    for word in text.split_inclusive(|c| is_space(c) || "-({[<".contains(c)) {
        let mut letters = word.chars();
        result.extend(letters.next().into_iter().flat_map(char::to_uppercase));
        result.push_str(&letters.as_str().to_lowercase());
    }
    result
}

fn words(text: &str) -> i128 {
    text.split(|c: char| c != '_' && !c.is_alphanumeric()).filter(|word| !word.is_empty()).count()
        as i128
}

/// Markup's `striptags`: removes comments and tags, and collapses white space to single spaces.
fn without_tags(text: &str) -> Fallible<String> {
    if text.contains('&') {
        return Err(Fail::new(
            "striptags of a text with '&', which may begin an entity of HTML, is not supported",
        ));
    }
    let (mut kept, mut rest) = (String::new(), text);
    while let Some(start) = rest.find('<') {
        let tag = &rest[start..];
        let length = match tag.strip_prefix("<!--") {
            Some(comment) => comment.find("-->").map(|end| "<!--".len() + end + "-->".len()),
            None => tag.find('>').map(|end| end + 1),
        };
        // An unclosed one is text, and so is everything after it.
        let Some(length) = length else { break };
        kept.push_str(&rest[..start]);
        rest = &tag[length..];
    }
    kept.push_str(rest);
    Ok(kept.split(is_space).filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" "))
}

fn quoted(text: &str, for_query: bool) -> String {
    const HEX: [u8; 16] = *b"0123456789ABCDEF";
    let mut result = String::new();
    for byte in text.bytes() {
        match byte {
            b'/' if !for_query => result.push('/'),
            b' ' if for_query => result.push('+'),
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'_' | b'.' | b'-' | b'~' => {
                result.push(char::from(byte))
            }
            _ => {
                let [high, low] = [HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]];
                result.extend(['%', char::from(high), char::from(low)]);
            }
        }
    }
    result
}

fn urlencode(value: &Value, own: &str) -> Fallible<String> {
    let pairs: Vec<Value> = match value {
        Value::Dict(dict) => dict.entries().iter().map(pair).collect(),
        Value::List(items) | Value::Tuple(items) | Value::View(_, items) => items.to_vec(),
        _ => return Ok(quoted(own, false)),
    };
    let mut parts = Vec::new();
    for pair in pairs {
        let [key, value]: [Value; 2] = pair
            .iterate()?
            .try_into()
            .map_err(|_| Fail::new("urlencode wants pairs of a key and a value"))?;
        parts.push(format!(
            "{}={}",
            quoted(&key.to_text()?, true),
            quoted(&value.to_text()?, true)
        ));
    }
    Ok(parts.join("&"))
}

fn truncate(own: &str, args: CallArgs) -> Fallible<Value> {
    let [length, kill, end, leeway] =
        args.bind("truncate", ["length", "killwords", "end", "leeway"])?;
    let length = integer_or(255, length, "truncate")?;
    let end = text_or("...", end, "truncate")?;
    let leeway = integer_or(5, unless_none(leeway), "truncate")?;
    let room = length - end.chars().count() as i128;
    if room < 0 || leeway < 0 {
        return Err(Fail::new(format!("truncate to {length} leaves no room for {:?}", &*end)));
    }
    if own.chars().count() as i128 <= length + leeway {
        return Ok(own.into());
    }
    let kept: String = own.chars().take(room as usize).collect();
    let last_gap = if is_set(kill) { None } else { kept.rsplit_once(' ') };
    let kept = last_gap.map_or(&kept[..], |(before, _)| before);
    Ok(format!("{kept}{}", &*end).into())
}
