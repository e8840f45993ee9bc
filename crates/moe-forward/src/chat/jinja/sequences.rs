//! Filters of lists and other iterable values.

use std::cmp::Ordering;

use super::args::{CallArgs, integer, is_set, required, text, unless_none};
use super::ast::Binary;
use super::interpreter::Interpreter;
use super::sorting::sorted;
use super::value::{Dict, Items, Str, Value};
use super::{Fail, Fallible, attributes};

impl Interpreter {
    /// Applies filters that return an element or a number.
    pub fn one(&mut self, name: &str, value: Value, args: CallArgs) -> Fallible<Value> {
        match name {
            "count" | "length" => self.count(name, &value, args),
            "first" => self.first(&value, args),
            "last" => self.last(&value, args),
            "sum" => self.sum(&value, args),
            _ => self.extreme(name, &value, args),
        }
    }

    fn count(&mut self, name: &str, value: &Value, args: CallArgs) -> Fallible<Value> {
        args.none(name)?;
        // Counting a string's characters takes time.
        self.step(value.text().map_or(0, str::len))?;
        match value.length() {
            Some(length) => Ok(Value::Int(length as i128)),
            None => Err(Fail::new(format!("object of type '{}' has no len()", value.type_name()))),
        }
    }

    fn first(&mut self, value: &Value, args: CallArgs) -> Fallible<Value> {
        args.none("first")?;
        let found = match value {
            Value::Generator(items) => items.borrow_mut().pop_front(),
            _ => {
                let items = value.iterate()?;
                self.step(items.len())?;
                items.into_iter().next()
            }
        };
        Ok(found.unwrap_or_else(|| Value::undefined("No first item, sequence was empty.")))
    }

    fn last(&mut self, value: &Value, args: CallArgs) -> Fallible<Value> {
        args.none("last")?;
        if matches!(value, Value::Generator(_)) {
            return Err(Fail::new("'generator' object is not reversible"));
        }
        let mut items = value.iterate()?;
        self.step(items.len())?;
        Ok(items.pop().unwrap_or_else(|| Value::undefined("No last item, sequence was empty.")))
    }

    fn sum(&mut self, value: &Value, args: CallArgs) -> Fallible<Value> {
        let [attribute, start] = args.bind("sum", ["attribute", "start"])?;
        let attribute = unless_none(attribute);
        let mut sum = start.unwrap_or(Value::Int(0));
        for item in value.iterate()? {
            let item = match &attribute {
                None => item,
                Some(path) => self.at_path(&item, path, None)?,
            };
            sum = self.binary(Binary::Add, &sum, &item)?;
        }
        Ok(sum)
    }

    /// Returns the smallest or the largest value.
    fn extreme(&mut self, name: &str, value: &Value, args: CallArgs) -> Fallible<Value> {
        let [sensitive, attribute] = args.bind(name, ["case_sensitive", "attribute"])?;
        let sensitive = is_set(sensitive);
        let wanted = if name == "min" { Ordering::Less } else { Ordering::Greater };
        let mut best: Option<(Value, Value)> = None;
        for item in value.iterate()? {
            let key = self.key(&item, attribute.as_ref(), sensitive)?;
            let is_better = match &best {
                Some((_, known)) => key.compare(known)? == Some(wanted),
                None => true,
            };
            if is_better {
                best = Some((item, key));
            }
            self.step(0)?;
        }
        Ok(best.map_or_else(
            || Value::undefined("No aggregated item, sequence was empty."),
            |(item, _)| item,
        ))
    }

    /// Applies filters that return values in another order or grouping.
    pub fn many(&mut self, name: &str, value: Value, args: CallArgs) -> Fallible<Value> {
        match (name, value.text()) {
            ("reverse", Some(own)) => {
                self.handled(own.len())?;
                return Ok(own.chars().rev().collect::<String>().into());
            }
            ("items", _) => return items(&value, args),
            ("dictsort", _) => return self.dictsort(&value, args),
            _ => {}
        }
        let items = value.iterate()?;
        self.step(items.len() * size_of::<Value>())?;
        match name {
            "list" => args.none(name).map(|()| items.into()),
            "reverse" => args.none(name).map(|()| Value::generator(items.into_iter().rev())),
            "batch" => self.batch(&items, args),
            "slice" => slice(&items, args),
            "sort" => self.sort_filter(items, args),
            "unique" => self.unique(items, args),
            _ => self.groupby(items, args),
        }
    }

