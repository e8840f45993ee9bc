//! Parses tags, `{% … %}`, to statements, by the grammar of Jinja2 3.1.

use std::sync::Arc;

use super::ast::{Args, AssignmentTarget, Body, Expr, ExprKind, For, Macro, Name, StmtKind};
use super::lexer::{Token, TokenKind};
use super::parser::Parser;
use super::{Fail, Fallible};

/// The parameters of a macro, with their defaults.
type Params = Vec<(Name, Option<Expr>)>;

impl Parser {
    /// Parses a statement from its tag's name to the end of its last tag.
    pub fn tag(&mut self) -> Fallible<StmtKind> {
        let statement = self.statement()?;
        self.expect_end()?;
        Ok(statement)
    }

    /// Parses the inside of a block, from the end of its first tag to the name of one of `ends`.
    fn inside(&mut self, ends: &[&str]) -> Fallible<Body> {
        self.skip_op(":");
        self.expect_end()?;
        self.body(ends)
    }

    /// As [`Self::inside`] with one end, whose tag is parsed too.
    fn whole(&mut self, end: &str) -> Fallible<Body> {
        let body = self.inside(&[end])?;
        self.next();
        Ok(body)
    }

    fn statement(&mut self) -> Fallible<StmtKind> {
        let TokenKind::Name(name) = self.kind().clone() else {
            return self.fail("tag name expected");
        };
        let (line, start) = (self.line(), self.at);
        self.next();
        match name.as_str() {
            "for" => self.for_(),
            "if" => self.if_(),
            "set" => self.set(),
            "macro" => self.macro_(start),
            "call" => self.call(start),
            "filter" => self.filter(),
            "with" => self.with(),
            "generation" => Ok(StmtKind::Scope(self.whole("endgeneration")?)),
            "autoescape" => self.autoescape(),
            "block" => self.block(line),
            "print" => self.print(),
            "break" | "continue" if self.in_loop == 0 => {
                self.fail(format!("{name} outside of a loop"))
            }
            "break" => Ok(StmtKind::Break),
            "continue" => Ok(StmtKind::Continue),
            "include" | "import" | "from" | "extends" => Err(needs_another(&name).at(line)),
            _ => Err(Fail::new(format!("unknown tag {name:?}")).at(line)),
        }
    }

    fn macro_(&mut self, start: usize) -> Fallible<StmtKind> {
        let name = self.expect_name()?;
        let params = self.signature()?;
        let body = self.whole("endmacro")?;
        Ok(StmtKind::Macro(self.macro_since(start, name, params, body)))
    }

    fn call(&mut self, start: usize) -> Fallible<StmtKind> {
        let params = if self.is_op("(") { self.signature()? } else { Vec::new() };
        let call = self.expression()?;
        if !matches!(call.kind, ExprKind::Call(..)) {
            return self.fail("expected a call");
        }
        let body = self.whole("endcall")?;
        let macro_ = self.macro_since(start, "caller".into(), params, body);
        Ok(StmtKind::Call { macro_, call })
    }

    /// Makes a macro whose tokens begin at `start` and end at the current position.
    fn macro_since(&self, start: usize, name: Name, params: Params, body: Body) -> Arc<Macro> {
        let tokens = &self.tokens[start..self.at];
        // Jinja2 searches the body for these names; setting them where they aren't used does no
        // harm.
        Arc::new(Macro {
            takes_varargs: have_name(tokens, "varargs"),
            takes_kwargs: have_name(tokens, "kwargs"),
            takes_caller: have_name(tokens, "caller"),
            name,
            params,
            body,
        })
    }

    fn signature(&mut self) -> Fallible<Params> {
        self.expect_op("(")?;
        let mut params = Params::new();
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

    fn filter(&mut self) -> Fallible<StmtKind> {
        let filters = self.filters(true)?;
        Ok(StmtKind::Filter { filters, body: self.whole("endfilter")? })
    }

    fn with(&mut self) -> Fallible<StmtKind> {
        let mut values: Vec<(AssignmentTarget, Expr)> = Vec::new();
        while *self.kind() != TokenKind::BlockEnd && !self.is_op(":") {
            if !values.is_empty() {
                self.expect_op(",")?;
            }
            let target = self.target()?;
            self.expect_op("=")?;
            values.push((target, self.expression()?));
        }
        Ok(StmtKind::With { values, body: self.whole("endwith")? })
    }

    fn autoescape(&mut self) -> Fallible<StmtKind> {
        let value = self.expression()?;
        if !matches!(value.kind, ExprKind::Bool(false)) {
            return self.fail("{% autoescape %} with anything but false is not supported");
        }
        Ok(StmtKind::Scope(self.whole("endautoescape")?))
    }

    fn block(&mut self, line: usize) -> Fallible<StmtKind> {
        let name = self.expect_name()?;
        let mut is_scoped = false;
        loop {
            if self.skip_name("scoped") {
                is_scoped = true;
            } else if !self.skip_name("required") {
                break;
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

    fn print(&mut self) -> Fallible<StmtKind> {
        let mut exprs = Vec::new();
        while *self.kind() != TokenKind::BlockEnd {
            if !exprs.is_empty() {
                self.expect_op(",")?;
            }
            exprs.push(self.expression()?);
        }
        Ok(StmtKind::Print(exprs))
    }

    fn for_(&mut self) -> Fallible<StmtKind> {
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

    fn if_(&mut self) -> Fallible<StmtKind> {
        let mut arms = Vec::new();
        loop {
            let test = self.tuple(false, &[])?;
            arms.push((test, self.inside(&["elif", "else", "endif"])?));
            let TokenKind::Name(name) = self.next().kind else {
                return self.fail("expected endif");
            };
            match name.as_str() {
                "elif" => {}
                "else" => return Ok(StmtKind::If { arms, otherwise: self.whole("endif")? }),
                _ => return Ok(StmtKind::If { arms, otherwise: Vec::new() }),
            }
        }
    }

    fn set(&mut self) -> Fallible<StmtKind> {
        let target = self.target()?;
        if self.skip_op("=") {
            return Ok(StmtKind::Set(target, self.tuple(true, &[])?));
        }
        let filters = self.filters(false)?;
        Ok(StmtKind::SetBlock { target, filters, body: self.whole("endset")? })
    }

    /// Parses the target of an assignment. As in Jinja2, a trailing comma requires parentheses.
    fn target(&mut self) -> Fallible<AssignmentTarget> {
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

    fn one_target(&mut self) -> Fallible<AssignmentTarget> {
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

    fn filters(&mut self, inline: bool) -> Fallible<Vec<(Name, Args)>> {
        let mut filters = Vec::new();
        while (inline && filters.is_empty()) || self.skip_op("|") {
            filters.push(self.named_filter()?);
        }
        Ok(filters)
    }
}

fn have_name(tokens: &[Token], wanted: &str) -> bool {
    tokens.iter().any(|token| matches!(&token.kind, TokenKind::Name(name) if name == wanted))
}

fn needs_another(tag: &str) -> Fail {
    let what = format!("{{% {tag} %}} needs another template, which a chat template has none of");
    Fail::new(what)
}
