//! Text to tokens, with Jinja2's rules for white space: `trim_blocks` and `lstrip_blocks`, as
//! transformers sets them.

use super::{Fail, Outcome};

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Kind {
    Text(String),
    BlockBegin,
    BlockEnd,
    PrintBegin,
    PrintEnd,
    Name(String),
    Str(String),
    Int(i128),
    Float(f64),
    Op(&'static str),
    End,
}

#[derive(Clone, Debug)]
pub(super) struct Token {
    pub line: usize,
    pub kind: Kind,
}

/// Longest first.
const OPERATORS: [&str; 26] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}",
    ">", "<", "=", ".", ":", "|", ",", ";",
];

/// The tokens of `source`, ended by [`Kind::End`].
pub(super) fn tokenize(source: &str) -> Outcome<Vec<Token>> {
    let mut source = source.replace("\r\n", "\n").replace('\r', "\n");
    if source.ends_with('\n') {
        source.pop();
    }
    let mut lexer = Lexer {
        source: &source,
        at: 0,
        line: 1,
        counted: 0,
        tokens: Vec::new(),
        line_starts: true,
    };
    lexer.template()?;
    lexer.push(Kind::End);
    Ok(lexer.tokens)
}

struct Lexer<'a> {
    source: &'a str,
    at: usize,
    line: usize,
    /// Line breaks are counted up to here.
    counted: usize,
    tokens: Vec<Token>,
    /// Whether what was read last ends in a line break, as at the start.
    line_starts: bool,
}

