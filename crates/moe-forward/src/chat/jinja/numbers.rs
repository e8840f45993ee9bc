//! Filters of numbers.

use super::args::{CallArgs, integer_or, is_set, text_or};
use super::letters::with_ascii_digits;
use super::lexer::is_space;
use super::value::Value;
use super::{Fail, Fallible};

/// Applies the filter `name` to a number, or to a string with a number.
pub(super) fn filter(name: &str, value: &Value, args: CallArgs) -> Fallible<Value> {
    match name {
        "abs" => {
            args.none(name)?;
            abs(value)
        }
        "round" => {
            let [precision, method] = args.bind(name, ["precision", "method"])?;
            let precision = integer_or(0, precision, name)?;
            round(value, precision, &text_or("common", method, name)?)
        }
        "float" => {
            let [default] = args.bind(name, ["default"])?;
            Ok(float(value).map(Value::Float).or(default).unwrap_or(Value::Float(0.0)))
        }
        "int" => {
            let [default, base] = args.bind(name, ["default", "base"])?;
            let base = integer_or(10, base, name)?;
            Ok(int(value, base).map(Value::Int).or(default).unwrap_or(Value::Int(0)))
        }
        _ => {
            let [binary] = args.bind(name, ["binary"])?;
            let bytes = float(value).ok_or_else(|| Fail::new("could not convert to float"))?;
            Ok(filesize(bytes, is_set(binary)).into())
        }
    }
}

fn abs(value: &Value) -> Fallible<Value> {
    match (value.integer(), value.number()) {
        (Some(number), _) => Ok(Value::Int(number.saturating_abs())),
        (None, Some(number)) => Ok(Value::Float(number.abs())),
        _ => Err(Fail::new(format!("bad operand type for abs(): '{}'", value.type_name()))),
    }
}

/// Converts a number, or a string with a number, to a float.
fn float(value: &Value) -> Option<f64> {
    value.number().or_else(|| parse_float(value.text()?))
}

/// Converts a number, or a string with a number in base `base`, to an integer.
fn int(value: &Value, base: i128) -> Option<i128> {
    match value.text() {
        Some(text) => parse_integer(text, base).or_else(|| truncated(parse_float(text)?)),
        None => value.integer().or_else(|| truncated(value.number()?)),
    }
}

fn truncated(number: f64) -> Option<i128> {
    (number.is_finite() && number.abs() < 1e38).then_some(number.trunc() as i128)
}

/// Returns `text` in the form that Python's `int` and `float` read: without surrounding space and
/// single underscores between digits, and with digits of other scripts replaced by ASCII's. None if
/// an underscore is elsewhere.
fn digits(text: &str, is_digit: fn(char) -> bool) -> Option<String> {
    let text = with_ascii_digits(text.trim_matches(is_space)).to_lowercase();
    let letters: Vec<char> = text.chars().collect();
    for (at, c) in letters.iter().enumerate() {
        if *c == '_' && !is_between(&letters, at, is_digit) {
            return None;
        }
    }
    Some(text.replace('_', ""))
}

/// Returns whether digits precede and follow the place `at`.
fn is_between(text: &[char], at: usize, is_digit: fn(char) -> bool) -> bool {
    at > 0 && is_digit(text[at - 1]) && text.get(at + 1).is_some_and(|c| is_digit(*c))
}

fn parse_float(text: &str) -> Option<f64> {
    // Rust accepts the same words for infinity and NaN as Python.
    digits(text, |c| c.is_ascii_digit())?.parse().ok()
}

fn parse_integer(text: &str, base: i128) -> Option<i128> {
    let text = digits(text, |c| c.is_ascii_alphanumeric())?;
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
    // Without a base, a number of several digits can't begin with 0.
    if base == 0 && !named && digits.starts_with('0') && digits.bytes().any(|digit| digit != b'0') {
        return None;
    }
    let base = if base == 0 { prefix } else { base };
    let digits = if named && base == prefix { &digits[2..] } else { digits };
    let base = u32::try_from(base).ok().filter(|base| (2..=36).contains(base))?;
    if digits.starts_with(['+', '-']) {
        return None;
    }
    i128::from_str_radix(digits, base).ok().map(|number| sign * number)
}

fn round(value: &Value, precision: i128, method: &str) -> Fallible<Value> {
    let Some(number) = value.number() else {
        return Err(Fail::new(format!(
            "type {} doesn't define __round__ method",
            value.type_name()
        )));
    };
    let places = i32::try_from(precision.clamp(-400, 400)).unwrap_or(0);
    match (method, value.integer()) {
        ("common", Some(integer)) => Ok(Value::Int(rounded_integer(integer, places))),
        ("common", None) => Ok(Value::Float(rounded(number, places))),
        ("ceil" | "floor", _) => {
            let unit = 10f64.powi(places);
            let scaled = number * unit;
            let rounded = if method == "ceil" { scaled.ceil() } else { scaled.floor() };
            Ok(Value::Float(rounded / unit))
        }
        _ => Err(Fail::new("method must be common, ceil or floor")),
    }
}

fn rounded_integer(integer: i128, places: i32) -> i128 {
    if places >= 0 {
        return integer;
    }
    // Ties go to the even one of two tens, as Python rounds.
    let unit = 10i128.checked_pow(places.unsigned_abs()).unwrap_or(i128::MAX);
    let (down, rest) = (integer.div_euclid(unit), integer.rem_euclid(unit));
    let up = rest * 2 > unit || rest * 2 == unit && down % 2 != 0;
    (down + i128::from(up)) * unit
}

fn rounded(number: f64, places: i32) -> f64 {
    if places >= 0 {
        return format!("{number:.*}", places as usize).parse().unwrap_or(number);
    }
    let unit = 10f64.powi(-places);
    (number / unit).round_ties_even() * unit
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
