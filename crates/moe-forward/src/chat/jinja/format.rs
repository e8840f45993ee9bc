//! Python's two ways of formatting: `'%s' % value` and `'{}'.format(value)`.

use super::calls::CallArgs;
use super::interpreter::Interpreter;
use super::repr::float;
use super::value::{Text, Value};
use super::{Fail, Outcome, attributes, repr};

/// How a value is laid out in its field.
#[derive(Default, Clone)]
struct Spec {
    fill: Option<char>,
    align: Option<char>,
    sign: Option<char>,
    alternate: bool,
    zero: bool,
    width: usize,
    grouping: Option<char>,
    precision: Option<usize>,
    kind: Option<char>,
}

/// A field may be this wide.
const MAX_WIDTH: usize = 1 << 20;

fn number(text: &str) -> Outcome<usize> {
    match text.parse() {
        Ok(number) if number <= MAX_WIDTH => Ok(number),
        _ => Err(Fail::new(format!("a field of {text} characters is not supported"))),
    }
}

/// The digits that `rest` begins with, taken away from it.
fn take_digits<'a>(rest: &mut &'a str) -> &'a str {
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let (digits, after) = rest.split_at(end);
    *rest = after;
    digits
}

fn take(rest: &mut &str, wanted: &str) -> Option<char> {
    let c = rest.chars().next().filter(|c| wanted.contains(*c))?;
    *rest = &rest[c.len_utf8()..];
    Some(c)
}

impl Spec {
    /// What stands behind the colon of `{:…}`.
    fn parse(text: &str) -> Outcome<Self> {
        let mut spec = Self::default();
        let mut rest = text;
        let second = text.char_indices().nth(1);
        if let Some((at, c)) = second
            && "<>=^".contains(c)
        {
            spec.fill = text.chars().next();
            spec.align = Some(c);
            rest = &text[at + 1..];
        } else {
            spec.align = take(&mut rest, "<>=^");
        }
        spec.sign = take(&mut rest, "+- ");
        spec.alternate = take(&mut rest, "#").is_some();
        spec.zero = take(&mut rest, "0").is_some();
        let digits = take_digits(&mut rest);
        spec.width = if digits.is_empty() { 0 } else { number(digits)? };
        spec.grouping = take(&mut rest, ",_");
        if take(&mut rest, ".").is_some() {
            spec.precision = Some(number(take_digits(&mut rest))?);
        }
        spec.kind = rest.chars().next();
        if rest.chars().count() > 1 {
            return Err(Fail::new(format!("Invalid format specifier '{text}'")));
        }
        Ok(spec)
    }

    /// `body` of a number, with its sign, in its field.
    fn pad_number(&self, negative: bool, prefix: &str, body: &str) -> String {
        let sign = match (negative, self.sign) {
            (true, _) => "-",
            (false, Some('+')) => "+",
            (false, Some(' ')) => " ",
            _ => "",
        };
        let grouped = match self.grouping {
            Some(mark) => group(body, mark),
            None => body.to_owned(),
        };
        if self.zero && self.align.is_none() {
            let length = sign.len() + prefix.len() + grouped.chars().count();
            let zeros = "0".repeat(self.width.saturating_sub(length));
            return format!("{sign}{prefix}{zeros}{grouped}");
        }
        let text = format!("{sign}{prefix}{grouped}");
        self.pad(&text, self.align.unwrap_or('>'), sign.len() + prefix.len())
    }

    fn pad(&self, text: &str, align: char, head: usize) -> String {
        let missing = self.width.saturating_sub(text.chars().count());
        let fill = self.fill.unwrap_or(if self.zero { '0' } else { ' ' }).to_string();
        match align {
            '<' => text.to_owned() + &fill.repeat(missing),
            '^' => fill.repeat(missing / 2) + text + &fill.repeat(missing - missing / 2),
            '=' => format!("{}{}{}", &text[..head], fill.repeat(missing), &text[head..]),
            _ => fill.repeat(missing) + text,
        }
    }

    fn apply(&self, value: &Value) -> Outcome<String> {
        match (value, self.kind) {
            (Value::Str(_) | Value::Markup(_), None | Some('s')) => {
                let text = value.text().unwrap_or_default();
                let text: String = match self.precision {
                    Some(most) => text.chars().take(most).collect(),
                    None => text.to_owned(),
                };
                Ok(self.pad(&text, self.align.unwrap_or('<'), 0))
            }
            (Value::Bool(_), None) if self.width == 0 => value.to_text(),
            (
                Value::Int(_) | Value::Bool(_),
                None | Some('d' | 'n' | 'x' | 'X' | 'o' | 'b' | 'c'),
            ) => {
                let number = value.integer().unwrap_or(0);
                if self.kind == Some('c') {
                    let c = u32::try_from(number).ok().and_then(char::from_u32);
                    let c = c.ok_or_else(|| Fail::new("%c arg not in range"))?;
                    return Ok(self.pad(&c.to_string(), self.align.unwrap_or('<'), 0));
                }
                let size = number.unsigned_abs();
                let (prefix, body) = match self.kind {
                    Some('x') => ("0x", format!("{size:x}")),
                    Some('X') => ("0X", format!("{size:X}")),
                    Some('o') => ("0o", format!("{size:o}")),
                    Some('b') => ("0b", format!("{size:b}")),
                    _ => ("", size.to_string()),
                };
                Ok(self.pad_number(number < 0, if self.alternate { prefix } else { "" }, &body))
            }
            (_, kind) if value.number().is_some() => {
                let number = value.number().unwrap_or(0.0);
                let body = float_body(number.abs(), kind, self.precision)?;
                Ok(self.pad_number(number.is_sign_negative() && !number.is_nan(), "", &body))
            }
            _ if self.width == 0 && self.kind.is_none() && self.precision.is_none() => {
                value.to_text()
            }
            _ => Err(Fail::new(format!("unsupported format for '{}'", value.type_name()))),
        }
    }
}

