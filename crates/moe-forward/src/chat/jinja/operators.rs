//! Python's operators, attributes, items and slices.

use std::cmp::Ordering;

use super::ast::{Binary, Comparison};
use super::interpreter::Interpreter;
use super::value::{Items, Text, Value};
use super::{Fail, Outcome, format, strings};

/// Markup's way of escaping.
pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('>', "&gt;")
        .replace('<', "&lt;")
        .replace('\'', "&#39;")
        .replace('"', "&#34;")
}

/// How many bytes that gives.
pub(super) fn escaped_bytes(text: &str) -> usize {
    let longer = text.bytes().filter(|byte| b"&><'\"".contains(byte)).count();
    text.len() + 4 * longer
}

fn has_no(object: &Value, what: &str, name: &str) -> Value {
    let object = match object {
        Value::None => "None".to_owned(),
        other => format!("{} object", other.type_name()),
    };
    Value::undefined(format!("'{object}' has no {what} {name}"))
}

/// Methods of dictionaries and lists that the sandbox forbids, since they change them.
const CHANGES: [&str; 12] = [
    "clear",
    "pop",
    "popitem",
    "setdefault",
    "update",
    "append",
    "reverse",
    "insert",
    "sort",
    "extend",
    "remove",
    "__setitem__",
];
/// Attributes that Python has and that aren't known here.
const UNKNOWN: [&str; 22] = [
    "encode",
    "translate",
    "maketrans",
    "format_map",
    "fromkeys",
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
    "mapping",
    "start",
    "stop",
    "step",
];

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
    let is_dict = matches!(object, Value::Dict(_));
    (is_dict && CHANGES[..5].contains(&name))
        || (matches!(object, Value::List(_))
            && (CHANGES[5..11].contains(&name) || matches!(name, "clear" | "pop")))
}

/// `object.name` as Python's `getattr` finds it.
fn own_attribute(object: &Value, name: &str) -> Outcome<Option<Value>> {
    if let Some(method) = method_of(object, name) {
        return Ok(Some(Value::Method((object.clone(), method).into())));
    }
    if changes(object, name) {
        let what =
            format!("access to attribute '{name}' of '{}' object is unsafe.", object.type_name());
        return Ok(Some(Value::undefined(what)));
    }
    let known = match object {
        Value::Str(_) => UNKNOWN[..4].contains(&name),
        Value::Dict(_) => name == "fromkeys",
        Value::Int(_) | Value::Bool(_) | Value::Float(_) => UNKNOWN[5..18].contains(&name),
        Value::Range { .. } => UNKNOWN[19..].contains(&name),
        Value::View(..) => name == "mapping",
        Value::Markup(_) => strings::METHODS.contains(&name) || UNKNOWN[..4].contains(&name),
        _ => false,
    };
    if known {
        return Err(Fail::new(format!("'{name}' of '{}' is not supported", object.type_name())));
    }
    Ok(match object {
        Value::Loop(state) => state.attribute(name),
        Value::Macro(macro_) if name == "arguments" => {
            let names = macro_.0.params.iter().map(|(name, _)| Value::from(&**name));
            Some(Value::Tuple(Items::new(names.collect())))
        }
        Value::Macro(macro_) if name == "catch_kwargs" => Some(Value::Bool(macro_.0.takes_kwargs)),
        Value::Macro(macro_) if name == "catch_varargs" => {
            Some(Value::Bool(macro_.0.takes_varargs))
        }
        Value::Macro(macro_) if name == "caller" => Some(Value::Bool(macro_.0.takes_caller)),
        Value::Macro(macro_) if name == "name" => Some((&*macro_.0.name).into()),
        Value::Blocks(blocks) => {
            let found = blocks.iter().find(|(known, _)| **known == *name);
            found.map(|(_, body)| Value::Block(std::sync::Arc::clone(body)))
        }
        Value::Namespace(namespace) => namespace.fields.borrow().get_text(name).cloned(),
        Value::Cycler(cycler) if name == "current" => cycler.0.get(cycler.1.get()).cloned(),
        // What groupby gives.
        Value::Tuple(items) if items.len() == 2 && name == "grouper" => Some(items[0].clone()),
        Value::Tuple(items) if items.len() == 2 && name == "list" => Some(items[1].clone()),
        _ => None,
    })
}

