//! Python's operators.

use std::borrow::Cow;
use std::cmp::Ordering;

use super::ast::{Binary, CompareOp};
use super::interpreter::Interpreter;
use super::value::{Items, Str, Value};
use super::{Fail, Fallible, percent};

/// Escapes `text` for HTML as Markup does.
pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('>', "&gt;")
        .replace('<', "&lt;")
        .replace('\'', "&#39;")
        .replace('"', "&#34;")
}

/// Returns the length of `escaped(text)` in bytes.
pub(super) fn escaped_bytes(text: &str) -> usize {
    let longer = text.bytes().filter(|byte| b"&><'\"".contains(byte)).count();
    text.len() + 4 * longer
}

/// Checks that no value is undefined.
fn check_defined(values: &[&Value]) -> Fallible<()> {
    for value in values {
        if let Value::Undefined(what) = value {
            return Err(Fail::new(&**what));
        }
    }
    Ok(())
}

/// Compares `left` and `right`.
pub(super) fn compare(comparison: CompareOp, left: &Value, right: &Value) -> Fallible<bool> {
    Ok(match comparison {
        CompareOp::Eq => left.equals(right),
        CompareOp::Ne => !left.equals(right),
        CompareOp::Lt => left.compare(right)? == Some(Ordering::Less),
        CompareOp::Le => matches!(left.compare(right)?, Some(Ordering::Less | Ordering::Equal)),
        CompareOp::Gt => left.compare(right)? == Some(Ordering::Greater),
        CompareOp::Ge => matches!(left.compare(right)?, Some(Ordering::Greater | Ordering::Equal)),
        CompareOp::In => contains(right, left)?,
        CompareOp::NotIn => !contains(right, left)?,
    })
}

/// Evaluates Python's `value in container`.
pub(super) fn contains(container: &Value, value: &Value) -> Fallible<bool> {
    match container {
        Value::Str(text) | Value::Markup(text) => match value.text() {
            Some(part) => Ok(text.contains(part)),
            None => Err(Fail::new(format!(
                "'in <string>' requires string as left operand, not {}",
                value.type_name()
            ))),
        },
        Value::Dict(_) if matches!(value, Value::List(_) | Value::Dict(_)) => {
            Err(Fail::new(format!("unhashable type: '{}'", value.type_name())))
        }
        Value::Dict(dict) => Ok(dict.get(value).is_some()),
        Value::Undefined(_) => Ok(false),
        Value::List(items) | Value::Tuple(items) | Value::View(_, items) => Ok(is_in(items, value)),
        Value::Range { .. } | Value::Generator(_) => Ok(is_in(&container.iterate()?, value)),
        _ => {
            Err(Fail::new(format!("argument of type '{}' is not iterable", container.type_name())))
        }
    }
}

fn is_in(items: &[Value], value: &Value) -> bool {
    items.iter().any(|item| item.is(value) || item.equals(value))
}

/// Evaluates `-value`.
pub(super) fn negative(value: &Value) -> Fallible<Value> {
    check_defined(&[value])?;
    match (value.integer(), value) {
        (Some(number), _) => number.checked_neg().map(Value::Int).ok_or_else(too_large),
        (None, Value::Float(number)) => Ok(Value::Float(-number)),
        _ => Err(Fail::new(format!("bad operand type for unary -: '{}'", value.type_name()))),
    }
}

