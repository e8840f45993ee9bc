//! Parses Python's number and string literals.

use super::Fallible;
use super::lexer::{Lexer, TokenKind};

impl Lexer<'_> {
    pub fn number(&mut self) -> Fallible<()> {
        let rest = self.rest();
        if let Some((digits, radix)) = with_prefix(rest) {
            self.at += 2 + digits.len();
            return self.integer(digits, radix);
        }
        // `a.0.1` means items, not the number 0.1.
        let follows_dot = self.source[..self.at].ends_with('.');
        if let Some(length) = float_length(rest).filter(|_| !follows_dot) {
            self.at += length;
            let number = rest[..length].replace('_', "").parse().unwrap_or(f64::NAN);
            self.push(TokenKind::Float(number));
            return Ok(());
        }
        // As in Jinja2, a leading zero is a number by itself.
        let whole = digits(rest, 10);
        let zeros = whole.find(|c| c != '0' && c != '_').unwrap_or(whole.len());
        let whole = if whole.starts_with('0') { &whole[..zeros] } else { whole };
        self.at += whole.len();
        self.integer(whole, 10)
    }

    fn integer(&mut self, digits: &str, radix: u32) -> Fallible<()> {
        match i128::from_str_radix(&digits.replace('_', ""), radix) {
            Ok(number) => {
                self.push(TokenKind::Int(number));
                Ok(())
            }
            Err(_) => self.fail("an integer beyond 128 bits is not supported"),
        }
    }

    pub fn string(&mut self, quote: char) -> Fallible<()> {
        let rest = self.rest();
        let Some(end) = string_end(rest, quote) else {
            return self.fail("unexpected end of a string");
        };
        self.at += end + 1;
        match unescaped(&rest[1..end]) {
            Some(text) => {
                self.push(TokenKind::Str(text));
                Ok(())
            }
            None => self.fail("a string with an escape that is not supported"),
        }
    }
}

/// Returns the position of the quote that ends the string that `text` begins with.
fn string_end(text: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        if escaped {
            escaped = false;
        } else if c == '\\' {
            escaped = true;
        } else if c == quote {
            return Some(at);
        }
    }
    None
}

/// Returns the digits after a prefix such as `0x`, and their base.
fn with_prefix(text: &str) -> Option<(&str, u32)> {
    let radix = match text.get(..2)?.to_ascii_lowercase().as_str() {
        "0x" => 16,
        "0o" => 8,
        "0b" => 2,
        _ => return None,
    };
    let digits = digits(&text[2..], radix);
    (!digits.is_empty()).then_some((digits, radix))
}

/// Returns the length of the number that `text` begins with, if it has a fraction or an exponent.
fn float_length(text: &str) -> Option<usize> {
    let whole = digits(text, 10).len();
    let mut length = whole;
    let fraction = text[whole..].strip_prefix('.').map_or("", |rest| digits(rest, 10));
    if !fraction.is_empty() {
        length += 1 + fraction.len();
    }
    if let Some(exponent) = text[length..].strip_prefix(['e', 'E']) {
        let sign = usize::from(exponent.starts_with(['+', '-']));
        let power = digits(&exponent[sign..], 10);
        if !power.is_empty() {
            length += 1 + sign + power.len();
        }
    }
    (length > whole).then_some(length)
}

/// Returns the longest prefix of `text` that consists of digits with single underscores between
/// them.
fn digits(text: &str, radix: u32) -> &str {
    let mut end = 0;
    for (at, c) in text.char_indices() {
        if c.is_digit(radix) {
            end = at + 1;
        } else if c != '_' || end != at || at == 0 {
            break;
        }
    }
    &text[..end]
}

/// Resolves Python's escapes. None for a lone surrogate or an escape by name.
fn unescaped(text: &str) -> Option<String> {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        result.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let c = rest.chars().next()?;
        rest = &rest[c.len_utf8()..];
        match c {
            'x' => result.push(take_code(&mut rest, 2)?),
            'u' => result.push(take_code(&mut rest, 4)?),
            'U' => result.push(take_code(&mut rest, 8)?),
            '0'..='7' => result.push(take_octal(c, &mut rest)?),
            '\n' => {}
            'N' => return None,
            _ => match meaning(c) {
                Some(c) => result.push(c),
                None => result.extend(['\\', c]),
            },
        }
    }
    result.push_str(rest);
    Some(result)
}

/// Returns the character that a backslash and `letter` stand for.
fn meaning(letter: char) -> Option<char> {
    Some(match letter {
        'n' => '\n',
        't' => '\t',
        'r' => '\r',
        'a' => '\x07',
        'b' => '\x08',
        'f' => '\x0c',
        'v' => '\x0b',
        '\\' | '\'' | '"' => letter,
        _ => return None,
    })
}

/// Takes `width` hexadecimal digits from `rest`, and returns the character with this code.
fn take_code(rest: &mut &str, width: usize) -> Option<char> {
    let code = u32::from_str_radix(rest.get(..width)?, 16).ok()?;
    *rest = &rest[width..];
    char::from_u32(code)
}

/// Takes up to two more octal digits from `rest`, and returns the character whose code they form
/// after `first`.
fn take_octal(first: char, rest: &mut &str) -> Option<char> {
    let more = rest.bytes().take(2).take_while(|b| (b'0'..=b'7').contains(b)).count();
    let code = u32::from_str_radix(&format!("{first}{}", &rest[..more]), 8).ok()?;
    *rest = &rest[more..];
    char::from_u32(code)
}
