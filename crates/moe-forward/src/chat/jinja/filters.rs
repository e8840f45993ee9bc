//! Jinja2's filters: what stands behind `|`.

use super::calls::{CallArgs, integer, required, text};
use super::interpreter::Interpreter;
use super::lexer::is_space;
use super::sequences::pair;
use super::value::{Items, Text, Value};
use super::{
    ENTRY_BYTES, Fail, Outcome, attributes, format, json, letters, numbers, operators, strings,
};

/// All filters of Jinja2 3.1.
pub(super) const NAMES: [&str; 54] = [
    "abs",
    "attr",
    "batch",
    "capitalize",
    "center",
    "count",
    "d",
    "default",
    "dictsort",
    "e",
    "escape",
    "filesizeformat",
    "first",
    "float",
    "forceescape",
    "format",
    "groupby",
    "indent",
    "int",
    "join",
    "last",
    "length",
    "list",
    "lower",
    "items",
    "map",
    "min",
    "max",
    "pprint",
    "random",
    "reject",
    "rejectattr",
    "replace",
    "reverse",
    "round",
    "safe",
    "select",
    "selectattr",
    "slice",
    "sort",
    "string",
    "striptags",
    "sum",
    "title",
    "trim",
    "truncate",
    "unique",
    "upper",
    "urlencode",
    "urlize",
    "wordcount",
    "wordwrap",
    "xmlattr",
    "tojson",
];

impl Interpreter {
    /// What `value | name(args)` gives.
    pub fn filter(&mut self, name: &str, value: Value, args: CallArgs) -> Outcome<Value> {
        self.step(0)?;
        match name {
            "d" | "default" => {
                let [default, boolean] = args.bind(name, ["default_value", "boolean"])?;
                let is_missing = value.is_undefined()
                    || boolean.is_some_and(|b| b.is_true()) && !value.is_true();
                Ok(if is_missing { default.unwrap_or_else(|| "".into()) } else { value })
            }
            "abs" | "round" | "int" | "float" | "filesizeformat" => {
                numbers::filter(name, &value, args)
            }
            "first" | "last" | "min" | "max" | "sum" | "count" | "length" => {
                self.one(name, value, args)
            }
            "list" | "batch" | "slice" | "reverse" | "items" | "dictsort" | "sort" | "unique"
            | "groupby" => self.many(name, value, args),
            "map" => self.map(value, args),
            "select" | "reject" | "selectattr" | "rejectattr" => self.select(name, value, args),
            "attr" => {
                let [attribute] = args.bind(name, ["name"])?;
                let attribute = text(&required(attribute, name, "name")?, name)?;
                match &value {
                    // Only what Python calls an attribute, not the keys of a dictionary.
                    Value::Dict(dict) if dict.get_text(&attribute).is_some() => {
                        let empty = super::value::Dict::default().into_value();
                        attributes::attribute(&empty, &attribute)
                    }
                    _ => attributes::attribute(&value, &attribute),
                }
            }
            "tojson" => tojson(&value, args),
            "join" => self.join(&value, args),
            "xmlattr" => xmlattr(&value, args),
            "pprint" | "random" | "urlize" | "wordwrap" => {
                Err(Fail::new(format!("the filter '{name}' is not supported")))
            }
            _ if NAMES.contains(&name) => self.text_filter(name, &value, args),
            _ => Err(Fail::new(format!("No filter named '{name}'."))),
        }
    }

    fn join(&mut self, value: &Value, args: CallArgs) -> Outcome<Value> {
        let [separator, attribute] = args.bind("join", ["d", "attribute"])?;
        let separator = separator.map_or(Ok(String::new()), |separator| separator.to_text())?;
        let attribute = attribute.filter(|attribute| !matches!(attribute, Value::None));
        let mut parts = Vec::new();
        for item in value.iterate()? {
            let item = attribute
                .as_ref()
                .map_or(Ok(item.clone()), |path| self.at_path(&item, path, None))?;
            parts.push(Text::new(item.to_text()?));
            self.step(0)?;
        }
        strings::joined(self, &separator, &parts)
    }