/// Evaluates `+value`.
pub(super) fn positive(value: &Value) -> Fallible<Value> {
    check_defined(&[value])?;
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
fn floor_divided(a: i128, b: i128) -> Fallible<(i128, i128)> {
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

fn integers(operator: Binary, a: i128, b: i128) -> Fallible<Value> {
    match operator {
        Binary::Add => integer(a.checked_add(b)),
        Binary::Sub => integer(a.checked_sub(b)),
        Binary::Mul => integer(a.checked_mul(b)),
        Binary::FloorDiv => Ok(Value::Int(floor_divided(a, b)?.0)),
        Binary::Mod => Ok(Value::Int(floor_divided(a, b)?.1)),
        Binary::Pow if b >= 0 => match a {
            0 | 1 => Ok(Value::Int(if b == 0 { 1 } else { a })),
            -1 => Ok(Value::Int(if b % 2 == 0 { 1 } else { -1 })),
            _ => integer(u32::try_from(b).ok().and_then(|b| a.checked_pow(b))),
        },
        Binary::Div | Binary::Pow => floats(operator, a as f64, b as f64),
    }
}

/// Returns the result of a checked operation.
fn integer(value: Option<i128>) -> Fallible<Value> {
    value.map(Value::Int).ok_or_else(too_large)
}

fn floats(operator: Binary, a: f64, b: f64) -> Fallible<Value> {
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

fn repeated_items(items: &Items, count: usize) -> Items {
    let count = if items.is_empty() { 0 } else { count };
    Items::new(std::iter::repeat_n(&**items, count).flatten().cloned().collect())
}

/// Returns a string as markup: escaped, unless it is markup already.
fn markup(text: &Value) -> Cow<'_, str> {
    match text {
        Value::Markup(text) => Cow::Borrowed(&**text),
        other => Cow::Owned(escaped(other.text().unwrap_or_default())),
    }
}

/// Returns the length of a string as markup, in bytes.
fn markup_bytes(text: &Value) -> usize {
    match text {
        Value::Markup(text) => text.len(),
        other => escaped_bytes(other.text().unwrap_or_default()),
    }
}

impl Interpreter {
    /// Evaluates `left operator right`.
    pub fn binary(&mut self, operator: Binary, left: &Value, right: &Value) -> Fallible<Value> {
        check_defined(&[left, right])?;
        if operator == Binary::Mod
            && let Value::Str(text) = left
        {
            return percent::format(self, text, right);
        }
        if let (Some(a), Some(b)) = (left.integer(), right.integer()) {
            return integers(operator, a, b);
        }
        if let (Some(a), Some(b)) = (left.number(), right.number()) {
            return floats(operator, a, b);
        }
        match (operator, left, right) {
            (Binary::Add, Value::Str(_) | Value::Markup(_), Value::Str(_) | Value::Markup(_)) => {
                self.concatenated(left, right)
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
                let (a, b) = (left.type_name(), right.type_name());
                let what = format!("unsupported operand types for {operator:?}: '{a}' and '{b}'");
                Err(Fail::new(what))
            }
        }
    }

    /// Joins two strings. The result is markup if either of them is.
    fn concatenated(&mut self, left: &Value, right: &Value) -> Fallible<Value> {
        if let (Value::Str(a), Value::Str(b)) = (left, right) {
            self.handled(a.len() + b.len())?;
            return Ok([&**a, &**b].concat().into());
        }
        self.handled(markup_bytes(left) + markup_bytes(right))?;
        Ok(Value::Markup(Str::new([markup(left), markup(right)].concat())))
    }

    fn joined(&mut self, a: &Items, b: &Items) -> Fallible<Items> {
        let bytes = (a.len() + b.len()) * size_of::<Value>();
        self.handled(bytes)?;
        Ok(Items::new([&**a, &**b].concat()))
    }

    fn repeated(&mut self, value: &Value, count: i128) -> Fallible<Value> {
        let count = usize::try_from(count.max(0)).unwrap_or(usize::MAX);
        let bytes = match value {
            Value::Str(text) => text.len(),
            Value::List(items) | Value::Tuple(items) => items.len() * size_of::<Value>(),
            _ => 0,
        };
        let bytes = bytes.saturating_mul(count);
        self.handled(bytes)?;
        Ok(match value {
            Value::Str(text) if !text.is_empty() => text.repeat(count).into(),
            Value::List(list) => Value::List(repeated_items(list, count)),
            Value::Tuple(tuple) => Value::Tuple(repeated_items(tuple, count)),
            _ => "".into(),
        })
    }
}
