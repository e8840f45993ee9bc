//! Splits a template into tokens, with Jinja2's rules for white space: `trim_blocks` and
//! `lstrip_blocks`, as transformers sets them.

use super::{Fail, Fallible};

#[derive(Clone, Debug, PartialEq)]
pub(super) enum TokenKind {
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
    pub kind: TokenKind,
}

/// The operators of templates, the longest ones first.
const OPERATORS: [&str; 26] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}",
    ">", "<", "=", ".", ":", "|", ",", ";",
];

/// Returns the tokens of `source`, of which the last is [`TokenKind::End`].
pub(super) fn tokenize(source: &str) -> Fallible<Vec<Token>> {
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
    lexer.push(TokenKind::End);
    Ok(lexer.tokens)
}

pub(super) struct Lexer<'a> {
    pub source: &'a str,
    pub at: usize,
    line: usize,
    /// The position up to which line breaks have been counted.
    counted: usize,
    tokens: Vec<Token>,
    /// Whether the text before this position ends in a line break, or is empty.
    line_starts: bool,
}

impl<'a> Lexer<'a> {
    pub fn rest(&self) -> &'a str {
        &self.source[self.at..]
    }

    pub fn push(&mut self, kind: TokenKind) {
        self.line += self.source[self.counted..self.at].matches('\n').count();
        self.counted = self.at;
        self.tokens.push(Token { line: self.line, kind });
    }

    pub fn fail<T>(&mut self, what: impl Into<String>) -> Fallible<T> {
        self.line += self.source[self.counted..self.at].matches('\n').count();
        self.counted = self.at;
        Err(Fail::new(what).at(self.line))
    }

    fn template(&mut self) -> Fallible<()> {
        while !self.rest().is_empty() {
            let rest = self.rest();
            let Some(begin) = next_delimiter(rest) else {
                self.at = self.source.len();
                self.push(TokenKind::Text(rest.to_owned()));
                return Ok(());
            };
            self.part(begin)?;
            self.line_starts = self.source[..self.at].ends_with('\n');
        }
        Ok(())
    }

    /// Reads the text up to the delimiter at `begin`, and everything that this delimits.
    fn part(&mut self, begin: usize) -> Fallible<()> {
        let rest = self.rest();
        let kind = rest.as_bytes()[begin + 1];
        let sign = sign_at(rest, begin + 2);
        let text = self.stripped(&rest[..begin], sign, kind == b'{');
        self.at += begin;
        if !text.is_empty() {
            self.push(TokenKind::Text(text.to_owned()));
        }
        self.at += 2 + usize::from(sign.is_some());
        match kind {
            b'#' => self.comment(),
            b'{' => {
                self.push(TokenKind::PrintBegin);
                self.code(TokenKind::PrintEnd, "}}")
            }
            _ => self.block(),
        }
    }

    /// Reads the rest of `{% … %}`, or from `{% raw %}` to its end.
    fn block(&mut self) -> Fallible<()> {
        if let Some(length) = self.raw_begin() {
            self.at += length;
            return self.raw();
        }
        self.push(TokenKind::BlockBegin);
        self.code(TokenKind::BlockEnd, "%}")
    }

    /// Strips white space from `text`, which precedes a delimiter with `sign`. The indentation of a
    /// block or comment doesn't count as text.
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

    /// Returns the length of the end of a block or comment at this position, including white space
    /// that is stripped with it; None if there is no end here.
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

    fn comment(&mut self) -> Fallible<()> {
        while !self.rest().is_empty() {
            if let Some(length) = self.end("#}", true) {
                self.at += length;
                return Ok(());
            }
            self.at += self.rest().chars().next().map_or(1, char::len_utf8);
        }
        self.fail("missing end of comment tag")
    }

    /// Returns the length of the rest of `{% raw %}`, if it begins here.
    fn raw_begin(&self) -> Option<usize> {
        let rest = self.rest();
        let after =
            rest.trim_start_matches(is_space).strip_prefix("raw")?.trim_start_matches(is_space);
        if let Some(after) = after.strip_prefix("-%}") {
            return Some(rest.len() - after.trim_start_matches(is_space).len());
        }
        Some(rest.len() - after.strip_prefix("%}")?.len())
    }

    fn raw(&mut self) -> Fallible<()> {
        let rest = self.rest();
        self.line_starts = self.source[..self.at].ends_with('\n');
        let start = self.at;
        for (begin, _) in rest.match_indices("{%") {
            let sign = sign_at(rest, begin + 2);
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
            self.push(TokenKind::Text(text.to_owned()));
            return Ok(());
        }
        self.fail("missing end of raw directive")
    }

    /// Reads tokens up to `delimiter`, which has no meaning within brackets.
    fn code(&mut self, end: TokenKind, delimiter: &str) -> Fallible<()> {
        let mut brackets = Vec::new();
        while let Some(next) = self.rest().chars().next() {
            if brackets.is_empty()
                && let Some(length) = self.end(delimiter, delimiter == "%}")
            {
                self.at += length;
                self.push(end);
                return Ok(());
            }
            match next {
                _ if is_space(next) => self.at += next.len_utf8(),
                '0'..='9' => self.number()?,
                '"' | '\'' => self.string(next)?,
                _ if is_in_name(next) => self.name(),
                _ => self.operator(next, &mut brackets)?,
            }
        }
        // The parser reports what is missing.
        Ok(())
    }

    fn name(&mut self) {
        let rest = self.rest();
        let length = rest.find(|c: char| !is_in_name(c)).unwrap_or(rest.len());
        self.at += length;
        self.push(TokenKind::Name(rest[..length].to_owned()));
    }

    /// Reads an operator. `brackets` are the closing brackets of those that are open.
    fn operator(&mut self, next: char, brackets: &mut Vec<&'static str>) -> Fallible<()> {
        let rest = self.rest();
        let found = OPERATORS.into_iter().find(|operator| rest.starts_with(operator));
        let Some(operator) = found else {
            return self.fail(format!("unexpected char {next:?}"));
        };
        match operator {
            "(" => brackets.push(")"),
            "[" => brackets.push("]"),
            "{" => brackets.push("}"),
            ")" | "]" | "}" => match brackets.pop() {
                Some(expected) if expected == operator => {}
                Some(expected) => {
                    return self.fail(format!("unexpected '{operator}', expected '{expected}'"));
                }
                None => return self.fail(format!("unexpected '{operator}'")),
            },
            _ => {}
        }
        self.at += operator.len();
        self.push(TokenKind::Op(operator));
        Ok(())
    }
}

/// Returns the position of the next `{{`, `{%` or `{#`.
fn next_delimiter(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    text.match_indices('{')
        .map(|(at, _)| at)
        .find(|at| matches!(bytes.get(at + 1), Some(b'{' | b'%' | b'#')))
}

/// Returns the sign that controls white space around a tag, if there is one at `at`.
fn sign_at(text: &str, at: usize) -> Option<u8> {
    text.as_bytes().get(at).copied().filter(|sign| matches!(sign, b'-' | b'+'))
}

fn is_in_name(c: char) -> bool {
    c == '_' || c.is_alphanumeric()
}

/// Returns whether `c` is white space in Python.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}