fn group(body: &str, mark: char) -> String {
    let end = body.find(|c: char| !c.is_ascii_digit()).unwrap_or(body.len());
    let (digits, rest) = body.split_at(end);
    let mut result = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            result.push(mark);
        }
        result.push(digit);
    }
    result + rest
}

/// A number that isn't negative, by Python's rules for `kind`.
fn float_body(number: f64, kind: Option<char>, precision: Option<usize>) -> Outcome<String> {
    if !number.is_finite() {
        let text = float(number);
        return Ok(if matches!(kind, Some('F' | 'E' | 'G')) { text.to_uppercase() } else { text });
    }
    let digits = precision.unwrap_or(6).min(1000);
    Ok(match kind {
        Some('f' | 'F') => format!("{number:.digits$}"),
        Some('%') => format!("{:.digits$}%", number * 100.0),
        Some('e') => scientific(number, digits),
        Some('E') => scientific(number, digits).to_uppercase(),
        Some('g') => general(number, digits, false),
        Some('G') => general(number, digits, false).to_uppercase(),
        None if precision.is_some() => general(number, digits, true),
        None => float(number),
        Some(kind) => return Err(Fail::new(format!("Unknown format code '{kind}' for a number"))),
    })
}

fn scientific(number: f64, digits: usize) -> String {
    let text = format!("{number:.digits$e}");
    let Some((body, exponent)) = text.split_once('e') else { return text };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{body}e{sign}{:02}", exponent.abs())
}

fn general(number: f64, digits: usize, keeps_point: bool) -> String {
    let digits = digits.max(1);
    let exponent = format!("{number:.*e}", digits - 1);
    let exponent: i32 = exponent.split_once('e').and_then(|(_, e)| e.parse().ok()).unwrap_or(0);
    let most = if keeps_point { digits as i32 - 1 } else { digits as i32 };
    let trimmed = |text: &str| {
        if text.contains('.') {
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        } else {
            text.to_owned()
        }
    };
    if exponent < -4 || exponent >= most.max(1) && exponent >= most {
        let text = scientific(number, digits - 1);
        let Some((body, exponent)) = text.split_once('e') else { return text };
        return format!("{}e{exponent}", trimmed(body));
    }
    let decimals = (digits as i32 - 1 - exponent).max(0) as usize;
    let text = trimmed(&format!("{number:.decimals$}"));
    if keeps_point && !text.contains('.') { text + ".0" } else { text }
}

/// `pattern % values`.
pub(super) fn percent(run: &mut Interpreter, pattern: &Text, values: &Value) -> Outcome<Value> {
    let mut positional = match values {
        Value::Tuple(items) => items.to_vec(),
        other => vec![other.clone()],
    }
    .into_iter();
    let mut result = String::new();
    let mut rest: &str = pattern;
    let mut used_mapping = false;
    while let Some(at) = rest.find('%') {
        result.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if take(&mut rest, "%").is_some() {
            result.push('%');
            continue;
        }
        let mut key = None;
        if let Some(after) = rest.strip_prefix('(') {
            let end = after.find(')').ok_or_else(|| Fail::new("incomplete format key"))?;
            key = Some(&after[..end]);
            rest = &after[end + 1..];
        }
        let mut spec = Spec::default();
        while let Some(flag) = take(&mut rest, "#0- +") {
            match flag {
                '#' => spec.alternate = true,
                '0' => spec.zero = true,
                '-' => spec.align = Some('<'),
                sign => spec.sign = if spec.sign == Some('+') { spec.sign } else { Some(sign) },
            }
        }
        let mut next = |what: &str| positional.next().ok_or_else(|| Fail::new(what.to_owned()));
        const TOO_FEW: &str = "not enough arguments for format string";
        spec.width = match take(&mut rest, "*") {
            Some(_) => number(&next(TOO_FEW)?.to_text()?)?,
            None => match take_digits(&mut rest) {
                "" => 0,
                digits => number(digits)?,
            },
        };
        if take(&mut rest, ".").is_some() {
            let digits = take_digits(&mut rest);
            spec.precision = Some(if digits.is_empty() { 0 } else { number(digits)? });
        }
        take(&mut rest, "hlL");
        let Some(kind) = rest.chars().next() else { return Err(Fail::new("incomplete format")) };
        rest = &rest[kind.len_utf8()..];
        let value = match (key, values) {
            (Some(key), Value::Dict(dict)) => {
                used_mapping = true;
                dict.get_text(key)
                    .cloned()
                    .ok_or_else(|| Fail::new(format!("KeyError: {key:?}")))?
            }
            (Some(_), _) => return Err(Fail::new("format requires a mapping")),
            (None, _) => next(TOO_FEW)?,
        };
        let text = converted(spec, kind, &value)?;
        run.step(text.len())?;
        run.room(result.len() + text.len())?;
        result.push_str(&text);
    }
    result.push_str(rest);
    let is_mapping = used_mapping || matches!(values, Value::Dict(_) | Value::List(_));
    if positional.next().is_some() && !is_mapping {
        return Err(Fail::new("not all arguments converted during string formatting"));
    }
    Ok(result.into())
}