impl<'a> Lexer<'a> {
    fn rest(&self) -> &'a str {
        &self.source[self.at..]
    }

    fn push(&mut self, kind: Kind) {
        self.line += self.source[self.counted..self.at].matches('\n').count();
        self.counted = self.at;
        self.tokens.push(Token { line: self.line, kind });
    }

    fn fail<T>(&mut self, what: impl Into<String>) -> Outcome<T> {
        self.line += self.source[self.counted..self.at].matches('\n').count();
        self.counted = self.at;
        Err(Fail::new(what).at(self.line))
    }

    fn template(&mut self) -> Outcome<()> {
        while !self.rest().is_empty() {
            let rest = self.rest();
            let begin = rest.char_indices().map(|(at, _)| at).find(|at| {
                let delimiter = rest.as_bytes().get(at + 1);
                rest.as_bytes()[*at] == b'{' && matches!(delimiter, Some(b'{' | b'%' | b'#'))
            });
            let Some(begin) = begin else {
                self.at = self.source.len();
                self.push(Kind::Text(rest.to_owned()));
                return Ok(());
            };
            let kind = rest.as_bytes()[begin + 1];
            let sign = rest.as_bytes().get(begin + 2).copied();
            let signed = matches!(sign, Some(b'-' | b'+'));
            let text =
                self.stripped(&rest[..begin], if signed { sign } else { None }, kind == b'{');
            self.at += begin;
            if !text.is_empty() {
                self.push(Kind::Text(text.to_owned()));
            }
            self.at += if signed { 3 } else { 2 };
            match kind {
                b'#' => self.comment()?,
                b'{' => {
                    self.push(Kind::PrintBegin);
                    self.code(Kind::PrintEnd, "}}")?;
                }
                _ => match self.raw_begin() {
                    Some(length) => {
                        self.at += length;
                        self.raw()?;
                    }
                    None => {
                        self.push(Kind::BlockBegin);
                        self.code(Kind::BlockEnd, "%}")?;
                    }
                },
            }
            self.line_starts = self.source[..self.at].ends_with('\n');
        }
        Ok(())
    }

    /// `text` before a delimiter with `sign`; what indents a block or comment doesn't count as
    /// text.
    fn stripped<'t>(&self, text: &'t str, sign: Option<u8>, is_print: bool) -> &'t str {
        if sign == Some(b'-') {
            return text.trim_end_matches(is_space);
        }
        if sign == Some(b'+') || is_print {
            return text;
        }
        let line = text.rfind('\n').map_or(0, |at| at + 1);
        let is_indent = (line > 0 || self.line_starts) && text[line..].chars().all(is_space);
        if is_indent { &text[..line] } else { text }
    }

    /// The length of what ends a block or comment here, white space that goes with it included.
    fn end(&self, delimiter: &str, trims: bool) -> Option<usize> {
        let rest = self.rest();
        if let Some(after) = rest.strip_prefix('-').and_then(|rest| rest.strip_prefix(delimiter)) {
            return Some(rest.len() - after.trim_start_matches(is_space).len());
        }
        if trims && rest.strip_prefix('+').is_some_and(|rest| rest.starts_with(delimiter)) {
            return Some(3);
        }
        let after = rest.strip_prefix(delimiter)?;
        Some(if trims && after.starts_with('\n') { 3 } else { 2 })
    }

    fn comment(&mut self) -> Outcome<()> {
        while !self.rest().is_empty() {
            if let Some(length) = self.end("#}", true) {
                self.at += length;
                return Ok(());
            }
            self.at += self.rest().chars().next().map_or(1, char::len_utf8);
        }
        self.fail("missing end of comment tag")
    }

    /// The length of the rest of `{% raw %}`, if that is what begins here.
    fn raw_begin(&self) -> Option<usize> {
        let rest = self.rest();
        let after =
            rest.trim_start_matches(is_space).strip_prefix("raw")?.trim_start_matches(is_space);
        if let Some(after) = after.strip_prefix("-%}") {
            return Some(rest.len() - after.trim_start_matches(is_space).len());
        }
        Some(rest.len() - after.strip_prefix("%}")?.len())
    }

    fn raw(&mut self) -> Outcome<()> {
        let rest = self.rest();
        self.line_starts = self.source[..self.at].ends_with('\n');
        let start = self.at;
        for (begin, _) in rest.match_indices("{%") {
            let sign =
                rest.as_bytes().get(begin + 2).copied().filter(|sign| matches!(sign, b'-' | b'+'));
            let name = &rest[begin + 2 + usize::from(sign.is_some())..];
            let Some(after) = name.trim_start_matches(is_space).strip_prefix("endraw") else {
                continue;
            };
            let text = self.stripped(&rest[..begin], sign, false);
            self.at = self.source.len() - after.trim_start_matches(is_space).len();
            let Some(length) = self.end("%}", true) else {
                self.at = start;
                continue;
            };
            self.at += length;
            self.push(Kind::Text(text.to_owned()));
            return Ok(());
        }
        self.fail("missing end of raw directive")
    }

    /// Tokens up to `delimiter`, which ends nothing within brackets.
    fn code(&mut self, end: Kind, delimiter: &str) -> Outcome<()> {
        let mut brackets = Vec::new();
        while let Some(next) = self.rest().chars().next() {
            if brackets.is_empty()
                && let Some(length) = self.end(delimiter, delimiter == "%}")
            {
                self.at += length;
                self.push(end);
                return Ok(());
            }
            if is_space(next) {
                self.at += next.len_utf8();
            } else if next.is_ascii_digit() {
                self.number()?;
            } else if next == '_' || next.is_alphanumeric() {
                let rest = self.rest();
                let length =
                    rest.find(|c: char| c != '_' && !c.is_alphanumeric()).unwrap_or(rest.len());
                self.at += length;
                self.push(Kind::Name(rest[..length].to_owned()));
            } else if next == '"' || next == '\'' {
                self.string(next)?;
            } else {
                let Some(operator) =
                    OPERATORS.into_iter().find(|operator| self.rest().starts_with(operator))
                else {
                    return self.fail(format!("unexpected char {next:?}"));
                };
                match operator {
                    "(" => brackets.push(")"),
                    "[" => brackets.push("]"),
                    "{" => brackets.push("}"),
                    ")" | "]" | "}" => match brackets.pop() {
                        Some(expected) if expected == operator => {}
                        Some(expected) => {
                            return self
                                .fail(format!("unexpected '{operator}', expected '{expected}'"));
                        }
                        None => return self.fail(format!("unexpected '{operator}'")),
                    },
                    _ => {}
                }
                self.at += operator.len();
                self.push(Kind::Op(operator));
            }
        }
        // The parser says what is missing.
        Ok(())
    }

    fn number(&mut self) -> Outcome<()> {
        let rest = self.rest();
        let radix = match rest.get(..2).map(str::to_ascii_lowercase).as_deref() {
            Some("0x") => Some(16),
            Some("0o") => Some(8),
            Some("0b") => Some(2),
            _ => None,
        };
        if let Some(radix) = radix {
            let digits = digits(&rest[2..], radix);
            if !digits.is_empty() {
                self.at += 2 + digits.len();
                return self.integer(digits, radix);
            }
        }
        let whole = digits(rest, 10);
        let mut length = whole.len();
        let mut is_float = false;
        // `a.0.1` asks for items, not for the number 0.1.
        let follows_dot = self.source[..self.at].ends_with('.');
        if !follows_dot {
            let fraction = rest[length..].strip_prefix('.').map_or("", |rest| digits(rest, 10));
            if !fraction.is_empty() {
                length += 1 + fraction.len();
                is_float = true;
            }
            if let Some(exponent) = rest[length..].strip_prefix(['e', 'E']) {
                let sign = usize::from(exponent.starts_with(['+', '-']));
                let power = digits(&exponent[sign..], 10);
                if !power.is_empty() {
                    length += 1 + sign + power.len();
                    is_float = true;
                }
            }
        }
        if is_float {
            self.at += length;
            let number = rest[..length].replace('_', "").parse().unwrap_or(f64::NAN);
            self.push(Kind::Float(number));
            return Ok(());
        }
        // A leading zero is a number of its own, as in Jinja2.
        let zeros = whole.find(|c| c != '0' && c != '_').unwrap_or(whole.len());
        let whole = if whole.starts_with('0') { &whole[..zeros] } else { whole };
        self.at += whole.len();
        self.integer(whole, 10)
    }

    fn integer(&mut self, digits: &str, radix: u32) -> Outcome<()> {
        match i128::from_str_radix(&digits.replace('_', ""), radix) {
            Ok(number) => {
                self.push(Kind::Int(number));
                Ok(())
            }
            Err(_) => self.fail("an integer beyond 128 bits is not supported"),
        }
    }

    fn string(&mut self, quote: char) -> Outcome<()> {
        let rest = self.rest();
        let mut escaped = false;
        for (at, c) in rest.char_indices().skip(1) {
            if escaped {
                escaped = false;
            } else if c == '\\' {
                escaped = true;
            } else if c == quote {
                let text = unescaped(&rest[1..at]);
                self.at += at + 1;
                return match text {
                    Some(text) => {
                        self.push(Kind::Str(text));
                        Ok(())
                    }
                    None => self.fail("a string with an escape that is not supported"),
                };
            }
        }
        self.fail("unexpected end of a string")
    }
}