    fn batch(&mut self, items: &[Value], args: CallArgs) -> Fallible<Value> {
        let [count, fill] = args.bind("batch", ["linecount", "fill_with"])?;
        let count = integer(&required(count, "batch", "linecount")?, "batch")?;
        let count = usize::try_from(count).ok().filter(|count| *count > 0);
        let count = count.ok_or_else(|| Fail::new("batch wants a positive number"))?;
        let mut batches: Vec<Vec<Value>> = items.chunks(count).map(<[Value]>::to_vec).collect();
        if let (Some(fill), Some(last)) = (unless_none(fill), batches.last_mut()) {
            self.room(count.saturating_mul(size_of::<Value>()))?;
            last.resize(count, fill);
        }
        Ok(Value::generator(batches.into_iter().map(Value::from)))
    }

    fn sort_filter(&mut self, items: Vec<Value>, args: CallArgs) -> Fallible<Value> {
        let [reverse, sensitive, attribute] =
            args.bind("sort", ["reverse", "case_sensitive", "attribute"])?;
        let sensitive = is_set(sensitive);
        let mut keyed = Vec::new();
        for item in items {
            keyed.push((self.keys(&item, attribute.as_ref(), sensitive)?, item));
        }
        let keyed = self.sort(keyed, is_set(reverse))?;
        Ok(keyed.into_iter().map(|(_, item)| item).collect::<Vec<_>>().into())
    }

    fn unique(&mut self, items: Vec<Value>, args: CallArgs) -> Fallible<Value> {
        let [sensitive, attribute] = args.bind("unique", ["case_sensitive", "attribute"])?;
        let sensitive = is_set(sensitive);
        let mut seen = Dict::default();
        let mut kept = Vec::new();
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
        Ok(Value::generator(kept))
    }

    fn groupby(&mut self, items: Vec<Value>, args: CallArgs) -> Fallible<Value> {
        let [attribute, default, sensitive] =
            args.bind("groupby", ["attribute", "default", "case_sensitive"])?;
        let attribute = required(attribute, "groupby", "attribute")?;
        let default = unless_none(default);
        let sensitive = is_set(sensitive);
        let mut keyed = Vec::new();
        for item in items {
            let key = self.at_path(&item, &attribute, default.as_ref())?;
            keyed.push((if sensitive { key } else { ignoring_case(key) }, item));
        }
        let mut result = Vec::new();
        for (key, members) in grouped(self.sort(keyed, false)?) {
            let key = if sensitive {
                key
            } else {
                self.at_path(&members[0], &attribute, default.as_ref())?
            };
            result.push(Value::Tuple(Items::new(vec![key, members.into()])));
        }
        Ok(result.into())
    }

    fn dictsort(&mut self, value: &Value, args: CallArgs) -> Fallible<Value> {
        let [sensitive, by, reverse] =
            args.bind("dictsort", ["case_sensitive", "by", "reverse"])?;
        let sensitive = is_set(sensitive);
        let by_value = match by.as_ref().map_or(Some("key"), Value::text) {
            Some("key") => false,
            Some("value") => true,
            _ => return Err(Fail::new("You can only sort by either \"key\" or \"value\"")),
        };
        let Value::Dict(dict) = value else {
            let what = format!("'{}' object has no attribute 'items'", value.type_name());
            return Err(Fail::new(what));
        };
        let mut keyed = Vec::new();
        for entry in dict.entries() {
            let key = if by_value { entry.1.clone() } else { entry.0.clone() };
            keyed.push((if sensitive { key } else { ignoring_case(key) }, pair(entry)));
        }
        let keyed = self.sort(keyed, is_set(reverse))?;
        Ok(keyed.into_iter().map(|(_, entry)| entry).collect::<Vec<_>>().into())
    }

    /// Sorts by key. Equal elements keep their order, also with `reverse`.
    fn sort(&mut self, keyed: Vec<(Value, Value)>, reverse: bool) -> Fallible<Vec<(Value, Value)>> {
        self.handled(keyed.len() * size_of::<(Value, Value)>())?;
        sorted(keyed, &mut |a, b| {
            self.step(0)?;
            let order = a.0.compare(&b.0)?;
            Ok(if reverse { order.map(Ordering::reverse) } else { order })
        })
    }

