//! Formats a value in a field, as a format's specification says.

use super::repr::float;
use super::value::Value;
use super::{Fail, Fallible};

/// The specification of a field.
#[derive(Default, Clone)]
pub(super) struct Spec {
    pub fill: Option<char>,
    pub align: Option<char>,
    pub sign: Option<char>,
    pub alternate: bool,
    pub zero: bool,
    pub width: usize,
    pub grouping: Option<char>,
    pub precision: Option<usize>,
    pub kind: Option<char>,
}

/// Maximum width of a field.
const MAX_WIDTH: usize = 1 << 20;

const ALIGNMENTS: &str = "<>=^";

pub(super) fn number(text: &str) -> Fallible<usize> {
    match text.parse() {
        Ok(number) if number <= MAX_WIDTH => Ok(number),
        _ => Err(Fail::new(format!("a field of {text} characters is not supported"))),
    }
}

/// Takes the digits from the start of `rest`.
pub(super) fn take_digits<'a>(rest: &mut &'a str) -> &'a str {
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let (digits, after) = rest.split_at(end);
    *rest = after;
    digits
}

pub(super) fn take(rest: &mut &str, wanted: &str) -> Option<char> {
    let c = rest.chars().next().filter(|c| wanted.contains(*c))?;
    *rest = &rest[c.len_utf8()..];
    Some(c)
}

/// Takes a number from the start of `rest`; 0 if there is none.
pub(super) fn take_number(rest: &mut &str) -> Fallible<usize> {
    match take_digits(rest) {
        "" => Ok(0),
        digits => number(digits),
    }
}

/// Takes the alignment from the start of `rest`. Returns the fill character and the alignment, if
/// given.
fn take_alignment(rest: &mut &str) -> (Option<char>, Option<char>) {
    let mut chars = rest.chars();
    if let (Some(fill), Some(align)) = (chars.next(), chars.next())
        && ALIGNMENTS.contains(align)
    {
        *rest = chars.as_str();
        return (Some(fill), Some(align));
    }
    (None, take(rest, ALIGNMENTS))
}

impl Spec {
    /// Parses the part after the colon of `{:…}`.
    pub fn parse(text: &str) -> Fallible<Self> {
        let mut rest = text;
        let (fill, align) = take_alignment(&mut rest);
        let sign = take(&mut rest, "+- ");
        let alternate = take(&mut rest, "#").is_some();
        let zero = take(&mut rest, "0").is_some();
        let width = take_number(&mut rest)?;
        let grouping = take(&mut rest, ",_");
        let precision = match take(&mut rest, ".") {
            Some(_) => Some(number(take_digits(&mut rest))?),
            None => None,
        };
        let kind = rest.chars().next();
        if rest.chars().count() > 1 {
            return Err(Fail::new(format!("Invalid format specifier '{text}'")));
        }
        Ok(Self { fill, align, sign, alternate, zero, width, grouping, precision, kind })
    }

    /// Pads the number `body` with its sign and prefix to the width.
    pub fn pad_number(&self, negative: bool, prefix: &str, body: &str) -> String {
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

    /// Formats `value` in its field.
    pub fn apply(&self, value: &Value) -> Fallible<String> {
        match (value, self.kind) {
            (Value::Str(text) | Value::Markup(text), None | Some('s')) => Ok(self.apply_text(text)),
            (Value::Bool(_), None) if self.width == 0 => value.to_text(),
            (
                Value::Int(_) | Value::Bool(_),
                None | Some('d' | 'n' | 'x' | 'X' | 'o' | 'b' | 'c'),
            ) => self.apply_integer(value.integer().unwrap_or(0)),
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

    fn apply_text(&self, text: &str) -> String {
        let text: String = match self.precision {
            Some(most) => text.chars().take(most).collect(),
            None => text.to_owned(),
        };
        self.pad(&text, self.align.unwrap_or('<'), 0)
    }

    fn apply_integer(&self, number: i128) -> Fallible<String> {
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

/// Formats a number that isn't negative, by Python's rules for `kind`.
fn float_body(number: f64, kind: Option<char>, precision: Option<usize>) -> Fallible<String> {
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
    if exponent < -4 || exponent >= most.max(1) && exponent >= most {
        let text = scientific(number, digits - 1);
        let Some((body, exponent)) = text.split_once('e') else { return text };
        return format!("{}e{exponent}", without_zeros(body));
    }
    let decimals = (digits as i32 - 1 - exponent).max(0) as usize;
    let text = format!("{number:.decimals$}");
    let text = without_zeros(&text);
    if keeps_point && !text.contains('.') { format!("{text}.0") } else { text.to_owned() }
}

/// Removes trailing zeros of the decimals.
fn without_zeros(text: &str) -> &str {
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { text }
}
