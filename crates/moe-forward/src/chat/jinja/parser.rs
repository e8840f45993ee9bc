//! Tokens to statements, by the grammar of Jinja2 3.1.

use std::sync::Arc;

use super::ast::{
    Args, AssignmentTarget, Body, Expr, ExprKind, For, Macro, Name, Stmt, StmtKind, Tree,
};
use super::lexer::{Kind, Token, tokenize};
use super::{Fail, Outcome};

/// Python stops at 1,000 nested calls, and Jinja2 makes several for each level of a template.
const MAX_DEPTH: usize = 1000;

/// The statements of `source`.
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
    tokens: Vec<Token>,
    at: usize,
    pub depth: usize,
    in_loop: usize,
    blocks: Vec<(Name, Arc<Body>)>,
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

    fn expect_end(&mut self) -> Outcome<()> {
        match self.kind() {
            Kind::BlockEnd => {
                self.next();
                Ok(())
            }
            _ => self.fail("expected the end of the block"),
        }
    }

    /// One level deeper, for as long as `parse` runs.
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

    /// Statements up to a block that begins with one of `ends`, whose name is the next token then.
    fn body(&mut self, ends: &[&str]) -> Outcome<Body> {
        self.nested(|parser| {
            let mut body = Vec::new();
            loop {
                let line = parser.line();
                match parser.kind() {
                    Kind::Text(_) => {
                        let Kind::Text(text) = parser.next().kind else { continue };
                        body.push(Stmt { line, kind: StmtKind::Text(text.into()) });
                    }
                    Kind::PrintBegin => {
                        parser.next();
                        let expr = parser.tuple(true, &[])?;
                        if *parser.kind() != Kind::PrintEnd {
                            return parser.fail("expected the end of the print statement");
                        }
                        parser.next();
                        body.push(Stmt { line, kind: StmtKind::Print(vec![expr]) });
                    }
                    Kind::BlockBegin => {
                        parser.next();
                        if ends.iter().any(|end| parser.is_name(end)) {
                            return Ok(body);
                        }
                        let kind = parser.statement()?;
                        body.push(Stmt { line, kind });
                        parser.expect_end()?;
                    }
                    Kind::End if ends.is_empty() => return Ok(body),
                    _ => return parser.fail(format!("expected {}", ends.join(" or "))),
                }
            }
        })
    }

    /// The inside of a block, from the end of its first tag to the name of one of `ends`.
    fn inside(&mut self, ends: &[&str]) -> Outcome<Body> {
        self.skip_op(":");
        self.expect_end()?;
        self.body(ends)
    }

    /// The inside of a block, with its last tag's name.
    fn whole(&mut self, end: &str) -> Outcome<Body> {
        let body = self.inside(&[end])?;
        self.next();
        Ok(body)
    }

    fn statement(&mut self) -> Outcome<StmtKind> {
        let Kind::Name(name) = self.kind().clone() else { return self.fail("tag name expected") };
        let (line, start) = (self.line(), self.at);
        self.next();
        match name.as_str() {
            "for" => self.for_(),
            "if" => self.if_(),
            "set" => self.set(),
            "macro" => {
                let name = self.expect_name()?;
                let params = self.signature()?;
                let body = self.whole("endmacro")?;
                Ok(StmtKind::Macro(Arc::new(self.macro_(name, params, body, start))))
            }
            "call" => {
                let params = if self.is_op("(") { self.signature()? } else { Vec::new() };
                let call = self.expression()?;
                if !matches!(call.kind, ExprKind::Call(..)) {
                    return self.fail("expected a call");
                }
                let body = self.whole("endcall")?;
                Ok(StmtKind::Call {
                    macro_: Arc::new(self.macro_("caller".into(), params, body, start)),
                    call,
                })
            }
            "filter" => {
                let filters = self.filters(true)?;
                Ok(StmtKind::Filter { filters, body: self.whole("endfilter")? })
            }
            "with" => {
                let mut values: Vec<(AssignmentTarget, Expr)> = Vec::new();
                while *self.kind() != Kind::BlockEnd && !self.is_op(":") {
                    if !values.is_empty() {
                        self.expect_op(",")?;
                    }
                    let target = self.target()?;
                    self.expect_op("=")?;
                    values.push((target, self.expression()?));
                }
                Ok(StmtKind::With { values, body: self.whole("endwith")? })
            }
            "generation" => Ok(StmtKind::Scope(self.whole("endgeneration")?)),
            "autoescape" => {
                let value = self.expression()?;
                if !matches!(value.kind, ExprKind::Bool(false)) {
                    return self.fail("{% autoescape %} with anything but false is not supported");
                }
                Ok(StmtKind::Scope(self.whole("endautoescape")?))
            }
            "block" => {
                let name = self.expect_name()?;
                let mut is_scoped = false;
                loop {
                    match () {
                        () if self.skip_name("scoped") => is_scoped = true,
                        () if self.skip_name("required") => {}
                        () => break,
                    }
                }
                let body = Arc::new(self.whole("endblock")?);
                self.skip_name(&name);
                if self.blocks.iter().any(|(known, _)| *known == name) {
                    return Err(Fail::new(format!("block '{name}' defined twice")).at(line));
                }
                self.blocks.push((name, Arc::clone(&body)));
                Ok(StmtKind::Block { body, is_scoped })
            }
            "print" => {
                let mut exprs = Vec::new();
                while *self.kind() != Kind::BlockEnd {
                    if !exprs.is_empty() {
                        self.expect_op(",")?;
                    }
                    exprs.push(self.expression()?);
                }
                Ok(StmtKind::Print(exprs))
            }
            "break" | "continue" if self.in_loop == 0 => {
                self.fail(format!("{name} outside of a loop"))
            }
            "break" => Ok(StmtKind::Break),
            "continue" => Ok(StmtKind::Continue),
            "include" | "import" | "from" | "extends" => Err(Fail::new(format!(
                "{{% {name} %}} needs another template, which a chat template has none of"
            ))
            .at(line)),
            _ => Err(Fail::new(format!("unknown tag {name:?}")).at(line)),
        }
    }

    fn macro_(
        &self,
        name: Name,
        params: Vec<(Name, Option<Expr>)>,
        body: Body,
        start: usize,
    ) -> Macro {
        // Jinja2 looks for these names in the body; giving them where they aren't asked for hides
        // nothing.
        let uses = |wanted: &str| {
            let is_wanted =
                |token: &Token| matches!(&token.kind, Kind::Name(name) if name == wanted);
            self.tokens[start..self.at].iter().any(is_wanted)
        };
        Macro {
            takes_varargs: uses("varargs"),
            takes_kwargs: uses("kwargs"),
            takes_caller: uses("caller"),
            name,
            params,
            body,
        }
    }

    fn signature(&mut self) -> Outcome<Vec<(Name, Option<Expr>)>> {
        self.expect_op("(")?;
        let mut params: Vec<(Name, Option<Expr>)> = Vec::new();
        while !self.is_op(")") {
            if !params.is_empty() {
                self.expect_op(",")?;
            }
            let name = self.expect_name()?;
            let default = if self.skip_op("=") { Some(self.expression()?) } else { None };
            if default.is_none() && params.iter().any(|(_, default)| default.is_some()) {
                return self.fail("non-default argument follows default argument");
            }
            params.push((name, default));
        }
        self.expect_op(")")?;
        Ok(params)
    }

    fn for_(&mut self) -> Outcome<StmtKind> {
        let target = self.target()?;
        if !self.skip_name("in") {
            return self.fail("expected in");
        }
        let iter = self.tuple(false, &["recursive"])?;
        let filter = if self.skip_name("if") { Some(self.expression()?) } else { None };
        let recursive = self.skip_name("recursive");
        self.in_loop += 1;
        let body = self.inside(&["endfor", "else"]);
        self.in_loop -= 1;
        let body = body?;
        let has_else = self.is_name("else");
        self.next();
        let otherwise = if has_else { self.whole("endfor")? } else { Vec::new() };
        Ok(StmtKind::For(Arc::new(For { target, iter, filter, recursive, body, otherwise })))
    }

    fn if_(&mut self) -> Outcome<StmtKind> {
        let mut arms = Vec::new();
        loop {
            let test = self.tuple(false, &[])?;
            arms.push((test, self.inside(&["elif", "else", "endif"])?));
            let Kind::Name(name) = self.next().kind else { return self.fail("expected endif") };
            match name.as_str() {
                "elif" => {}
                "else" => return Ok(StmtKind::If { arms, otherwise: self.whole("endif")? }),
                _ => return Ok(StmtKind::If { arms, otherwise: Vec::new() }),
            }
        }
    }

    fn set(&mut self) -> Outcome<StmtKind> {
        let target = self.target()?;
        if self.skip_op("=") {
            return Ok(StmtKind::Set(target, self.tuple(true, &[])?));
        }
        let filters = self.filters(false)?;
        Ok(StmtKind::SetBlock { target, filters, body: self.whole("endset")? })
    }

    /// What is assigned to. As in Jinja2, a comma at its end wants parentheses.
    fn target(&mut self) -> Outcome<AssignmentTarget> {
        let mut targets = Vec::new();
        let mut is_tuple = false;
        loop {
            if is_tuple && self.is_op(")") {
                break;
            }
            targets.push(self.one_target()?);
            if !self.skip_op(",") {
                break;
            }
            is_tuple = true;
        }
        if is_tuple {
            return Ok(AssignmentTarget::Tuple(targets));
        }
        match targets.pop() {
            Some(target) => Ok(target),
            None => self.fail("expected a name"),
        }
    }

    fn one_target(&mut self) -> Outcome<AssignmentTarget> {
        if self.skip_op("(") {
            let target = self.nested(|parser| parser.target())?;
            self.expect_op(")")?;
            return Ok(target);
        }
        let name = self.expect_name()?;
        if matches!(&*name, "true" | "false" | "True" | "False" | "none" | "None") {
            return self.fail("can't assign to a constant");
        }
        if self.skip_op(".") {
            Ok(AssignmentTarget::Attr(name, self.expect_name()?))
        } else {
            Ok(AssignmentTarget::Name(name))
        }
    }

    fn filters(&mut self, inline: bool) -> Outcome<Vec<(Name, Args)>> {
        let mut filters = Vec::new();
        while (inline && filters.is_empty()) || self.skip_op("|") {
            let name = self.dotted_name()?;
            let args = if self.is_op("(") { self.args()? } else { Args::default() };
            filters.push((name, args));
        }
        Ok(filters)
    }

    pub fn dotted_name(&mut self) -> Outcome<Name> {
        let mut name = self.expect_name()?.to_string();
        while self.skip_op(".") {
            name = format!("{name}.{}", self.expect_name()?);
        }
        Ok(name.into())
    }
}
