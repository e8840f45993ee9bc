//! Jinja2's filters, which follow `|`.

use super::args::{CallArgs, integer, is_set, required_text, text, unless_none};
use super::interpreter::Interpreter;
use super::lexer::is_space;
use super::value::{Dict, Str, Value};
use super::{Fail, Fallible, attributes, json, numbers, operators, strings};

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
    /// Applies `value | name(args)`.
    pub fn filter(&mut self, name: &str, value: Value, args: CallArgs) -> Fallible<Value> {
        self.step(0)?;
        match name {
            "d" | "default" => or_default(name, value, args),
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
            "attr" => attr(&value, args),
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

    fn join(&mut self, value: &Value, args: CallArgs) -> Fallible<Value> {
        let [separator, attribute] = args.bind("join", ["d", "attribute"])?;
        let separator = separator.map_or(Ok(String::new()), |separator| separator.to_text())?;
        let attribute = unless_none(attribute);
        let mut parts = Vec::new();
        for item in value.iterate()? {
            let item = attribute
                .as_ref()
                .map_or(Ok(item.clone()), |path| self.at_path(&item, path, None))?;
            parts.push(Str::new(item.to_text()?));
            self.step(0)?;
        }
        strings::joined(self, &separator, &parts)
    }
}

fn or_default(name: &str, value: Value, args: CallArgs) -> Fallible<Value> {
    let [default, boolean] = args.bind(name, ["default_value", "boolean"])?;
    let is_missing = value.is_undefined() || is_set(boolean) && !value.is_true();
    Ok(if is_missing { default.unwrap_or_else(|| "".into()) } else { value })
}

fn attr(value: &Value, args: CallArgs) -> Fallible<Value> {
    let [attribute] = args.bind("attr", ["name"])?;
    let attribute = required_text(attribute, "attr", "name")?;
    match value {
        // Only Python's attributes, not the keys of a dictionary.
        Value::Dict(dict) if dict.get_text(&attribute).is_some() => {
            attributes::attribute(&Dict::default().into_value(), &attribute)
        }
        _ => attributes::attribute(value, &attribute),
    }
}

fn xmlattr(value: &Value, args: CallArgs) -> Fallible<Value> {
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

fn tojson(value: &Value, args: CallArgs) -> Fallible<Value> {
    let [ensure_ascii, indent, separators, sort_keys] =
        args.bind("tojson", ["ensure_ascii", "indent", "separators", "sort_keys"])?;
    let indent = match unless_none(indent) {
        None => None,
        Some(Value::Str(indent)) => Some(indent.to_string()),
        Some(width) => {
            let width = usize::try_from(integer(&width, "tojson")?).unwrap_or(0);
            Some(" ".repeat(width.min(1 << 10)))
        }
    };
    let (item_separator, key_separator) = match unless_none(separators) {
        None => ((if indent.is_some() { "," } else { ", " }).to_owned(), ": ".to_owned()),
        Some(given) => json_separators(&given)?,
    };
    let style = json::Style {
        ensure_ascii: is_set(ensure_ascii),
        indent,
        item_separator,
        key_separator,
        sort_keys: is_set(sort_keys),
    };
    Ok(style.dumps(value)?.into())
}

fn json_separators(given: &Value) -> Fallible<(String, String)> {
    let [item, key]: [Value; 2] =
        given.iterate()?.try_into().map_err(|_| Fail::new("separators are two texts"))?;
    Ok((text(&item, "tojson")?.to_string(), text(&key, "tojson")?.to_string()))
}
