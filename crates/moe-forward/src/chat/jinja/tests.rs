//! Jinja2's tests, which follow `is`.

use super::args::{CallArgs, integer, required};
use super::ast::CompareOp;
use super::interpreter::Interpreter;
use super::value::Value;
use super::{Fail, Fallible, filters, letters, operators};

const NAMES: [&str; 39] = [
    "odd",
    "even",
    "divisibleby",
    "defined",
    "undefined",
    "filter",
    "test",
    "none",
    "boolean",
    "false",
    "true",
    "integer",
    "float",
    "lower",
    "upper",
    "string",
    "mapping",
    "number",
    "sequence",
    "iterable",
    "callable",
    "sameas",
    "escaped",
    "in",
    "==",
    "eq",
    "equalto",
    "!=",
    "ne",
    ">",
    "gt",
    "greaterthan",
    "ge",
    ">=",
    "<",
    "lt",
    "lessthan",
    "<=",
    "le",
];

impl Interpreter {
    /// Evaluates `value is name(args)`.
    pub fn test(&mut self, name: &str, value: &Value, args: CallArgs) -> Fallible<bool> {
        self.step(0)?;
        if let Some(comparison) = comparison(name) {
            let [other] = args.bind(name, ["other"])?;
            return operators::compare(comparison, value, &required(other, name, "other")?);
        }
        if matches!(name, "divisibleby" | "sameas") {
            let [other] = args.bind(name, ["other"])?;
            let other = required(other, name, "other")?;
            if name == "sameas" {
                return Ok(value.is(&other));
            }
            let rest = self.binary(super::ast::Binary::Mod, value, &other)?;
            return Ok(!rest.is_true());
        }
        args.none(name)?;
        without_args(name, value)
    }
}

fn comparison(name: &str) -> Option<CompareOp> {
    match name {
        "in" => Some(CompareOp::In),
        "==" | "eq" | "equalto" => Some(CompareOp::Eq),
        "!=" | "ne" => Some(CompareOp::Ne),
        ">" | "gt" | "greaterthan" => Some(CompareOp::Gt),
        ">=" | "ge" => Some(CompareOp::Ge),
        "<" | "lt" | "lessthan" => Some(CompareOp::Lt),
        "<=" | "le" => Some(CompareOp::Le),
        _ => None,
    }
}

/// Evaluates tests that take no arguments.
fn without_args(name: &str, value: &Value) -> Fallible<bool> {
    Ok(match name {
        "odd" => integer_rest(value)? == 1,
        "even" => integer_rest(value)? == 0,
        "defined" => !value.is_undefined(),
        "undefined" => value.is_undefined(),
        "filter" => value.text().is_some_and(|name| filters::NAMES.contains(&name)),
        "test" => value.text().is_some_and(|name| NAMES.contains(&name)),
        "none" => matches!(value, Value::None),
        "boolean" => matches!(value, Value::Bool(_)),
        "false" => matches!(value, Value::Bool(false)),
        "true" => matches!(value, Value::Bool(true)),
        "integer" => matches!(value, Value::Int(_)),
        "float" => matches!(value, Value::Float(_)),
        "lower" => letters::is_cased(&value.to_text()?, false),
        "upper" => letters::is_cased(&value.to_text()?, true),
        "string" => value.text().is_some(),
        "mapping" => matches!(value, Value::Dict(_)),
        "number" => value.number().is_some(),
        "sequence" => is_sequence(value),
        "iterable" => is_iterable(value),
        "callable" => is_callable(value),
        "escaped" => matches!(value, Value::Markup(_)),
        _ => return Err(Fail::new(format!("No test named '{name}'."))),
    })
}

fn is_sequence(value: &Value) -> bool {
    matches!(
        value,
        Value::Undefined(_)
            | Value::Str(_)
            | Value::Markup(_)
            | Value::List(_)
            | Value::Tuple(_)
            | Value::Dict(_)
            | Value::Range { .. }
    )
}

fn is_iterable(value: &Value) -> bool {
    is_sequence(value) || matches!(value, Value::View(..) | Value::Generator(_) | Value::Loop(_))
}

fn is_callable(value: &Value) -> bool {
    matches!(
        value,
        Value::Undefined(_)
            | Value::Macro(_)
            | Value::Method(_)
            | Value::Function(_)
            | Value::Loop(_)
            | Value::Joiner(_)
    )
}

fn integer_rest(value: &Value) -> Fallible<i128> {
    match value {
        Value::Float(number) if number.rem_euclid(2.0) == 1.0 => Ok(1),
        Value::Float(number) if number.rem_euclid(2.0) == 0.0 => Ok(0),
        Value::Float(_) => Ok(2),
        _ => Ok(integer(value, "odd and even")?.rem_euclid(2)),
    }
}