    fn text_filter(&mut self, name: &str, value: &Value, args: CallArgs) -> Outcome<Value> {
        let own = value.to_text()?;
        self.step(own.len())?;
        match name {
            "replace" => {
                let [old, new, count] = args.bind(name, ["old", "new", "count"])?;
                let old = required(old, name, "old")?.to_text()?;
                let new = required(new, name, "new")?.to_text()?;
                let count = match count {
                    None | Some(Value::None) => -1,
                    Some(count) => integer(&count, name)?,
                };
                strings::replaced(self, &own, &old, &new, count)
            }
            "trim" => {
                let [chars] = args.bind(name, ["chars"])?;
                Ok(strings::stripped(&own, "strip", chars.as_ref())?.into())
            }
            "center" => {
                let [width] = args.bind(name, ["width"])?;
                let width = width.map_or(Ok(80), |width| integer(&width, name))?;
                strings::padded(self, &own, "center", width, " ")
            }
            "indent" => self.indent(&text(value, name)?, args),
            "truncate" => truncate(&text(value, name)?, args),
            "format" if args.named.is_empty() => {
                format::percent(self, &Text::new(own), &Value::Tuple(Items::new(args.positional)))
            }
            "format" => {
                let mut dict = super::value::Dict::default();
                args.named.into_iter().for_each(|(name, value)| dict.insert(name.into(), value));
                format::percent(self, &Text::new(own), &dict.into_value())
            }
            "e" | "escape" | "forceescape" => {
                args.bind(name, []).map(|[]| ())?;
                let is_safe = name != "forceescape" && matches!(value, Value::Markup(_));
                self.room(operators::escaped_bytes(&own))?;
                Ok(Value::Markup(Text::new(if is_safe { own } else { operators::escaped(&own) })))
            }
            _ => {
                args.bind(name, []).map(|[]| ())?;
                self.room(own.len().saturating_mul(3))?;
                Ok(match name {
                    "upper" => own.to_uppercase().into(),
                    "lower" => own.to_lowercase().into(),
                    "capitalize" => letters::capitalized(&own).into(),
                    "title" => titled(&own).into(),
                    "safe" => Value::Markup(Text::new(own)),
                    "string" if value.text().is_some() => value.clone(),
                    "wordcount" => Value::Int(words(&own)),
                    "urlencode" => urlencode(value, &own)?.into(),
                    "striptags" => without_tags(&own)?.into(),
                    _ => own.into(),
                })
            }
        }
    }

