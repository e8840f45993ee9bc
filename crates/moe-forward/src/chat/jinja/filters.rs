//! Jinja2's filters: what stands behind `|`.

use std::cmp::Ordering;

use super::calls::{CallArgs, integer, required, text};
use super::eval::Interpreter;
use super::value::{Items, Text, Value};
use super::{Fail, Outcome, format, json, operators, strings};

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
                let is_missing = value.is_undefined() || boolean.is_some_and(|b| b.is_true()) && !value.is_true();
                Ok(if is_missing { default.unwrap_or_else(|| "".into()) } else { value })
            }
            "abs" | "round" | "int" | "float" | "filesizeformat" => number(name, &value, args),
            "first" | "last" | "min" | "max" | "sum" | "count" | "length" => self.one(name, value, args),
            "list" | "batch" | "slice" | "reverse" | "items" | "dictsort" | "sort" | "unique" | "groupby" => {
                self.many(name, value, args)
            }
            "map" => self.map(value, args),
            "select" | "reject" | "selectattr" | "rejectattr" => self.select(name, value, args),
            "attr" => {
                let [attribute] = args.bind(name, ["name"])?;
                let attribute = text(&required(attribute, name, "name")?, name)?;
                match &value {
                    // Only what Python calls an attribute, not the keys of a dictionary.
                    Value::Dict(dict) if dict.get_text(&attribute).is_some() => {
                        let empty = super::value::Dict::default().into_value();
                        operators::attribute(&empty, &attribute)
                    }
                    _ => operators::attribute(&value, &attribute),
                }
            }
            "tojson" => tojson(&value, args),
            "join" => self.join(&value, args),
            "pprint" | "random" | "striptags" | "urlize" | "wordwrap" | "xmlattr" => {
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
            let item = attribute.as_ref().map_or(Ok(item.clone()), |path| self.at_path(&item, path, None))?;
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
                Ok(Value::Markup(Text::new(if is_safe { own } else { operators::escaped(&own) })))
            }
            _ => {
                args.bind(name, []).map(|[]| ())?;
                Ok(match name {
                    "upper" => own.to_uppercase().into(),
                    "lower" => own.to_lowercase().into(),
                    "capitalize" => strings::capitalized(&own).into(),
                    "title" => titled(&own).into(),
                    "safe" => Value::Markup(Text::new(own)),
                    "string" if value.text().is_some() => value.clone(),
                    "wordcount" => Value::Int(words(&own)),
                    "urlencode" => urlencode(value, &own)?.into(),
                    _ => own.into(),
                })
            }
        }
    }

    fn indent(&mut self, own: &Text, args: CallArgs) -> Outcome<Value> {
        let [width, first, blank] = args.bind("indent", ["width", "first", "blank"])?;
        let indention = match width {
            Some(Value::Str(text)) => text.to_string(),
            Some(width) => " ".repeat(usize::try_from(integer(&width, "indent")?).unwrap_or(0).min(1 << 20)),
            None => "    ".to_owned(),
        };
        let blank = blank.is_some_and(|blank| blank.is_true());
        let own = format!("{}\n", &**own);
        let lines = strings::lines(&own, false);
        let bytes = own.len().saturating_add(lines.len().saturating_mul(indention.len()));
        self.room(bytes)?;
        self.step(bytes)?;
        let mut result = if first.is_some_and(|first| first.is_true()) { indention.clone() } else { String::new() };
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

    /// Filters that give one of many values, or a number.
    fn one(&mut self, name: &str, value: Value, args: CallArgs) -> Outcome<Value> {
        match name {
            "count" | "length" => {
                args.bind(name, []).map(|[]| ())?;
                let what = || Fail::new(format!("object of type '{}' has no len()", value.type_name()));
                value.length().map(|length| Value::Int(length as i128)).ok_or_else(what)
            }
            "first" | "last" => {
                args.bind(name, []).map(|[]| ())?;
                if let (Value::Once(items), "first") = (&value, name) {
                    let first = items.borrow_mut().pop_front();
                    return Ok(first.unwrap_or_else(|| Value::undefined("No first item, sequence was empty.")));
                }
                if matches!(value, Value::Once(_)) {
                    return Err(Fail::new("'generator' object is not reversible"));
                }
                let items = value.iterate()?;
                self.step(items.len())?;
                let found = if name == "first" { items.into_iter().next() } else { items.into_iter().last() };
                Ok(found.unwrap_or_else(|| Value::undefined(format!("No {name} item, sequence was empty."))))
            }
            "sum" => {
                let [attribute, start] = args.bind(name, ["attribute", "start"])?;
                let mut sum = start.unwrap_or(Value::Int(0));
                for item in value.iterate()? {
                    let item = match &attribute {
                        None | Some(Value::None) => item,
                        Some(path) => self.at_path(&item, path, None)?,
                    };
                    sum = self.binary(super::ast::Binary::Add, &sum, &item)?;
                }
                Ok(sum)
            }
            _ => {
                let [sensitive, attribute] = args.bind(name, ["case_sensitive", "attribute"])?;
                let sensitive = sensitive.is_some_and(|sensitive| sensitive.is_true());
                let mut best: Option<(Value, Value)> = None;
                for item in value.iterate()? {
                    let key = self.key(&item, attribute.as_ref(), sensitive)?;
                    let wanted = if name == "min" { Ordering::Less } else { Ordering::Greater };
                    let is_better = match &best {
                        Some((_, known)) => key.compare(known)? == Some(wanted),
                        None => true,
                    };
                    if is_better {
                        best = Some((item, key));
                    }
                    self.step(0)?;
                }
                let missing = || Value::undefined("No aggregated item, sequence was empty.");
                Ok(best.map_or_else(missing, |(item, _)| item))
            }
        }
    }

    /// Filters that give many values in another order or grouping.
    fn many(&mut self, name: &str, value: Value, args: CallArgs) -> Outcome<Value> {
        if name == "reverse"
            && let Some(own) = value.text()
        {
            return Ok(own.chars().rev().collect::<String>().into());
        }
        if name == "items" {
            args.bind(name, []).map(|[]| ())?;
            return match &value {
                Value::Undefined(_) => Ok(Value::once([])),
                Value::Dict(dict) => Ok(Value::once(dict.entries().iter().map(pair))),
                _ => Err(Fail::new("Can only get item pairs from a mapping.")),
            };
        }
        if name == "dictsort" {
            return self.dictsort(&value, args);
        }
        let items = value.iterate()?;
        self.step(items.len() * size_of::<Value>())?;
        match name {
            "list" => args.bind(name, []).map(|[]| items.into()),
            "reverse" => args.bind(name, []).map(|[]| Value::once(items.into_iter().rev())),
            "batch" => {
                let [count, fill] = args.bind(name, ["linecount", "fill_with"])?;
                let count = integer(&required(count, name, "linecount")?, name)?;
                let count = usize::try_from(count).ok().filter(|count| *count > 0);
                let count = count.ok_or_else(|| Fail::new("batch wants a positive number"))?;
                let mut batches: Vec<Vec<Value>> = items.chunks(count).map(<[Value]>::to_vec).collect();
                if let (Some(fill), Some(last)) = (fill.filter(|fill| !matches!(fill, Value::None)), batches.last_mut())
                {
                    self.room(count.saturating_mul(size_of::<Value>()))?;
                    last.resize(count, fill);
                }
                Ok(Value::once(batches.into_iter().map(Value::from)))
            }
            "slice" => {
                let [count, fill] = args.bind(name, ["slices", "fill_with"])?;
                let count = integer(&required(count, name, "slices")?, name)?;
                let count = usize::try_from(count).ok().filter(|count| (1..1_000_000).contains(count));
                let count = count.ok_or_else(|| Fail::new("slice wants a positive number"))?;
                let (each, extra) = (items.len() / count, items.len() % count);
                let mut slices = Vec::new();
                let mut rest = &items[..];
                for index in 0..count {
                    let (slice, after) = rest.split_at(each + usize::from(index < extra));
                    rest = after;
                    let fill = fill.clone().filter(|fill| !matches!(fill, Value::None) && index >= extra);
                    slices.push(Value::from(slice.iter().cloned().chain(fill).collect::<Vec<_>>()));
                }
                Ok(Value::once(slices))
            }
            "sort" => {
                let [reverse, sensitive, attribute] = args.bind(name, ["reverse", "case_sensitive", "attribute"])?;
                let sensitive = sensitive.is_some_and(|sensitive| sensitive.is_true());
                let mut keyed = Vec::new();
                for item in items {
                    keyed.push((self.keys(&item, attribute.as_ref(), sensitive)?, item));
                }
                self.sort(&mut keyed, reverse.is_some_and(|reverse| reverse.is_true()))?;
                Ok(keyed.into_iter().map(|(_, item)| item).collect::<Vec<_>>().into())
            }
            "unique" => {
                let [sensitive, attribute] = args.bind(name, ["case_sensitive", "attribute"])?;
                let sensitive = sensitive.is_some_and(|sensitive| sensitive.is_true());
                let (mut seen, mut kept) = (super::value::Dict::default(), Vec::new());
                for item in items {
                    let key = self.key(&item, attribute.as_ref(), sensitive)?;
                    if matches!(key, Value::List(_) | Value::Dict(_)) {
                        return Err(Fail::new(format!("unhashable type: '{}'", key.type_name())));
                    }
                    if seen.get(&key).is_none() {
                        seen.insert(key, Value::None);
                        kept.push(item);
                    }
                    self.step(0)?;
                }
                Ok(Value::once(kept))
            }
            _ => self.groupby(items, args),
        }
    }

    fn groupby(&mut self, items: Vec<Value>, args: CallArgs) -> Outcome<Value> {
        let [attribute, default, sensitive] = args.bind("groupby", ["attribute", "default", "case_sensitive"])?;
        let attribute = required(attribute, "groupby", "attribute")?;
        let default = default.filter(|default| !matches!(default, Value::None));
        let sensitive = sensitive.is_some_and(|sensitive| sensitive.is_true());
        let mut keyed = Vec::new();
        for item in items {
            let key = self.at_path(&item, &attribute, default.as_ref())?;
            keyed.push((if sensitive { key } else { ignoring_case(key) }, item));
        }
        self.sort(&mut keyed, false)?;
        let mut groups: Vec<(Value, Vec<Value>)> = Vec::new();
        for (key, item) in keyed {
            match groups.last_mut() {
                Some((known, members)) if known.equals(&key) => members.push(item),
                _ => groups.push((key, vec![item])),
            }
        }
        let mut result = Vec::new();
        for (key, members) in groups {
            let key = if sensitive { key } else { self.at_path(&members[0], &attribute, default.as_ref())? };
            result.push(Value::Tuple(Items::new(vec![key, members.into()])));
        }
        Ok(result.into())
    }

    fn dictsort(&mut self, value: &Value, args: CallArgs) -> Outcome<Value> {
        let [sensitive, by, reverse] = args.bind("dictsort", ["case_sensitive", "by", "reverse"])?;
        let sensitive = sensitive.is_some_and(|sensitive| sensitive.is_true());
        let by_value = match by.as_ref().map_or(Some("key"), Value::text) {
            Some("key") => false,
            Some("value") => true,
            _ => return Err(Fail::new("You can only sort by either \"key\" or \"value\"")),
        };
        let Value::Dict(dict) = value else {
            return Err(Fail::new(format!("'{}' object has no attribute 'items'", value.type_name())));
        };
        let mut keyed = Vec::new();
        for entry in dict.entries() {
            let key = if by_value { entry.1.clone() } else { entry.0.clone() };
            keyed.push((if sensitive { key } else { ignoring_case(key) }, pair(entry)));
        }
        self.sort(&mut keyed, reverse.is_some_and(|reverse| reverse.is_true()))?;
        Ok(keyed.into_iter().map(|(_, entry)| entry).collect::<Vec<_>>().into())
    }

    /// Sorts by keys; what is equal keeps its order, backwards, too.
    fn sort(&mut self, keyed: &mut [(Value, Value)], reverse: bool) -> Outcome<()> {
        self.step(keyed.len() * size_of::<Value>())?;
        let mut failed = None;
        keyed.sort_by(|a, b| {
            let order = match a.0.compare(&b.0) {
                Ok(order) => order.unwrap_or(Ordering::Equal),
                Err(error) => {
                    failed.get_or_insert(error);
                    Ordering::Equal
                }
            };
            if reverse { order.reverse() } else { order }
        });
        failed.map_or(Ok(()), Err)
    }

    /// What stands in `item` at a path such as `"function.name"` or `0`.
    fn at_path(&mut self, item: &Value, path: &Value, default: Option<&Value>) -> Outcome<Value> {
        self.step(0)?;
        let Some(names) = path.text() else { return operators::item(item, path) };
        let mut found = item.clone();
        for name in names.split('.') {
            let is_number = !name.is_empty() && name.bytes().all(|b| b.is_ascii_digit());
            let key = if is_number { Value::Int(name.parse().unwrap_or(i128::MAX)) } else { name.into() };
            found = operators::item(&found, &key)?;
            if let (true, Some(default)) = (found.is_undefined(), default) {
                found = default.clone();
            }
        }
        Ok(found)
    }

    fn key(&mut self, item: &Value, attribute: Option<&Value>, sensitive: bool) -> Outcome<Value> {
        let key = match attribute {
            None | Some(Value::None) => item.clone(),
            Some(path) => self.at_path(item, path, None)?,
        };
        Ok(if sensitive { key } else { ignoring_case(key) })
    }

    /// Keys at several paths, separated by commas.
    fn keys(&mut self, item: &Value, attribute: Option<&Value>, sensitive: bool) -> Outcome<Value> {
        let Some(paths) = attribute.and_then(Value::text) else {
            return self.key(item, attribute, sensitive);
        };
        let mut keys = Vec::new();
        for path in paths.split(',') {
            keys.push(self.key(item, Some(&path.into()), sensitive)?);
        }
        Ok(keys.into())
    }

    fn map(&mut self, value: Value, mut args: CallArgs) -> Outcome<Value> {
        let mut result = Vec::new();
        if !value.is_true() {
            return Ok(Value::once([]));
        }
        if args.positional.is_empty() {
            let [attribute, default] = args.bind("map", ["attribute", "default"])?;
            let attribute = required(attribute, "map", "attribute")?;
            let default = default.filter(|default| !matches!(default, Value::None));
            for item in value.iterate()? {
                result.push(self.at_path(&item, &attribute, default.as_ref())?);
            }
            return Ok(Value::once(result));
        }
        let name = text(&args.positional.remove(0), "map")?;
        for item in value.iterate()? {
            result.push(self.filter(&name, item, args.clone())?);
        }
        Ok(Value::once(result))
    }

    fn select(&mut self, name: &str, value: Value, mut args: CallArgs) -> Outcome<Value> {
        if !value.is_true() {
            return Ok(Value::once([]));
        }
        let wanted = name.starts_with("select");
        let attribute = match (name.ends_with("attr"), args.positional.is_empty()) {
            (true, true) => return Err(Fail::new("Missing parameter for attribute name")),
            (true, false) => Some(args.positional.remove(0)),
            (false, _) => None,
        };
        let test = if args.positional.is_empty() { None } else { Some(text(&args.positional.remove(0), name)?) };
        let mut kept = Vec::new();
        for item in value.iterate()? {
            let seen = attribute.as_ref().map_or(Ok(item.clone()), |path| self.at_path(&item, path, None))?;
            let holds = match &test {
                Some(test) => self.test(test, &seen, args.clone())?,
                None => seen.is_true(),
            };
            if holds == wanted {
                kept.push(item);
            }
            self.step(0)?;
        }
        Ok(Value::once(kept))
    }
}

