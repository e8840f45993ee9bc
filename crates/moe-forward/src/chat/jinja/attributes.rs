//! Python's attributes, items and slices.

use std::sync::Arc;

use super::ast::{Macro, TemplateBlocks};
use super::value::{Items, Str, Value};
use super::{Fail, Fallible, strings};

fn has_no(object: &Value, what: &str, name: &str) -> Value {
    let object = match object {
        Value::None => "None".to_owned(),
        other => format!("{} object", other.type_name()),
    };
    Value::undefined(format!("'{object}' has no {what} {name}"))
}

/// Methods that change dictionaries, which the sandbox forbids.
const DICT_CHANGES: [&str; 5] = ["clear", "pop", "popitem", "setdefault", "update"];
/// Methods that change lists, which the sandbox forbids.
const LIST_CHANGES: [&str; 8] =
    ["append", "reverse", "insert", "sort", "extend", "remove", "clear", "pop"];

/// Attributes of Python's strings that aren't implemented here.
const UNKNOWN_OF_TEXTS: [&str; 4] = ["encode", "translate", "maketrans", "format_map"];
/// Attributes of Python's numbers that aren't implemented here.
const UNKNOWN_OF_NUMBERS: [&str; 13] = [
    "real",
    "imag",
    "numerator",
    "denominator",
    "bit_length",
    "bit_count",
    "conjugate",
    "is_integer",
    "as_integer_ratio",
    "to_bytes",
    "from_bytes",
    "hex",
    "fromhex",
];
/// Attributes of Python's ranges that aren't implemented here.
const UNKNOWN_OF_RANGES: [&str; 3] = ["start", "stop", "step"];

fn method_of(object: &Value, name: &str) -> Option<&'static str> {
    let names: &[&'static str] = match object {
        Value::Str(_) => &strings::METHODS,
        Value::Dict(_) => &["get", "keys", "values", "items", "copy"],
        Value::List(_) => &["index", "count", "copy"],
        Value::Tuple(_) | Value::Range { .. } => &["index", "count"],
        Value::Loop(_) => &["cycle", "changed"],
        Value::Cycler(_) => &["next", "reset"],
        _ => &[],
    };
    names.iter().find(|known| **known == name).copied()
}

fn changes(object: &Value, name: &str) -> bool {
    match object {
        Value::Dict(_) => DICT_CHANGES.contains(&name),
        Value::List(_) => LIST_CHANGES.contains(&name),
        _ => false,
    }
}

/// Returns `object.name` as Python's `getattr` finds it.
fn own_attribute(object: &Value, name: &str) -> Fallible<Option<Value>> {
    if let Some(method) = method_of(object, name) {
        return Ok(Some(Value::Method((object.clone(), method).into())));
    }
    if changes(object, name) {
        let what =
            format!("access to attribute '{name}' of '{}' object is unsafe.", object.type_name());
        return Ok(Some(Value::undefined(what)));
    }
    if is_unsupported(object, name) {
        return Err(Fail::new(format!("'{name}' of '{}' is not supported", object.type_name())));
    }
    Ok(match object {
        Value::Loop(state) => state.attribute(name),
        Value::Macro(macro_) => macro_attribute(&macro_.0, name),
        Value::Blocks(blocks) => block(blocks, name),
        Value::Namespace(namespace) => namespace.fields.borrow().get_text(name).cloned(),
        Value::Cycler(cycler) if name == "current" => cycler.0.get(cycler.1.get()).cloned(),
        // Results of groupby have these two attributes.
        Value::Tuple(items) if items.len() == 2 && name == "grouper" => Some(items[0].clone()),
        Value::Tuple(items) if items.len() == 2 && name == "list" => Some(items[1].clone()),
        _ => None,
    })
}

/// Returns whether Python has an attribute of this name that isn't implemented here.
fn is_unsupported(object: &Value, name: &str) -> bool {
    match object {
        Value::Str(_) => UNKNOWN_OF_TEXTS.contains(&name),
        Value::Dict(_) => name == "fromkeys",
        Value::Int(_) | Value::Bool(_) | Value::Float(_) => UNKNOWN_OF_NUMBERS.contains(&name),
        Value::Range { .. } => UNKNOWN_OF_RANGES.contains(&name),
        Value::View(..) => name == "mapping",
        Value::Markup(_) => strings::METHODS.contains(&name) || UNKNOWN_OF_TEXTS.contains(&name),
        _ => false,
    }
}

fn block(blocks: &TemplateBlocks, name: &str) -> Option<Value> {
    let found = blocks.iter().find(|(known, _)| **known == *name);
    found.map(|(_, body)| Value::Block(Arc::clone(body)))
}

fn macro_attribute(macro_: &Macro, name: &str) -> Option<Value> {
    match name {
        "arguments" => {
            let names = macro_.params.iter().map(|(name, _)| Value::from(&**name));
            Some(Value::Tuple(Items::new(names.collect())))
        }
        "catch_kwargs" => Some(Value::Bool(macro_.takes_kwargs)),
        "catch_varargs" => Some(Value::Bool(macro_.takes_varargs)),
        "caller" => Some(Value::Bool(macro_.takes_caller)),
        "name" => Some((&*macro_.name).into()),
        _ => None,
    }
}