/// `object.name`.
pub(super) fn attribute(object: &Value, name: &str) -> Outcome<Value> {
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

/// `object[index]`.
pub(super) fn item(object: &Value, index: &Value) -> Outcome<Value> {
    if let Value::Undefined(what) = object {
        return Err(Fail::new(&**what));
    }
    if let Value::Dict(dict) = object
        && let Some(value) = dict.get(index)
    {
        return Ok(value.clone());
    }
    if let Some(position) = index.integer() {
        let at = |length: usize| {
            let position = if position < 0 { position + length as i128 } else { position };
            usize::try_from(position).ok().filter(|position| *position < length)
        };
        let found = match object {
            Value::List(items) | Value::Tuple(items) => at(items.len()).map(|at| items[at].clone()),
            Value::Str(text) | Value::Markup(text) => {
                let found = if position < 0 {
                    let back = usize::try_from(-position - 1).unwrap_or(usize::MAX);
                    text.chars().rev().nth(back)
                } else {
                    text.chars().nth(usize::try_from(position).unwrap_or(usize::MAX))
                };
                found.map(|c| Value::from(c.to_string()))
            }
            Value::Range { start, step, length } => {
                at(*length).map(|at| Value::Int(start + step * at as i128))
            }
            _ => None,
        };
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

/// `object[start:stop:step]`.
pub(super) fn slice(object: &Value, bounds: &[Value; 3]) -> Outcome<Value> {
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
    let length = object.length().unwrap_or(0) as i128;
    let step = bounds[2].integer().unwrap_or(1);
    if step == 0 {
        return Err(Fail::new("slice step cannot be zero"));
    }
    let clamp = |bound: &Value, otherwise: i128| match bound.integer() {
        None => otherwise,
        Some(at) => {
            let at = if at < 0 { at + length } else { at };
            if step > 0 { at.clamp(0, length) } else { at.clamp(-1, length - 1) }
        }
    };
    let (start, stop) = if step > 0 {
        (clamp(&bounds[0], 0), clamp(&bounds[1], length))
    } else {
        (clamp(&bounds[0], length - 1), clamp(&bounds[1], -1))
    };
    let mut places = Vec::new();
    let mut at = start;
    while (step > 0 && at < stop) || (step < 0 && at > stop) {
        places.push(at as usize);
        at = at.saturating_add(step);
    }
    let picked = |items: &[Value]| Items::new(places.iter().map(|at| items[*at].clone()).collect());
    Ok(match object {
        Value::Str(text) | Value::Markup(text) => {
            let chars: Vec<char> = text.chars().collect();
            let part = Text::new(places.iter().map(|at| chars[*at]).collect::<String>());
            if matches!(object, Value::Str(_)) { Value::Str(part) } else { Value::Markup(part) }
        }
        Value::List(items) => Value::List(picked(items)),
        Value::Tuple(items) => Value::Tuple(picked(items)),
        Value::Range { start, step: by, .. } => {
            let first = places.first().map_or(0, |at| *at as i128);
            Value::Range { start: start + by * first, step: by * step, length: places.len() }
        }
        _ => Value::None,
    })
}

fn undefined<T>(values: [&Value; 2]) -> Outcome<Option<T>> {
    for value in values {
        if let Value::Undefined(what) = value {
            return Err(Fail::new(&**what));
        }
    }
    Ok(None)
}

/// `left` and `right` compared.
pub(super) fn compare(comparison: Comparison, left: &Value, right: &Value) -> Outcome<bool> {
    let order = || left.compare(right);
    Ok(match comparison {
        Comparison::Eq => left.equals(right),
        Comparison::Ne => !left.equals(right),
        Comparison::Lt => order()? == Some(Ordering::Less),
        Comparison::Le => matches!(order()?, Some(Ordering::Less | Ordering::Equal)),
        Comparison::Gt => order()? == Some(Ordering::Greater),
        Comparison::Ge => matches!(order()?, Some(Ordering::Greater | Ordering::Equal)),
        Comparison::In => contains(right, left)?,
        Comparison::NotIn => !contains(right, left)?,
    })
}

/// Python's `value in container`.
pub(super) fn contains(container: &Value, value: &Value) -> Outcome<bool> {
    match container {
        Value::Str(text) | Value::Markup(text) => match value.text() {
            Some(part) => Ok(text.contains(part)),
            None => Err(Fail::new(format!(
                "'in <string>' requires string as left operand, not {}",
                value.type_name()
            ))),
        },
        Value::Dict(dict) => {
            if matches!(value, Value::List(_) | Value::Dict(_)) {
                return Err(Fail::new(format!("unhashable type: '{}'", value.type_name())));
            }
            Ok(dict.get(value).is_some())
        }
        Value::Undefined(_) => Ok(false),
        Value::List(items) | Value::Tuple(items) | Value::View(_, items) => {
            Ok(items.iter().any(|item| item.is(value) || item.equals(value)))
        }
        Value::Range { .. } | Value::Once(_) => {
            Ok(container.iterate()?.iter().any(|item| item.is(value) || item.equals(value)))
        }
        _ => {
            Err(Fail::new(format!("argument of type '{}' is not iterable", container.type_name())))
        }
    }
}

/// `-value`.
pub(super) fn negative(value: &Value) -> Outcome<Value> {
    undefined::<()>([value, value])?;
    match (value.integer(), value) {
        (Some(number), _) => number.checked_neg().map(Value::Int).ok_or_else(too_large),
        (None, Value::Float(number)) => Ok(Value::Float(-number)),
        _ => Err(Fail::new(format!("bad operand type for unary -: '{}'", value.type_name()))),
    }
}

/// `+value`.
pub(super) fn positive(value: &Value) -> Outcome<Value> {
    undefined::<()>([value, value])?;
    match (value.integer(), value) {
        (Some(number), _) => Ok(Value::Int(number)),
        (None, Value::Float(number)) => Ok(Value::Float(*number)),
        _ => Err(Fail::new(format!("bad operand type for unary +: '{}'", value.type_name()))),
    }
}

fn too_large() -> Fail {
    Fail::new("an integer beyond 128 bits is not supported")
}

/// Python's floor division and remainder, whose sign is the divisor's.
fn floor_divided(a: i128, b: i128) -> Outcome<(i128, i128)> {
    let (Some(quotient), Some(rest)) = (a.checked_div(b), a.checked_rem(b)) else {
        return Err(if b == 0 {
            Fail::new("integer division or modulo by zero")
        } else {
            too_large()
        });
    };
    if rest != 0 && (rest < 0) != (b < 0) {
        Ok((quotient - 1, rest + b))
    } else {
        Ok((quotient, rest))
    }
}

fn float_mod(a: f64, b: f64) -> f64 {
    let rest = a % b;
    if rest == 0.0 {
        0.0f64.copysign(b)
    } else if (rest < 0.0) != (b < 0.0) {
        rest + b
    } else {
        rest
    }
}

fn integers(operator: Binary, a: i128, b: i128) -> Outcome<Value> {
    let checked = |value: Option<i128>| value.map(Value::Int).ok_or_else(too_large);
    match operator {
        Binary::Add => checked(a.checked_add(b)),
        Binary::Sub => checked(a.checked_sub(b)),
        Binary::Mul => checked(a.checked_mul(b)),
        Binary::FloorDiv => Ok(Value::Int(floor_divided(a, b)?.0)),
        Binary::Mod => Ok(Value::Int(floor_divided(a, b)?.1)),
        Binary::Pow if b >= 0 => match a {
            0 | 1 => Ok(Value::Int(if b == 0 { 1 } else { a })),
            -1 => Ok(Value::Int(if b % 2 == 0 { 1 } else { -1 })),
            _ => checked(u32::try_from(b).ok().and_then(|b| a.checked_pow(b))),
        },
        Binary::Div | Binary::Pow => floats(operator, a as f64, b as f64),
    }
}

fn floats(operator: Binary, a: f64, b: f64) -> Outcome<Value> {
    if b == 0.0 && matches!(operator, Binary::Div | Binary::FloorDiv | Binary::Mod) {
        return Err(Fail::new("division by zero"));
    }
    if operator == Binary::Pow && a == 0.0 && b < 0.0 {
        return Err(Fail::new("0.0 cannot be raised to a negative power"));
    }
    if operator == Binary::Pow && a < 0.0 && b.fract() != 0.0 {
        return Err(Fail::new("complex numbers are not supported"));
    }
    Ok(Value::Float(match operator {
        Binary::Add => a + b,
        Binary::Sub => a - b,
        Binary::Mul => a * b,
        Binary::Div => a / b,
        Binary::FloorDiv => {
            let quotient = (a - float_mod(a, b)) / b;
            let floor = quotient.floor();
            if quotient - floor > 0.5 { floor + 1.0 } else { floor }
        }
        Binary::Mod => float_mod(a, b),
        Binary::Pow => a.powf(b),
    }))
}

impl Interpreter {
    /// `left` and `right` joined by `operator`.
    pub fn binary(&mut self, operator: Binary, left: &Value, right: &Value) -> Outcome<Value> {
        undefined::<()>([left, right])?;
        if operator == Binary::Mod
            && let Value::Str(text) = left
        {
            return format::percent(self, text, right);
        }
        if let (Some(a), Some(b)) = (left.integer(), right.integer()) {
            return integers(operator, a, b);
        }
        if let (Some(a), Some(b)) = (left.number(), right.number()) {
            return floats(operator, a, b);
        }
        match (operator, left, right) {
            (Binary::Add, Value::Str(a), Value::Str(b)) => {
                self.handled(a.len() + b.len())?;
                Ok([&**a, &**b].concat().into())
            }
            (Binary::Add, Value::Markup(a), Value::Str(b)) => {
                self.handled(a.len() + escaped_bytes(b))?;
                Ok(Value::Markup(Text::new(a.to_string() + &escaped(b))))
            }
            (Binary::Add, Value::Str(a), Value::Markup(b)) => {
                self.handled(escaped_bytes(a) + b.len())?;
                Ok(Value::Markup(Text::new(escaped(a) + b)))
            }
            (Binary::Add, Value::Markup(a), Value::Markup(b)) => {
                self.handled(a.len() + b.len())?;
                Ok(Value::Markup(Text::new(a.to_string() + b)))
            }
            (Binary::Add, Value::List(a), Value::List(b)) => Ok(Value::List(self.joined(a, b)?)),
            (Binary::Add, Value::Tuple(a), Value::Tuple(b)) => Ok(Value::Tuple(self.joined(a, b)?)),
            (Binary::Mul, value, count) | (Binary::Mul, count, value)
                if count.integer().is_some()
                    && matches!(value, Value::Str(_) | Value::List(_) | Value::Tuple(_)) =>
            {
                self.repeated(value, count.integer().unwrap_or(0))
            }
            _ => {
                let what =
                    format!("unsupported operand types for {operator:?}: '{}'", left.type_name());
                Err(Fail::new(format!("{what} and '{}'", right.type_name())))
            }
        }
    }

    fn joined(&mut self, a: &Items, b: &Items) -> Outcome<Items> {
        let bytes = (a.len() + b.len()) * size_of::<Value>();
        self.handled(bytes)?;
        Ok(Items::new([&**a, &**b].concat()))
    }

    fn repeated(&mut self, value: &Value, count: i128) -> Outcome<Value> {
        let count = usize::try_from(count.max(0)).unwrap_or(usize::MAX);
        let bytes = match value {
            Value::Str(text) => text.len(),
            Value::List(items) | Value::Tuple(items) => items.len() * size_of::<Value>(),
            _ => 0,
        };
        let bytes = bytes.saturating_mul(count);
        self.handled(bytes)?;
        let items = |items: &Items| {
            let count = if items.is_empty() { 0 } else { count };
            Items::new(std::iter::repeat_n(&**items, count).flatten().cloned().collect())
        };
        Ok(match value {
            Value::Str(text) if !text.is_empty() => text.repeat(count).into(),
            Value::List(list) => Value::List(items(list)),
            Value::Tuple(tuple) => Value::Tuple(items(tuple)),
            _ => "".into(),
        })
    }
}