fn pair((key, value): &(Value, Value)) -> Value {
    Value::Tuple(Items::new(vec![key.clone(), value.clone()]))
}

fn ignoring_case(value: Value) -> Value {
    match value.text() {
        Some(text) => text.to_lowercase().into(),
        None => value,
    }
}

/// Filters of numbers.
fn number(name: &str, value: &Value, args: CallArgs) -> Outcome<Value> {
    match name {
        "abs" => {
            args.bind(name, []).map(|[]| ())?;
            match (value.integer(), value.number()) {
                (Some(number), _) => Ok(Value::Int(number.saturating_abs())),
                (None, Some(number)) => Ok(Value::Float(number.abs())),
                _ => Err(Fail::new(format!("bad operand type for abs(): '{}'", value.type_name()))),
            }
        }
        "round" => {
            let [precision, method] = args.bind(name, ["precision", "method"])?;
            let precision = precision.map_or(Ok(0), |precision| integer(&precision, name))?;
            let method = method.map_or(Ok(Text::new("common")), |method| text(&method, name))?;
            round(value, precision, &method)
        }
        "float" => {
            let [default] = args.bind(name, ["default"])?;
            let found = value.number().or_else(|| value.text().and_then(parse_float));
            Ok(found.map(Value::Float).or(default).unwrap_or(Value::Float(0.0)))
        }
        "int" => {
            let [default, base] = args.bind(name, ["default", "base"])?;
            let base = base.map_or(Ok(10), |base| integer(&base, name))?;
            let found = match value.text() {
                Some(text) => parse_integer(text, base).or_else(|| parse_float(text).and_then(truncated)),
                None => value.integer().or_else(|| value.number().and_then(truncated)),
            };
            Ok(found.map(Value::Int).or(default).unwrap_or(Value::Int(0)))
        }
        _ => {
            let [binary] = args.bind(name, ["binary"])?;
            let bytes = value.number().or_else(|| value.text().and_then(parse_float));
            let bytes = bytes.ok_or_else(|| Fail::new("could not convert to float"))?;
            Ok(filesize(bytes, binary.is_some_and(|binary| binary.is_true())).into())
        }
    }
}