    /// Returns the value in `item` at a path such as `"function.name"` or `0`.
    pub fn at_path(
        &mut self,
        item: &Value,
        path: &Value,
        default: Option<&Value>,
    ) -> Fallible<Value> {
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

    fn key(&mut self, item: &Value, attribute: Option<&Value>, sensitive: bool) -> Fallible<Value> {
        let key = match attribute {
            None | Some(Value::None) => item.clone(),
            Some(path) => self.at_path(item, path, None)?,
        };
        Ok(if sensitive { key } else { ignoring_case(key) })
    }

    /// Returns the keys at several paths, which are separated by commas.
    fn keys(
        &mut self,
        item: &Value,
        attribute: Option<&Value>,
        sensitive: bool,
    ) -> Fallible<Value> {
        let Some(paths) = attribute.and_then(Value::text) else {
            return self.key(item, attribute, sensitive);
        };
        let mut keys = Vec::new();
        for path in paths.split(',') {
            keys.push(self.key(item, Some(&path.into()), sensitive)?);
        }
        Ok(keys.into())
    }

    pub fn map(&mut self, value: Value, mut args: CallArgs) -> Fallible<Value> {
        let mut result = Vec::new();
        if !value.is_true() {
            return Ok(Value::generator([]));
        }
        if args.positional.is_empty() {
            let [attribute, default] = args.bind("map", ["attribute", "default"])?;
            let attribute = required(attribute, "map", "attribute")?;
            let default = unless_none(default);
            for item in value.iterate()? {
                result.push(self.at_path(&item, &attribute, default.as_ref())?);
            }
            return Ok(Value::generator(result));
        }
        let name = text(&args.positional.remove(0), "map")?;
        for item in value.iterate()? {
            result.push(self.filter(&name, item, args.clone())?);
        }
        Ok(Value::generator(result))
    }

    pub fn select(&mut self, name: &str, value: Value, args: CallArgs) -> Fallible<Value> {
        if !value.is_true() {
            return Ok(Value::generator([]));
        }
        let wanted = name.starts_with("select");
        let condition = Condition::new(name, args)?;
        let mut kept = Vec::new();
        for item in value.iterate()? {
            if self.holds(&condition, &item)? == wanted {
                kept.push(item);
            }
            self.step(0)?;
        }
        Ok(Value::generator(kept))
    }

    fn holds(&mut self, condition: &Condition, item: &Value) -> Fallible<bool> {
        let seen = match &condition.attribute {
            Some(path) => self.at_path(item, path, None)?,
            None => item.clone(),
        };
        match &condition.test {
            Some(test) => self.test(test, &seen, condition.args.clone()),
            None => Ok(seen.is_true()),
        }
    }
}

/// The condition that `select`, `reject` and their variants check on an item.
struct Condition {
    /// The path of the value to check; None for the item itself.
    attribute: Option<Value>,
    /// The name of a test; None to check that the value is true.
    test: Option<Str>,
    args: CallArgs,
}

impl Condition {
    fn new(name: &str, mut args: CallArgs) -> Fallible<Self> {
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
        Ok(Self { attribute, test, args })
    }
}

fn items(value: &Value, args: CallArgs) -> Fallible<Value> {
    args.none("items")?;
    match value {
        Value::Undefined(_) => Ok(Value::generator([])),
        Value::Dict(dict) => Ok(Value::generator(dict.entries().iter().map(pair))),
        _ => Err(Fail::new("Can only get item pairs from a mapping.")),
    }
}

/// Divides `items` into a number of slices. The first ones have one item more.
fn slice(items: &[Value], args: CallArgs) -> Fallible<Value> {
    let [count, fill] = args.bind("slice", ["slices", "fill_with"])?;
    let count = integer(&required(count, "slice", "slices")?, "slice")?;
    let count = usize::try_from(count).ok().filter(|count| (1..1_000_000).contains(count));
    let count = count.ok_or_else(|| Fail::new("slice wants a positive number"))?;
    let fill = unless_none(fill);
    let (each, extra) = (items.len() / count, items.len() % count);
    let mut slices = Vec::new();
    let mut rest = items;
    for index in 0..count {
        let (slice, after) = rest.split_at(each + usize::from(index < extra));
        rest = after;
        let fill = fill.clone().filter(|_| index >= extra);
        slices.push(Value::from(slice.iter().cloned().chain(fill).collect::<Vec<_>>()));
    }
    Ok(Value::generator(slices))
}

/// Groups adjacent items with equal keys.
fn grouped(keyed: Vec<(Value, Value)>) -> Vec<(Value, Vec<Value>)> {
    let mut groups: Vec<(Value, Vec<Value>)> = Vec::new();
    for (key, item) in keyed {
        match groups.last_mut() {
            Some((known, members)) if known.equals(&key) => members.push(item),
            _ => groups.push((key, vec![item])),
        }
    }
    groups
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
