//! Parses tokens to a syntax tree: moving through the tokens, and bodies of statements.

use std::sync::Arc;

use super::ast::{Body, Name, Stmt, StmtKind, Tree};
use super::lexer::{Kind, Token, tokenize};
use super::{Fail, Outcome};

/// Python stops at 1,000 nested calls, and Jinja2 makes several for each level of a template.
const MAX_DEPTH: usize = 1000;

/// Parses `source`.
pub(super) fn parse(source: &str) -> Outcome<Tree> {
    let mut parser =
        Parser { tokens: tokenize(source)?, at: 0, depth: 0, in_loop: 0, blocks: Vec::new() };
    let body = parser.body(&[])?;
    match parser.kind() {
        Kind::End => Ok(Tree { body, blocks: parser.blocks.into() }),
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

fn describe(kind: &Kind) -> String {
    match kind {
        Kind::Text(_) => "template text".into(),
        Kind::BlockBegin => "begin of statement block".into(),
        Kind::BlockEnd => "end of statement block".into(),
        Kind::PrintBegin => "begin of print statement".into(),
        Kind::PrintEnd => "end of print statement".into(),
        Kind::Name(name) => name.clone(),
        Kind::Str(_) => "string".into(),
        Kind::Int(_) => "integer".into(),
        Kind::Float(_) => "float".into(),
        Kind::Op(operator) => (*operator).into(),
        Kind::End => "end of template".into(),
    }
}

impl Parser {
    pub fn kind(&self) -> &Kind {
        &self.tokens[self.at].kind
    }

    pub fn line(&self) -> usize {
        self.tokens[self.at].line
    }

    pub fn look(&self) -> &Kind {
        &self.tokens[(self.at + 1).min(self.tokens.len() - 1)].kind
    }

    pub fn next(&mut self) -> Token {
        let token = self.tokens[self.at].clone();
        self.at = (self.at + 1).min(self.tokens.len() - 1);
        token
    }

    pub fn fail<T>(&self, what: impl Into<String>) -> Outcome<T> {
        Err(Fail::new(format!("{}, at {:?}", what.into(), describe(self.kind()))).at(self.line()))
    }

    pub fn is_op(&self, operator: &str) -> bool {
        matches!(self.kind(), Kind::Op(found) if *found == operator)
    }

    pub fn is_name(&self, name: &str) -> bool {
        matches!(self.kind(), Kind::Name(found) if found == name)
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

    pub fn expect_op(&mut self, operator: &str) -> Outcome<()> {
        if self.skip_op(operator) { Ok(()) } else { self.fail(format!("expected {operator:?}")) }
    }

    pub fn expect_name(&mut self) -> Outcome<Name> {
        match self.next().kind {
            Kind::Name(name) => Ok(name.into()),
            _ => {
                self.at -= 1;
                self.fail("expected a name")
            }
        }
    }

    pub fn expect_end(&mut self) -> Outcome<()> {
        match self.kind() {
            Kind::BlockEnd => {
                self.next();
                Ok(())
            }
            _ => self.fail("expected the end of the block"),
        }
    }

    /// Runs `parse` one nesting level deeper.
    pub fn nested<T>(&mut self, parse: impl FnOnce(&mut Self) -> Outcome<T>) -> Outcome<T> {
        self.deeper()?;
        let result = parse(self);
        self.depth -= 1;
        result
    }

    pub fn deeper(&mut self) -> Outcome<()> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return self.fail(format!("nested more than {MAX_DEPTH} deep"));
        }
        Ok(())
    }

    /// Parses statements up to a block that begins with one of `ends`, whose name becomes the next
    /// token.
    pub fn body(&mut self, ends: &[&str]) -> Outcome<Body> {
        self.nested(|parser| parser.statements(ends))
    }

    fn statements(&mut self, ends: &[&str]) -> Outcome<Body> {
        let mut body = Vec::new();
        loop {
            let line = self.line();
            let kind = match self.kind() {
                Kind::Text(text) => {
                    let text = StmtKind::Text(text.as_str().into());
                    self.next();
                    text
                }
                Kind::PrintBegin => self.printed()?,
                Kind::BlockBegin => {
                    self.next();
                    if ends.iter().any(|end| self.is_name(end)) {
                        return Ok(body);
                    }
                    self.tag()?
                }
                Kind::End if ends.is_empty() => return Ok(body),
                _ => return self.fail(format!("expected {}", ends.join(" or "))),
            };
            body.push(Stmt { line, kind });
        }
    }

    /// Parses the inside of `{{ … }}`.
    fn printed(&mut self) -> Outcome<StmtKind> {
        self.next();
        let expr = self.tuple(true, &[])?;
        if *self.kind() != Kind::PrintEnd {
            return self.fail("expected the end of the print statement");
        }
        self.next();
        Ok(StmtKind::Print(vec![expr]))
    }

    pub fn dotted_name(&mut self) -> Outcome<Name> {
        let mut name = self.expect_name()?.to_string();
        while self.skip_op(".") {
            name = format!("{name}.{}", self.expect_name()?);
        }
        Ok(name.into())
    }
}