fn truncated(number: f64) -> Option<i128> {
    (number.is_finite() && number.abs() < 1e38).then_some(number.trunc() as i128)
}

fn parse_float(text: &str) -> Option<f64> {
    let text = text.trim().replace('_', "").to_lowercase();
    // Rust takes the same words for infinity and NaN as Python does.
    text.parse().ok()
}

fn parse_integer(text: &str, base: i128) -> Option<i128> {
    let text = text.trim().replace('_', "").to_lowercase();
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text.strip_prefix('+').unwrap_or(&text)),
    };
    let (prefix, named) = match digits.get(..2) {
        Some("0x") => (16, true),
        Some("0o") => (8, true),
        Some("0b") => (2, true),
        _ => (10, false),
    };
    let base = if base == 0 { prefix } else { base };
    let digits = if named && base == prefix { &digits[2..] } else { digits };
    let base = u32::try_from(base).ok().filter(|base| (2..=36).contains(base))?;
    if digits.starts_with(['+', '-']) {
        return None;
    }
    i128::from_str_radix(digits, base).ok().map(|number| sign * number)
}

fn round(value: &Value, precision: i128, method: &str) -> Outcome<Value> {
    let Some(number) = value.number() else {
        return Err(Fail::new(format!("type {} doesn't define __round__ method", value.type_name())));
    };
    let places = i32::try_from(precision.clamp(-400, 400)).unwrap_or(0);
    match (method, value.integer()) {
        ("common", Some(integer)) if places >= 0 => Ok(Value::Int(integer)),
        ("common", Some(integer)) => {
            // To the even one of two equally near tens, as Python rounds.
            let unit = 10i128.checked_pow(places.unsigned_abs()).unwrap_or(i128::MAX);
            let (down, rest) = (integer.div_euclid(unit), integer.rem_euclid(unit));
            let up = rest * 2 > unit || rest * 2 == unit && down % 2 != 0;
            Ok(Value::Int((down + i128::from(up)) * unit))
        }
        ("common", None) if places >= 0 => {
            Ok(Value::Float(format!("{number:.*}", places as usize).parse().unwrap_or(number)))
        }
        ("common", None) => {
            let unit = 10f64.powi(-places);
            Ok(Value::Float((number / unit).round_ties_even() * unit))
        }
        ("ceil" | "floor", _) => {
            let unit = 10f64.powi(places);
            let scaled = number * unit;
            let rounded = if method == "ceil" { scaled.ceil() } else { scaled.floor() };
            Ok(Value::Float(rounded / unit))
        }
        _ => Err(Fail::new("method must be common, ceil or floor")),
    }
}

