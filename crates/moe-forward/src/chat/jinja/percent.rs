//! Python's `'%s' % value`.

use super::interpreter::Interpreter;
use super::spec::{Spec, number, take, take_number};
use super::value::{Str, Value};
use super::{Fail, Fallible, repr};

/// Formats `pattern % values`.
pub(super) fn format(run: &mut Interpreter, pattern: &Str, values: &Value) -> Fallible<Value> {
    let mut operands = Operands::new(values);
    let mut result = String::new();
    let mut rest: &str = pattern;
    while let Some(at) = rest.find('%') {
        result.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if take(&mut rest, "%").is_some() {
            result.push('%');
            continue;
        }
        let text = operands.field(&mut rest)?;
        run.append(&text, &mut result)?;
    }
    result.push_str(rest);
    operands.end()?;
    Ok(result.into())
}

/// The operands that a pattern's fields take their values from.
struct Operands<'a> {
    values: &'a Value,
    positional: std::vec::IntoIter<Value>,
    used_mapping: bool,
}

impl<'a> Operands<'a> {
    fn new(values: &'a Value) -> Self {
        let positional = match values {
            Value::Tuple(items) => items.to_vec(),
            other => vec![other.clone()],
        };
        Self { values, positional: positional.into_iter(), used_mapping: false }
    }

    /// Takes from `rest` the field after a `%`, and returns its text.
    fn field(&mut self, rest: &mut &str) -> Fallible<String> {
        let key = take_key(rest)?;
        let mut spec = take_flags(rest);
        spec.width = match take(rest, "*") {
            Some(_) => number(&self.next()?.to_text()?)?,
            None => take_number(rest)?,
        };
        if take(rest, ".").is_some() {
            spec.precision = Some(take_number(rest)?);
        }
        take(rest, "hlL");
        let Some(kind) = rest.chars().next() else { return Err(Fail::new("incomplete format")) };
        *rest = &rest[kind.len_utf8()..];
        let value = match key {
            Some(key) => self.named(key)?,
            None => self.next()?,
        };
        converted(spec, kind, &value)
    }

    fn next(&mut self) -> Fallible<Value> {
        let next = self.positional.next();
        next.ok_or_else(|| Fail::new("not enough arguments for format string"))
    }

    fn named(&mut self, key: &str) -> Fallible<Value> {
        let Value::Dict(dict) = self.values else {
            return Err(Fail::new("format requires a mapping"));
        };
        self.used_mapping = true;
        dict.get_text(key).cloned().ok_or_else(|| Fail::new(format!("KeyError: {key:?}")))
    }

    /// Checks that fields took all values.
    fn end(mut self) -> Fallible<()> {
        let is_mapping =
            self.used_mapping || matches!(self.values, Value::Dict(_) | Value::List(_));
        if self.positional.next().is_some() && !is_mapping {
            return Err(Fail::new("not all arguments converted during string formatting"));
        }
        Ok(())
    }
}

/// Takes the key in parentheses from the start of `rest`; None if there is no key.
fn take_key<'a>(rest: &mut &'a str) -> Fallible<Option<&'a str>> {
    let Some(after) = rest.strip_prefix('(') else { return Ok(None) };
    let (key, after) = after.split_once(')').ok_or_else(|| Fail::new("incomplete format key"))?;
    *rest = after;
    Ok(Some(key))
}

fn take_flags(rest: &mut &str) -> Spec {
    let mut spec = Spec::default();
    while let Some(flag) = take(rest, "#0- +") {
        match flag {
            '#' => spec.alternate = true,
            '0' => spec.zero = true,
            '-' => spec.align = Some('<'),
            sign => spec.sign = if spec.sign == Some('+') { spec.sign } else { Some(sign) },
        }
    }
    spec
}

fn converted(mut spec: Spec, kind: char, value: &Value) -> Fallible<String> {
    if matches!(kind, 's' | 'r' | 'a') {
        spec.align = Some(spec.align.unwrap_or('>'));
        spec.zero = false;
        return spec.apply(&written(kind, value)?.into());
    }
    if spec.align == Some('<') {
        spec.zero = false;
    }
    if let Value::Undefined(what) = value {
        return Err(Fail::new(&**what));
    }
    spec.kind = Some(kind);
    match kind {
        'c' if value.text().is_some_and(|text| text.chars().count() == 1) => {
            spec.kind = None;
            spec.align = Some(spec.align.unwrap_or('>'));
            spec.apply(value)
        }
        'd' | 'i' | 'u' => decimal(spec, kind, value),
        'x' | 'X' | 'o' | 'c' if value.integer().is_some() => spec.apply(value),
        'e' | 'E' | 'f' | 'F' | 'g' | 'G' if value.number().is_some() => {
            spec.apply(&Value::Float(value.number().unwrap_or(0.0)))
        }
        'x' | 'X' | 'o' | 'c' | 'e' | 'E' | 'f' | 'F' | 'g' | 'G' => Err(not_a_number(kind, value)),
        _ => Err(Fail::new(format!("unsupported format character '{kind}'"))),
    }
}

fn written(kind: char, value: &Value) -> Fallible<String> {
    match kind {
        's' => value.to_text(),
        'r' => value.repr(),
        _ => Ok(repr::ascii(&value.repr()?)),
    }
}

/// Formats a number as an integer, with at least as many digits as the precision.
fn decimal(mut spec: Spec, kind: char, value: &Value) -> Fallible<String> {
    spec.kind = Some('d');
    let number = match value {
        Value::Float(number) if number.abs() < 1e38 => Some(number.trunc() as i128),
        other => other.integer(),
    };
    let number = number.ok_or_else(|| not_a_number(kind, value))?;
    match spec.precision.take() {
        Some(digits) => {
            let text = number.unsigned_abs().to_string();
            let text = "0".repeat(digits.saturating_sub(text.len())) + &text;
            Ok(spec.pad_number(number < 0, "", &text))
        }
        None => spec.apply(&Value::Int(number)),
    }
}

fn not_a_number(kind: char, value: &Value) -> Fail {
    let name = value.type_name();
    Fail::new(format!("%{kind} format: a number is required, not {name}"))
}
