//! Parses tokens to a syntax tree: moving through the tokens, and bodies of statements.

use std::sync::Arc;

use super::ast::{Body, Name, Stmt, StmtKind, Tree};
use super::lexer::{Token, TokenKind, tokenize};
use super::{Fail, Fallible};

/// Python stops at 1,000 nested calls, and Jinja2 makes several for each level of a template.
const MAX_DEPTH: usize = 1000;

/// Parses `source`.
pub(super) fn parse(source: &str) -> Fallible<Tree> {
    let mut parser =
        Parser { tokens: tokenize(source)?, at: 0, depth: 0, in_loop: 0, blocks: Vec::new() };
    let body = parser.body(&[])?;
    match parser.kind() {
        TokenKind::End => Ok(Tree { body, blocks: parser.blocks.into() }),
        _ => parser.fail("unexpected block"),
    }
}

pub(super) struct Parser {
    pub tokens: Vec<Token>,
    pub at: usize,
    pub depth: usize,
    /// Number of loops around the current position.
    pub in_loop: usize,
    pub blocks: Vec<(Name, Arc<Body>)>,
}

fn describe(kind: &TokenKind) -> String {
    match kind {
        TokenKind::Text(_) => "template text".into(),
        TokenKind::BlockBegin => "begin of statement block".into(),
        TokenKind::BlockEnd => "end of statement block".into(),
        TokenKind::PrintBegin => "begin of print statement".into(),
        TokenKind::PrintEnd => "end of print statement".into(),
        TokenKind::Name(name) => name.clone(),
        TokenKind::Str(_) => "string".into(),
        TokenKind::Int(_) => "integer".into(),
        TokenKind::Float(_) => "float".into(),
        TokenKind::Op(operator) => (*operator).into(),
        TokenKind::End => "end of template".into(),
    }
}

impl Parser {
    pub fn kind(&self) -> &TokenKind {
        &self.tokens[self.at].kind
    }

    pub fn line(&self) -> usize {
        self.tokens[self.at].line
    }

    pub fn look(&self) -> &TokenKind {
        &self.tokens[(self.at + 1).min(self.tokens.len() - 1)].kind
    }

    pub fn next(&mut self) -> Token {
        let token = self.tokens[self.at].clone();
        self.at = (self.at + 1).min(self.tokens.len() - 1);
        token
    }

    pub fn fail<T>(&self, what: impl Into<String>) -> Fallible<T> {
        Err(Fail::new(format!("{}, at {:?}", what.into(), describe(self.kind()))).at(self.line()))
    }

    pub fn is_op(&self, operator: &str) -> bool {
        matches!(self.kind(), TokenKind::Op(found) if *found == operator)
    }

    pub fn is_name(&self, name: &str) -> bool {
        matches!(self.kind(), TokenKind::Name(found) if found == name)
    }

    pub fn skip_op(&mut self, operator: &str) -> bool {
        let found = self.is_op(operator);
        if found {
            self.next();
        }
        found
    }

    pub fn skip_name(&mut self, name: &str) -> bool {
        let found = self.is_name(name);
        if found {
            self.next();
        }
        found
    }

    pub fn expect_op(&mut self, operator: &str) -> Fallible<()> {
        if self.skip_op(operator) { Ok(()) } else { self.fail(format!("expected {operator:?}")) }
    }

    pub fn expect_name(&mut self) -> Fallible<Name> {
        match self.next().kind {
            TokenKind::Name(name) => Ok(name.into()),
            _ => {
                self.at -= 1;
                self.fail("expected a name")
            }
        }
    }

    pub fn expect_end(&mut self) -> Fallible<()> {
        match self.kind() {
            TokenKind::BlockEnd => {
                self.next();
                Ok(())
            }
            _ => self.fail("expected the end of the block"),
        }
    }

    /// Runs `parse` one nesting level deeper.
    pub fn nested<T>(&mut self, parse: impl FnOnce(&mut Self) -> Fallible<T>) -> Fallible<T> {
        self.deeper()?;
        let result = parse(self);
        self.depth -= 1;
        result
    }

    pub fn deeper(&mut self) -> Fallible<()> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return self.fail(format!("nested more than {MAX_DEPTH} deep"));
        }
        Ok(())
    }

    /// Parses statements up to a block that begins with one of `ends`, whose name becomes the next
    /// token.
    pub fn body(&mut self, ends: &[&str]) -> Fallible<Body> {
        self.nested(|parser| parser.statements(ends))
    }

    fn statements(&mut self, ends: &[&str]) -> Fallible<Body> {
        let mut body = Vec::new();
        loop {
            let line = self.line();
            let kind = match self.kind() {
                TokenKind::Text(text) => {
                    let text = StmtKind::Text(text.as_str().into());
                    self.next();
                    text
                }
                TokenKind::PrintBegin => self.printed()?,
                TokenKind::BlockBegin => {
                    self.next();
                    if ends.iter().any(|end| self.is_name(end)) {
                        return Ok(body);
                    }
                    self.tag()?
                }
                TokenKind::End if ends.is_empty() => return Ok(body),
                _ => return self.fail(format!("expected {}", ends.join(" or "))),
            };
            body.push(Stmt { line, kind });
        }
    }

    /// Parses the inside of `{{ … }}`.
    fn printed(&mut self) -> Fallible<StmtKind> {
        self.next();
        let expr = self.tuple(true, &[])?;
        if *self.kind() != TokenKind::PrintEnd {
            return self.fail("expected the end of the print statement");
        }
        self.next();
        Ok(StmtKind::Print(vec![expr]))
    }

    pub fn dotted_name(&mut self) -> Fallible<Name> {
        let mut name = self.expect_name()?.to_string();
        while self.skip_op(".") {
            name = format!("{name}.{}", self.expect_name()?);
        }
        Ok(name.into())
    }
}