fn converted(mut spec: Spec, kind: char, value: &Value) -> Outcome<String> {
    if matches!(kind, 's' | 'r' | 'a') {
        let text = match kind {
            's' => value.to_text()?,
            'r' => value.repr()?,
            _ => repr::ascii(&value.repr()?),
        };
        spec.align = Some(spec.align.unwrap_or('>'));
        spec.zero = false;
        return spec.apply(&text.into());
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
        'd' | 'i' | 'u' => {
            spec.kind = Some('d');
            let number = match value {
                Value::Float(number) if number.abs() < 1e38 => Value::Int(number.trunc() as i128),
                other => other.clone(),
            };
            if number.integer().is_none() {
                return Err(Fail::new(format!(
                    "%{kind} format: a number is required, not {}",
                    value.type_name()
                )));
            }
            if let Some(digits) = spec.precision.take() {
                let text = number.integer().unwrap_or(0).unsigned_abs().to_string();
                let text = "0".repeat(digits.saturating_sub(text.len())) + &text;
                return Ok(spec.pad_number(number.integer().unwrap_or(0) < 0, "", &text));
            }
            spec.apply(&number)
        }
        'x' | 'X' | 'o' | 'c' if value.integer().is_some() => spec.apply(value),
        'e' | 'E' | 'f' | 'F' | 'g' | 'G' if value.number().is_some() => {
            spec.apply(&Value::Float(value.number().unwrap_or(0.0)))
        }
        'x' | 'X' | 'o' | 'c' | 'e' | 'E' | 'f' | 'F' | 'g' | 'G' => Err(Fail::new(format!(
            "%{kind} format: a number is required, not {}",
            value.type_name()
        ))),
        _ => Err(Fail::new(format!("unsupported format character '{kind}'"))),
    }
}

/// `pattern.format(args)`.
pub(super) fn format(run: &mut Interpreter, pattern: &Text, args: &CallArgs) -> Outcome<Value> {
    let mut next = 0;
    Ok(formatted(run, pattern, args, &mut next, 2)?.into())
}

fn formatted(
    run: &mut Interpreter,
    pattern: &str,
    args: &CallArgs,
    next: &mut usize,
    depth: usize,
) -> Outcome<String> {
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
        let end = field_end(rest).ok_or_else(|| Fail::new("expected '}' before end of string"))?;
        let field = &rest[..end];
        rest = &rest[end + 1..];
        if depth == 0 {
            return Err(Fail::new("Max string recursion exceeded"));
        }
        let (name, spec) = field.split_once(':').unwrap_or((field, ""));
        let (name, conversion) =
            name.split_once('!').map_or((name, ""), |(name, conversion)| (name, conversion));
        let mut value = lookup(name, args, next)?;
        match conversion {
            "" => {}
            "s" => value = value.to_text()?.into(),
            "r" => value = value.repr()?.into(),
            "a" => value = repr::ascii(&value.repr()?).into(),
            _ => return Err(Fail::new(format!("the conversion '!{conversion}' is not supported"))),
        }
        let spec = formatted(run, spec, args, next, depth - 1)?;
        let text =
            if spec.is_empty() { value.to_text()? } else { Spec::parse(&spec)?.apply(&value)? };
        run.step(text.len())?;
        run.room(result.len() + text.len())?;
        result.push_str(&text);
    }
    result.push_str(rest);
    Ok(result)
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

/// The value of a field: an argument, then attributes and items of it.
fn lookup(name: &str, args: &CallArgs, next: &mut usize) -> Outcome<Value> {
    let end = name.find(['.', '[']).unwrap_or(name.len());
    let (first, mut rest) = name.split_at(end);
    let missing = |what: &str| Fail::new(format!("there is no argument {what:?} to format"));
    let mut value = if first.is_empty() || first.bytes().all(|b| b.is_ascii_digit()) {
        let index = if first.is_empty() { *next } else { first.parse().unwrap_or(usize::MAX) };
        if first.is_empty() {
            *next += 1;
        }
        args.positional.get(index).cloned().ok_or_else(|| missing(&index.to_string()))?
    } else {
        let found = args.named.iter().find(|(known, _)| known == first);
        found.map(|(_, value)| value.clone()).ok_or_else(|| missing(first))?
    };
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