/// Python's white space.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// The longest start of `text` that is digits, single underscores between them.
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

/// Python's escapes; None for a lone surrogate or a name.
fn unescaped(text: &str) -> Option<String> {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        result.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let c = rest.chars().next()?;
        rest = &rest[c.len_utf8()..];
        let width = match c {
            'x' => 2,
            'u' => 4,
            'U' => 8,
            _ => 0,
        };
        if width > 0 {
            let code = u32::from_str_radix(rest.get(..width)?, 16).ok()?;
            result.push(char::from_u32(code)?);
            rest = &rest[width..];
            continue;
        }
        match c {
            'n' => result.push('\n'),
            't' => result.push('\t'),
            'r' => result.push('\r'),
            'a' => result.push('\x07'),
            'b' => result.push('\x08'),
            'f' => result.push('\x0c'),
            'v' => result.push('\x0b'),
            '\n' => {}
            '\\' | '\'' | '"' => result.push(c),
            'N' => return None,
            '0'..='7' => {
                let more = rest.bytes().take(2).take_while(|b| (b'0'..=b'7').contains(b)).count();
                let code = u32::from_str_radix(&format!("{c}{}", &rest[..more]), 8).ok()?;
                result.push(char::from_u32(code)?);
                rest = &rest[more..];
            }
            other => {
                result.push('\\');
                result.push(other);
            }
        }
    }
    result.push_str(rest);
    Some(result)
}
