//! Filters of lists and other things with many values.

use std::cmp::Ordering;

use super::calls::{CallArgs, integer, required, text};
use super::interpreter::Interpreter;
use super::sorting::sorted;
use super::value::{Dict, Items, Value};
use super::{Fail, Outcome, attributes};

impl Interpreter {
    /// Filters that give one of many values, or a number.
    pub fn one(&mut self, name: &str, value: Value, args: CallArgs) -> Outcome<Value> {
        match name {
            "count" | "length" => {
                args.bind(name, []).map(|[]| ())?;
                // Characters are counted.
                self.step(value.text().map_or(0, str::len))?;
                let what =
                    || Fail::new(format!("object of type '{}' has no len()", value.type_name()));
                value.length().map(|length| Value::Int(length as i128)).ok_or_else(what)
            }
            "first" | "last" => {
                args.bind(name, []).map(|[]| ())?;
                if let (Value::Once(items), "first") = (&value, name) {
                    let first = items.borrow_mut().pop_front();
                    return Ok(first.unwrap_or_else(|| {
                        Value::undefined("No first item, sequence was empty.")
                    }));
                }
                if matches!(value, Value::Once(_)) {
                    return Err(Fail::new("'generator' object is not reversible"));
                }
                let items = value.iterate()?;
                self.step(items.len())?;
                let found = if name == "first" {
                    items.into_iter().next()
                } else {
                    items.into_iter().last()
                };
                Ok(found.unwrap_or_else(|| {
                    Value::undefined(format!("No {name} item, sequence was empty."))
                }))
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
    pub fn many(&mut self, name: &str, value: Value, args: CallArgs) -> Outcome<Value> {
        if name == "reverse"
            && let Some(own) = value.text()
        {
            self.handled(own.len())?;
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
                let mut batches: Vec<Vec<Value>> =
                    items.chunks(count).map(<[Value]>::to_vec).collect();
                if let (Some(fill), Some(last)) =
                    (fill.filter(|fill| !matches!(fill, Value::None)), batches.last_mut())
                {
                    self.room(count.saturating_mul(size_of::<Value>()))?;
                    last.resize(count, fill);
                }
                Ok(Value::once(batches.into_iter().map(Value::from)))
            }
            "slice" => {
                let [count, fill] = args.bind(name, ["slices", "fill_with"])?;
                let count = integer(&required(count, name, "slices")?, name)?;
                let count =
                    usize::try_from(count).ok().filter(|count| (1..1_000_000).contains(count));
                let count = count.ok_or_else(|| Fail::new("slice wants a positive number"))?;
                let (each, extra) = (items.len() / count, items.len() % count);
                let mut slices = Vec::new();
                let mut rest = &items[..];
                for index in 0..count {
                    let (slice, after) = rest.split_at(each + usize::from(index < extra));
                    rest = after;
                    let fill =
                        fill.clone().filter(|fill| !matches!(fill, Value::None) && index >= extra);
                    slices.push(Value::from(slice.iter().cloned().chain(fill).collect::<Vec<_>>()));
                }
                Ok(Value::once(slices))
            }
            "sort" => {
                let [reverse, sensitive, attribute] =
                    args.bind(name, ["reverse", "case_sensitive", "attribute"])?;
                let sensitive = sensitive.is_some_and(|sensitive| sensitive.is_true());
                let mut keyed = Vec::new();
                for item in items {
                    keyed.push((self.keys(&item, attribute.as_ref(), sensitive)?, item));
                }
                let keyed = self.sort(keyed, reverse.is_some_and(|reverse| reverse.is_true()))?;
                Ok(keyed.into_iter().map(|(_, item)| item).collect::<Vec<_>>().into())
            }
            "unique" => {
                let [sensitive, attribute] = args.bind(name, ["case_sensitive", "attribute"])?;
                let sensitive = sensitive.is_some_and(|sensitive| sensitive.is_true());
                let (mut seen, mut kept) = (Dict::default(), Vec::new());
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
        let [attribute, default, sensitive] =
            args.bind("groupby", ["attribute", "default", "case_sensitive"])?;
        let attribute = required(attribute, "groupby", "attribute")?;
        let default = default.filter(|default| !matches!(default, Value::None));
        let sensitive = sensitive.is_some_and(|sensitive| sensitive.is_true());
        let mut keyed = Vec::new();
        for item in items {
            let key = self.at_path(&item, &attribute, default.as_ref())?;
            keyed.push((if sensitive { key } else { ignoring_case(key) }, item));
        }
        let keyed = self.sort(keyed, false)?;
        let mut groups: Vec<(Value, Vec<Value>)> = Vec::new();
        for (key, item) in keyed {
            match groups.last_mut() {
                Some((known, members)) if known.equals(&key) => members.push(item),
                _ => groups.push((key, vec![item])),
            }
        }
        let mut result = Vec::new();
        for (key, members) in groups {
            let key = if sensitive {
                key
            } else {
                self.at_path(&members[0], &attribute, default.as_ref())?
            };
            result.push(Value::Tuple(Items::new(vec![key, members.into()])));
        }
        Ok(result.into())
    }

    fn dictsort(&mut self, value: &Value, args: CallArgs) -> Outcome<Value> {
        let [sensitive, by, reverse] =
            args.bind("dictsort", ["case_sensitive", "by", "reverse"])?;
        let sensitive = sensitive.is_some_and(|sensitive| sensitive.is_true());
        let by_value = match by.as_ref().map_or(Some("key"), Value::text) {
            Some("key") => false,
            Some("value") => true,
            _ => return Err(Fail::new("You can only sort by either \"key\" or \"value\"")),
        };
        let Value::Dict(dict) = value else {
            return Err(Fail::new(format!(
                "'{}' object has no attribute 'items'",
                value.type_name()
            )));
        };
        let mut keyed = Vec::new();
        for entry in dict.entries() {
            let key = if by_value { entry.1.clone() } else { entry.0.clone() };
            keyed.push((if sensitive { key } else { ignoring_case(key) }, pair(entry)));
        }
        let keyed = self.sort(keyed, reverse.is_some_and(|reverse| reverse.is_true()))?;
        Ok(keyed.into_iter().map(|(_, entry)| entry).collect::<Vec<_>>().into())
    }

    /// Sorts by keys; what is equal keeps its order, backwards, too.
    fn sort(&mut self, keyed: Vec<(Value, Value)>, reverse: bool) -> Outcome<Vec<(Value, Value)>> {
        self.handled(keyed.len() * size_of::<(Value, Value)>())?;
        sorted(keyed, &mut |a, b| {
            self.step(0)?;
            let order = a.0.compare(&b.0)?;
            Ok(if reverse { order.map(Ordering::reverse) } else { order })
        })
    }

    /// What stands in `item` at a path such as `"function.name"` or `0`.
    pub fn at_path(
        &mut self,
        item: &Value,
        path: &Value,
        default: Option<&Value>,
    ) -> Outcome<Value> {
        self.step(0)?;
        let Some(names) = path.text() else { return attributes::item(item, path) };
        let mut found = item.clone();
        for name in names.split('.') {
            let is_number = !name.is_empty() && name.bytes().all(|b| b.is_ascii_digit());
            let key =
                if is_number { Value::Int(name.parse().unwrap_or(i128::MAX)) } else { name.into() };
            found = attributes::item(&found, &key)?;
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

    pub fn map(&mut self, value: Value, mut args: CallArgs) -> Outcome<Value> {
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

    pub fn select(&mut self, name: &str, value: Value, mut args: CallArgs) -> Outcome<Value> {
        if !value.is_true() {
            return Ok(Value::once([]));
        }
        let wanted = name.starts_with("select");
        let attribute = match (name.ends_with("attr"), args.positional.is_empty()) {
            (true, true) => return Err(Fail::new("Missing parameter for attribute name")),
            (true, false) => Some(args.positional.remove(0)),
            (false, _) => None,
        };
        let test = if args.positional.is_empty() {
            None
        } else {
            Some(text(&args.positional.remove(0), name)?)
        };
        let mut kept = Vec::new();
        for item in value.iterate()? {
            let seen = attribute
                .as_ref()
                .map_or(Ok(item.clone()), |path| self.at_path(&item, path, None))?;
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

pub(super) fn pair((key, value): &(Value, Value)) -> Value {
    Value::Tuple(Items::new(vec![key.clone(), value.clone()]))
}

fn ignoring_case(value: Value) -> Value {
    match value.text() {
        Some(text) => text.to_lowercase().into(),
        None => value,
    }
}