fn filesize(bytes: f64, binary: bool) -> String {
    let base: f64 = if binary { 1024.0 } else { 1000.0 };
    let names: [&str; 8] = if binary {
        ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB"]
    } else {
        ["kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB"]
    };
    if bytes == 1.0 {
        return "1 Byte".into();
    }
    if bytes < base {
        return format!("{} Bytes", bytes.trunc());
    }
    let mut unit = base;
    for (index, name) in names.iter().enumerate() {
        unit *= base;
        if bytes < unit || index + 1 == names.len() {
            return format!("{:.1} {name}", base * bytes / unit);
        }
    }
    String::new()
}

/// Jinja2's own idea of where words begin.
fn titled(text: &str) -> String {
    let mut result = String::new();
    let mut begins = true;
    for c in text.chars() {
        if begins {
            result.extend(c.to_uppercase());
        } else {
            result.extend(c.to_lowercase());
        }
        begins = c.is_whitespace() || "-({[<".contains(c);
    }
    result
}

fn words(text: &str) -> i128 {
    text.split(|c: char| c != '_' && !c.is_alphanumeric()).filter(|word| !word.is_empty()).count() as i128
}

fn quoted(text: &str, for_query: bool) -> String {
    let mut result = String::new();
    for byte in text.bytes() {
        match byte {
            b'/' if !for_query => result.push('/'),
            b' ' if for_query => result.push('+'),
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'_' | b'.' | b'-' | b'~' => result.push(char::from(byte)),
            _ => result.push_str(&format!("%{byte:02X}")),
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
        let [key, value]: [Value; 2] =
            pair.iterate()?.try_into().map_err(|_| Fail::new("urlencode wants pairs of a key and a value"))?;
        parts.push(format!("{}={}", quoted(&key.to_text()?, true), quoted(&value.to_text()?, true)));
    }
    Ok(parts.join("&"))
}

fn truncate(own: &str, args: CallArgs) -> Outcome<Value> {
    let [length, kill, end, leeway] = args.bind("truncate", ["length", "killwords", "end", "leeway"])?;
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
        Some(indent) => Some(" ".repeat(usize::try_from(integer(&indent, "tojson")?).unwrap_or(0).min(1 << 10))),
    };
    let (item_separator, key_separator) = match separators {
        None | Some(Value::None) => ((if indent.is_some() { "," } else { ", " }).to_owned(), ": ".to_owned()),
        Some(separators) => {
            let [item, key]: [Value; 2] =
                separators.iterate()?.try_into().map_err(|_| Fail::new("separators are two texts"))?;
            (text(&item, "tojson")?.to_string(), text(&key, "tojson")?.to_string())
        }
    };
    let is_set = |value: Option<Value>| value.is_some_and(|value| value.is_true());
    let (ensure_ascii, sort_keys) = (is_set(ensure_ascii), is_set(sort_keys));
    let style = json::Style { ensure_ascii, indent, item_separator, key_separator, sort_keys };
    Ok(style.dumps(value)?.into())
}