    fn indent(&mut self, own: &Text, args: CallArgs) -> Outcome<Value> {
        let [width, first, blank] = args.bind("indent", ["width", "first", "blank"])?;
        let indention = match width {
            Some(Value::Str(text)) => text.to_string(),
            Some(width) => {
                " ".repeat(usize::try_from(integer(&width, "indent")?).unwrap_or(0).min(1 << 20))
            }
            None => "    ".to_owned(),
        };
        let blank = blank.is_some_and(|blank| blank.is_true());
        let own = format!("{}\n", &**own);
        self.handled(own.matches(strings::BREAKS).count() * ENTRY_BYTES)?;
        let lines = strings::lines(&own, false);
        let bytes = own.len().saturating_add(lines.len().saturating_mul(indention.len()));
        self.handled(bytes)?;
        let mut result = if first.is_some_and(|first| first.is_true()) {
            indention.clone()
        } else {
            String::new()
        };
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

/// Jinja2's own idea of where words begin. Each is made small by itself, so that a sigma is final
/// by its own word alone.
fn titled(text: &str) -> String {
    let is_gap = |c: char| is_space(c) || "-({[<".contains(c);
    let mut result = String::new();
    for word in text.split_inclusive(is_gap) {
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

/// Markup's `striptags`: without comments and tags, with single spaces.
fn without_tags(text: &str) -> Outcome<String> {
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
        // One that isn't closed is text, and so is all that follows.
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

fn urlencode(value: &Value, own: &str) -> Outcome<String> {
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

fn xmlattr(value: &Value, args: CallArgs) -> Outcome<Value> {
    let [space] = args.bind("xmlattr", ["autospace"])?;
    let Value::Dict(attributes) = value else {
        return Err(Fail::new(format!("xmlattr wants a dictionary, not '{}'", value.type_name())));
    };
    let mut parts = Vec::new();
    for (key, value) in attributes
        .entries()
        .iter()
        .filter(|(_, value)| !matches!(value, Value::None | Value::Undefined(_)))
    {
        let key = key.to_text()?;
        if key.contains(|c: char| is_space(c) || "/>=".contains(c)) {
            return Err(Fail::new(format!("Invalid character in attribute name: {key:?}")));
        }
        let text = value.to_text()?;
        let text = if matches!(value, Value::Markup(_)) { text } else { operators::escaped(&text) };
        parts.push(format!("{}=\"{text}\"", operators::escaped(&key)));
    }
    let begin =
        if !parts.is_empty() && space.is_none_or(|space| space.is_true()) { " " } else { "" };
    Ok(format!("{begin}{}", parts.join(" ")).into())
}

fn truncate(own: &str, args: CallArgs) -> Outcome<Value> {
    let [length, kill, end, leeway] =
        args.bind("truncate", ["length", "killwords", "end", "leeway"])?;
    let length = length.map_or(Ok(255), |length| integer(&length, "truncate"))?;
    let end = end.map_or(Ok(Text::new("...")), |end| text(&end, "truncate"))?;
    let leeway = match leeway {
        None | Some(Value::None) => 5,
        Some(leeway) => integer(&leeway, "truncate")?,
    };
    let room = length - end.chars().count() as i128;
    if room < 0 || leeway < 0 {
        return Err(Fail::new(format!("truncate to {length} leaves no room for {:?}", &*end)));
    }
    if own.chars().count() as i128 <= length + leeway {
        return Ok(own.into());
    }
    let kept: String = own.chars().take(room as usize).collect();
    let kept = if kill.is_some_and(|kill| kill.is_true()) {
        &kept[..]
    } else {
        kept.rsplit_once(' ').map_or(&kept[..], |(before, _)| before)
    };
    Ok(format!("{kept}{}", &*end).into())
}

fn tojson(value: &Value, args: CallArgs) -> Outcome<Value> {
    let [ensure_ascii, indent, separators, sort_keys] =
        args.bind("tojson", ["ensure_ascii", "indent", "separators", "sort_keys"])?;
    let indent = match indent {
        None | Some(Value::None) => None,
        Some(Value::Str(indent)) => Some(indent.to_string()),
        Some(indent) => {
            Some(" ".repeat(usize::try_from(integer(&indent, "tojson")?).unwrap_or(0).min(1 << 10)))
        }
    };
    let (item_separator, key_separator) = match separators {
        None | Some(Value::None) => {
            ((if indent.is_some() { "," } else { ", " }).to_owned(), ": ".to_owned())
        }
        Some(separators) => {
            let [item, key]: [Value; 2] = separators
                .iterate()?
                .try_into()
                .map_err(|_| Fail::new("separators are two texts"))?;
            (text(&item, "tojson")?.to_string(), text(&key, "tojson")?.to_string())
        }
    };
    let is_set = |value: Option<Value>| value.is_some_and(|value| value.is_true());
    let (ensure_ascii, sort_keys) = (is_set(ensure_ascii), is_set(sort_keys));
    let style = json::Style { ensure_ascii, indent, item_separator, key_separator, sort_keys };
    Ok(style.dumps(value)?.into())
}