/// Returns `object.name`.
pub(super) fn attribute(object: &Value, name: &str) -> Fallible<Value> {
    if let Value::Undefined(what) = object {
        return Err(Fail::new(&**what));
    }
    if let Some(value) = own_attribute(object, name)? {
        return Ok(value);
    }
    if let Value::Dict(dict) = object
        && let Some(value) = dict.get_text(name)
    {
        return Ok(value.clone());
    }
    Ok(has_no(object, "attribute", &format!("'{name}'")))
}

/// Returns `object[index]`.
pub(super) fn item(object: &Value, index: &Value) -> Fallible<Value> {
    if let Value::Undefined(what) = object {
        return Err(Fail::new(&**what));
    }
    if let Value::Dict(dict) = object
        && let Some(value) = dict.get(index)
    {
        return Ok(value.clone());
    }
    if let Some(position) = index.integer() {
        let found = element(object, position);
        return Ok(found.unwrap_or_else(|| has_no(object, "element", &position.to_string())));
    }
    let name = match index.text() {
        Some(name) => name,
        None => return Ok(has_no(object, "element", &index.repr().unwrap_or_default())),
    };
    Ok(match own_attribute(object, name)? {
        Some(value) => value,
        None => has_no(object, "attribute", &format!("'{name}'")),
    })
}

/// Returns the element at a position of a sequence, which counts from the end if negative.
fn element(object: &Value, position: i128) -> Option<Value> {
    match object {
        Value::List(items) | Value::Tuple(items) => {
            Some(items[place(position, items.len())?].clone())
        }
        Value::Str(text) | Value::Markup(text) => {
            let c = if position < 0 {
                text.chars().rev().nth(usize::try_from(-position - 1).unwrap_or(usize::MAX))
            } else {
                text.chars().nth(usize::try_from(position).unwrap_or(usize::MAX))
            };
            Some(Value::from(c?.to_string()))
        }
        Value::Range { start, step, length } => {
            Some(Value::Int(start + step * place(position, *length)? as i128))
        }
        _ => None,
    }
}

fn place(position: i128, length: usize) -> Option<usize> {
    let position = if position < 0 { position + length as i128 } else { position };
    usize::try_from(position).ok().filter(|position| *position < length)
}

/// Returns `object[start:stop:step]`.
pub(super) fn slice(object: &Value, bounds: &[Value; 3]) -> Fallible<Value> {
    if let Value::Undefined(what) = object {
        return Err(Fail::new(&**what));
    }
    let are_integers =
        bounds.iter().all(|bound| matches!(bound, Value::None) || bound.integer().is_some());
    let is_sequence = matches!(
        object,
        Value::Str(_) | Value::Markup(_) | Value::List(_) | Value::Tuple(_) | Value::Range { .. }
    );
    if !are_integers || !is_sequence {
        return Ok(has_no(object, "element", "of a slice"));
    }
    let [start, stop, step] = bounds.each_ref().map(Value::integer);
    let step = step.unwrap_or(1);
    if step == 0 {
        return Err(Fail::new("slice step cannot be zero"));
    }
    let places = places([start, stop], step, object.length().unwrap_or(0) as i128);
    Ok(elements(object, step, &places))
}

/// Returns the positions from one bound to the other in a sequence of `length` elements.
fn places(bounds: [Option<i128>; 2], step: i128, length: i128) -> Vec<usize> {
    // Backwards, the stop may be before the first element.
    let (lowest, highest) = if step > 0 { (0, length) } else { (-1, length - 1) };
    let [start, stop] = bounds
        .map(|bound| bound.map(|at| if at < 0 { at + length } else { at }.clamp(lowest, highest)));
    let (first, last) = if step > 0 { (lowest, highest) } else { (highest, lowest) };
    let stop = stop.unwrap_or(last);
    let mut at = start.unwrap_or(first);
    let mut places = Vec::new();
    while (step > 0 && at < stop) || (step < 0 && at > stop) {
        places.push(at as usize);
        at = at.saturating_add(step);
    }
    places
}

/// Returns the elements at `places`, which are `step` apart, as a sequence of the same kind.
fn elements(object: &Value, step: i128, places: &[usize]) -> Value {
    match object {
        Value::Str(text) => Value::Str(characters(text, places)),
        Value::Markup(text) => Value::Markup(characters(text, places)),
        Value::List(items) => Value::List(picked(items, places)),
        Value::Tuple(items) => Value::Tuple(picked(items, places)),
        Value::Range { start, step: by, .. } => {
            let first = places.first().map_or(0, |at| *at as i128);
            Value::Range { start: start + by * first, step: by * step, length: places.len() }
        }
        _ => Value::None,
    }
}

fn characters(text: &str, places: &[usize]) -> Str {
    let chars: Vec<char> = text.chars().collect();
    Str::new(places.iter().map(|at| chars[*at]).collect::<String>())
}

fn picked(items: &[Value], places: &[usize]) -> Items {
    Items::new(places.iter().map(|at| items[*at].clone()).collect())
}
