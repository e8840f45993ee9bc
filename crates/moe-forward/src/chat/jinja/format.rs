//! Python's `'{}'.format(value)`.

use super::args::CallArgs;
use super::interpreter::Interpreter;
use super::spec::Spec;
use super::value::{Str, Value};
use super::{Fail, Fallible, attributes, repr};

/// Formats `pattern.format(args)`.
pub(super) fn format(run: &mut Interpreter, pattern: &Str, args: &CallArgs) -> Fallible<Value> {
    Ok(FormatArgs { args, next: 0 }.formatted(run, pattern, 2)?.into())
}

/// The arguments that a pattern's fields take their values from.
struct FormatArgs<'a> {
    args: &'a CallArgs,
    /// The index of the argument for the next field without a name.
    next: usize,
}

impl FormatArgs<'_> {
    /// Returns `pattern` with its fields filled in. Their specifications may have fields
    /// themselves, `depth` levels deep.
    fn formatted(
        &mut self,
        run: &mut Interpreter,
        pattern: &str,
        depth: usize,
    ) -> Fallible<String> {
        let mut result = String::new();
        let mut rest = pattern;
        while let Some(at) = rest.find(['{', '}']) {
            result.push_str(&rest[..at]);
            let brace = &rest[at..=at];
            rest = &rest[at + 1..];
            if rest.starts_with(brace) {
                result.push_str(brace);
                rest = &rest[1..];
                continue;
            }
            if brace == "}" {
                return Err(Fail::new("Single '}' encountered in format string"));
            }
            let text = self.field(run, take_field(&mut rest)?, depth)?;
            run.append(&text, &mut result)?;
        }
        result.push_str(rest);
        Ok(result)
    }

    fn field(&mut self, run: &mut Interpreter, field: &str, depth: usize) -> Fallible<String> {
        if depth == 0 {
            return Err(Fail::new("Max string recursion exceeded"));
        }
        let (name, spec) = field.split_once(':').unwrap_or((field, ""));
        let (name, conversion) = name.split_once('!').unwrap_or((name, ""));
        let value = converted(self.lookup(name)?, conversion)?;
        let spec = self.formatted(run, spec, depth - 1)?;
        if spec.is_empty() { value.to_text() } else { Spec::parse(&spec)?.apply(&value) }
    }

    /// Returns the value of a field: an argument, then attributes and items of it.
    fn lookup(&mut self, name: &str) -> Fallible<Value> {
        let end = name.find(['.', '[']).unwrap_or(name.len());
        let (first, mut rest) = name.split_at(end);
        let mut value = self.argument(first)?;
        while !rest.is_empty() {
            if let Some(after) = rest.strip_prefix('.') {
                let end = after.find(['.', '[']).unwrap_or(after.len());
                value = attributes::attribute(&value, &after[..end])?;
                rest = &after[end..];
            } else {
                let (key, after) = rest[1..]
                    .split_once(']')
                    .ok_or_else(|| Fail::new("Missing ']' in format string"))?;
                let key = key.parse().map_or_else(|_| Value::from(key), Value::Int);
                value = attributes::item(&value, &key)?;
                rest = after;
            }
        }
        Ok(value)
    }

    /// Returns the argument of this name or number, or the next one if `name` is empty.
    fn argument(&mut self, name: &str) -> Fallible<Value> {
        if !name.bytes().all(|b| b.is_ascii_digit()) {
            let found = self.args.named.iter().find(|(known, _)| known == name);
            return found.map(|(_, value)| value.clone()).ok_or_else(|| no_argument(name));
        }
        let index = if name.is_empty() { self.next } else { name.parse().unwrap_or(usize::MAX) };
        self.next += usize::from(name.is_empty());
        let found = self.args.positional.get(index).cloned();
        found.ok_or_else(|| no_argument(&index.to_string()))
    }
}

fn no_argument(name: &str) -> Fail {
    Fail::new(format!("there is no argument {name:?} to format"))
}

/// Applies a field's conversion, the letter after `!`, to a value.
fn converted(value: Value, conversion: &str) -> Fallible<Value> {
    match conversion {
        "" => Ok(value),
        "s" => Ok(value.to_text()?.into()),
        "r" => Ok(value.repr()?.into()),
        "a" => Ok(repr::ascii(&value.repr()?).into()),
        _ => Err(Fail::new(format!("the conversion '!{conversion}' is not supported"))),
    }
}

/// Takes from `rest` the field that it begins with, and the brace that ends it.
fn take_field<'a>(rest: &mut &'a str) -> Fallible<&'a str> {
    let end = field_end(rest).ok_or_else(|| Fail::new("expected '}' before end of string"))?;
    let field = &rest[..end];
    *rest = &rest[end + 1..];
    Ok(field)
}

fn field_end(text: &str) -> Option<usize> {
    let mut depth = 0usize;
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => return Some(at),
            '}' => depth -= 1,
            _ => {}
        }
    }
    None
}
