//! Tokens to statements, by the grammar of Jinja2 3.1, its precedences and its quirks.

use std::sync::Arc;

use super::ast::{Args, Binary, Body, Comparison, Expr, ExprKind, For, Macro, Name, Stmt, StmtKind, Target};
use super::lexer::{Kind, Token, tokenize};
use super::{Fail, Outcome};

/// Python stops at 1,000 nested calls, and Jinja2 makes several for each level of a template.
const MAX_DEPTH: usize = 1000;

/// The statements of `source`.
pub(super) fn parse(source: &str) -> Outcome<Body> {
    let mut parser = Parser { tokens: tokenize(source)?, at: 0, depth: 0, in_loop: 0 };
    let body = parser.body(&[])?;
    match parser.kind() {
        Kind::End => Ok(body),
        _ => parser.fail("unexpected block"),
    }
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
    depth: usize,
    in_loop: usize,
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
    fn kind(&self) -> &Kind {
        &self.tokens[self.at].kind
    }

    fn line(&self) -> usize {
        self.tokens[self.at].line
    }

    fn look(&self) -> &Kind {
        &self.tokens[(self.at + 1).min(self.tokens.len() - 1)].kind
    }

    fn next(&mut self) -> Token {
        let token = self.tokens[self.at].clone();
        self.at = (self.at + 1).min(self.tokens.len() - 1);
        token
    }

    fn fail<T>(&self, what: impl Into<String>) -> Outcome<T> {
        Err(Fail::new(format!("{}, at {:?}", what.into(), describe(self.kind()))).at(self.line()))
    }

    fn is_op(&self, operator: &str) -> bool {
        matches!(self.kind(), Kind::Op(found) if *found == operator)
    }

    fn is_name(&self, name: &str) -> bool {
        matches!(self.kind(), Kind::Name(found) if found == name)
    }

    fn skip_op(&mut self, operator: &str) -> bool {
        let found = self.is_op(operator);
        if found {
            self.next();
        }
        found
    }

    fn skip_name(&mut self, name: &str) -> bool {
        let found = self.is_name(name);
        if found {
            self.next();
        }
        found
    }

    fn expect_op(&mut self, operator: &str) -> Outcome<()> {
        if self.skip_op(operator) { Ok(()) } else { self.fail(format!("expected {operator:?}")) }
    }

    fn expect_name(&mut self) -> Outcome<Name> {
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
    fn nested<T>(&mut self, parse: impl FnOnce(&mut Self) -> Outcome<T>) -> Outcome<T> {
        self.deeper()?;
        let result = parse(self);
        self.depth -= 1;
        result
    }

    fn deeper(&mut self) -> Outcome<()> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return self.fail(format!("nested more than {MAX_DEPTH} deep"));
        }
        Ok(())
    }

    // Statements.

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
                Ok(StmtKind::Call { macro_: Arc::new(self.macro_("caller".into(), params, body, start)), call })
            }
            "filter" => {
                let filters = self.filters(true)?;
                Ok(StmtKind::Filter { filters, body: self.whole("endfilter")? })
            }
            "with" => {
                let mut values: Vec<(Target, Expr)> = Vec::new();
                while *self.kind() != Kind::BlockEnd && !self.is_op(":") {
                    if !values.is_empty() {
                        self.expect_op(",")?;
                    }
                    let target = self.target(&[])?;
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
                while self.skip_name("scoped") || self.skip_name("required") {}
                let body = self.whole("endblock")?;
                self.skip_name(&name);
                Ok(StmtKind::Block(body))
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
            "break" | "continue" if self.in_loop == 0 => self.fail(format!("{name} outside of a loop")),
            "break" => Ok(StmtKind::Break),
            "continue" => Ok(StmtKind::Continue),
            "include" | "import" | "from" | "extends" => {
                Err(Fail::new(format!("{{% {name} %}} needs another template, which a chat template has none of"))
                    .at(line))
            }
            _ => Err(Fail::new(format!("unknown tag {name:?}")).at(line)),
        }
    }

    fn macro_(&self, name: Name, params: Vec<(Name, Option<Expr>)>, body: Body, start: usize) -> Macro {
        // Jinja2 looks for these names in the body; giving them where they aren't asked for hides nothing.
        let uses = |wanted: &str| {
            let is_wanted = |token: &Token| matches!(&token.kind, Kind::Name(name) if name == wanted);
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
        let target = self.target(&["in"])?;
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
        let target = self.target(&[])?;
        if self.skip_op("=") {
            return Ok(StmtKind::Set(target, self.tuple(true, &[])?));
        }
        let filters = self.filters(false)?;
        Ok(StmtKind::SetBlock { target, filters, body: self.whole("endset")? })
    }

    fn target(&mut self, ends: &[&str]) -> Outcome<Target> {
        let mut targets = Vec::new();
        let mut is_tuple = false;
        loop {
            if is_tuple && (self.is_op("=") || self.is_op(")") || ends.iter().any(|end| self.is_name(end))) {
                break;
            }
            targets.push(self.one_target()?);
            if !self.skip_op(",") {
                break;
            }
            is_tuple = true;
        }
        if is_tuple {
            return Ok(Target::Tuple(targets));
        }
        match targets.pop() {
            Some(target) => Ok(target),
            None => self.fail("expected a name"),
        }
    }

    fn one_target(&mut self) -> Outcome<Target> {
        if self.skip_op("(") {
            let target = self.nested(|parser| parser.target(&[]))?;
            self.expect_op(")")?;
            return Ok(target);
        }
        let name = self.expect_name()?;
        if matches!(&*name, "true" | "false" | "True" | "False" | "none" | "None") {
            return self.fail("can't assign to a constant");
        }
        if self.skip_op(".") { Ok(Target::Attr(name, self.expect_name()?)) } else { Ok(Target::Name(name)) }
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

    fn dotted_name(&mut self) -> Outcome<Name> {
        let mut name = self.expect_name()?.to_string();
        while self.skip_op(".") {
            name = format!("{name}.{}", self.expect_name()?);
        }
        Ok(name.into())
    }

    // Expressions, from the loosest to the tightest.

    fn tuple(&mut self, with_if: bool, ends: &[&str]) -> Outcome<Expr> {
        let line = self.line();
        let mut items = Vec::new();
        let mut is_tuple = false;
        loop {
            if is_tuple && self.is_tuple_end(ends) {
                break;
            }
            items.push(if with_if { self.expression()? } else { self.nested(Self::or)? });
            if !self.skip_op(",") {
                break;
            }
            is_tuple = true;
        }
        if !is_tuple && let Some(item) = items.pop() {
            return Ok(item);
        }
        Ok(Expr { line, kind: ExprKind::Tuple(items) })
    }

    fn is_tuple_end(&self, ends: &[&str]) -> bool {
        matches!(self.kind(), Kind::PrintEnd | Kind::BlockEnd)
            || self.is_op(")")
            || ends.iter().any(|end| self.is_name(end))
    }

    fn expression(&mut self) -> Outcome<Expr> {
        self.nested(|parser| {
            let line = parser.line();
            let mut expr = parser.or()?;
            let depth = parser.depth;
            while parser.skip_name("if") {
                parser.deeper()?;
                let test = Box::new(parser.or()?);
                let otherwise = if parser.skip_name("else") { Some(Box::new(parser.expression()?)) } else { None };
                expr = Expr { line, kind: ExprKind::If { test, then: Box::new(expr), otherwise } };
            }
            parser.depth = depth;
            Ok(expr)
        })
    }

    /// Operators of one level, which group from the left: a long row of them is as deep as nested parentheses.
    fn row(
        &mut self,
        operand: fn(&mut Self) -> Outcome<Expr>,
        operator: fn(&mut Self) -> Option<fn(Box<Expr>, Box<Expr>) -> ExprKind>,
    ) -> Outcome<Expr> {
        let line = self.line();
        let mut left = operand(self)?;
        let depth = self.depth;
        while let Some(make) = operator(self) {
            self.deeper()?;
            let right = operand(self)?;
            left = Expr { line, kind: make(Box::new(left), Box::new(right)) };
        }
        self.depth = depth;
        Ok(left)
    }

    fn or(&mut self) -> Outcome<Expr> {
        self.row(Self::and, |parser| parser.skip_name("or").then_some(ExprKind::Or as _))
    }

    fn and(&mut self) -> Outcome<Expr> {
        self.row(Self::not, |parser| parser.skip_name("and").then_some(ExprKind::And as _))
    }

    fn not(&mut self) -> Outcome<Expr> {
        let line = self.line();
        if self.skip_name("not") {
            let inner = self.nested(Self::not)?;
            return Ok(Expr { line, kind: ExprKind::Not(Box::new(inner)) });
        }
        self.compare()
    }

    fn comparison(&mut self) -> Option<Comparison> {
        let found = match self.kind() {
            Kind::Op("==") => Comparison::Eq,
            Kind::Op("!=") => Comparison::Ne,
            Kind::Op("<") => Comparison::Lt,
            Kind::Op("<=") => Comparison::Le,
            Kind::Op(">") => Comparison::Gt,
            Kind::Op(">=") => Comparison::Ge,
            Kind::Name(name) if name == "in" => Comparison::In,
            Kind::Name(name) if name == "not" && matches!(self.look(), Kind::Name(next) if next == "in") => {
                self.next();
                Comparison::NotIn
            }
            _ => return None,
        };
        self.next();
        Some(found)
    }

    fn compare(&mut self) -> Outcome<Expr> {
        let line = self.line();
        let left = self.sum()?;
        let mut rest = Vec::new();
        while let Some(comparison) = self.comparison() {
            rest.push((comparison, self.sum()?));
        }
        if rest.is_empty() {
            return Ok(left);
        }
        Ok(Expr { line, kind: ExprKind::Compare(Box::new(left), rest) })
    }

    fn sum(&mut self) -> Outcome<Expr> {
        self.row(Self::concat, |parser| {
            if parser.skip_op("+") {
                Some(|left, right| ExprKind::Binary(Binary::Add, left, right))
            } else if parser.skip_op("-") {
                Some(|left, right| ExprKind::Binary(Binary::Sub, left, right))
            } else {
                None
            }
        })
    }

    fn concat(&mut self) -> Outcome<Expr> {
        let line = self.line();
        let mut parts = vec![self.product()?];
        while self.skip_op("~") {
            parts.push(self.product()?);
        }
        if parts.len() == 1
            && let Some(part) = parts.pop()
        {
            return Ok(part);
        }
        Ok(Expr { line, kind: ExprKind::Concat(parts) })
    }

    fn product(&mut self) -> Outcome<Expr> {
        self.row(Self::power, |parser| {
            if parser.skip_op("*") {
                Some(|left, right| ExprKind::Binary(Binary::Mul, left, right))
            } else if parser.skip_op("/") {
                Some(|left, right| ExprKind::Binary(Binary::Div, left, right))
            } else if parser.skip_op("//") {
                Some(|left, right| ExprKind::Binary(Binary::FloorDiv, left, right))
            } else if parser.skip_op("%") {
                Some(|left, right| ExprKind::Binary(Binary::Mod, left, right))
            } else {
                None
            }
        })
    }

    fn power(&mut self) -> Outcome<Expr> {
        self.row(
            |parser| parser.unary(true),
            |parser| parser.skip_op("**").then_some(|left, right| ExprKind::Binary(Binary::Pow, left, right)),
        )
    }

    fn unary(&mut self, with_filters: bool) -> Outcome<Expr> {
        let line = self.line();
        let expr = if self.skip_op("-") {
            let inner = self.nested(|parser| parser.unary(false))?;
            Expr { line, kind: ExprKind::Negative(Box::new(inner)) }
        } else if self.skip_op("+") {
            let inner = self.nested(|parser| parser.unary(false))?;
            Expr { line, kind: ExprKind::Positive(Box::new(inner)) }
        } else {
            self.primary()?
        };
        self.behind(expr, with_filters)
    }

    /// What stands behind an expression: attributes, items, calls, and then filters and tests.
    fn behind(&mut self, mut expr: Expr, with_filters: bool) -> Outcome<Expr> {
        let depth = self.depth;
        let mut filtered = false;
        loop {
            self.deeper()?;
            let line = self.line();
            let inner = expr;
            if !filtered && self.skip_op(".") {
                expr = self.attribute(inner, line)?;
            } else if !filtered && self.skip_op("[") {
                expr = self.subscript(inner, line)?;
            } else if self.is_op("(") {
                let args = self.args()?;
                expr = Expr { line, kind: ExprKind::Call(Box::new(inner), args) };
            } else if with_filters && self.skip_op("|") {
                filtered = true;
                let name = self.dotted_name()?;
                let args = if self.is_op("(") { self.args()? } else { Args::default() };
                expr = Expr { line, kind: ExprKind::Filter(Box::new(inner), name, args) };
            } else if with_filters && self.skip_name("is") {
                filtered = true;
                expr = self.test(inner, line)?;
            } else {
                self.depth = depth;
                return Ok(inner);
            }
        }
    }

    fn attribute(&mut self, inner: Expr, line: usize) -> Outcome<Expr> {
        let kind = match self.next().kind {
            Kind::Name(name) => ExprKind::Attr(Box::new(inner), name.into()),
            Kind::Int(index) => ExprKind::Item(Box::new(inner), Box::new(Expr { line, kind: ExprKind::Int(index) })),
            _ => return self.fail("expected name or number"),
        };
        Ok(Expr { line, kind })
    }

    fn subscript(&mut self, inner: Expr, line: usize) -> Outcome<Expr> {
        let inner = Box::new(inner);
        let mut slice = [None, None, None];
        let mut colons = 0;
        let mut items = Vec::new();
        while !self.is_op("]") {
            if self.skip_op(":") {
                colons += 1;
                if colons > 2 {
                    return self.fail("expected ]");
                }
            } else if self.skip_op(",") {
                items.extend(slice[0].take());
                if colons > 0 {
                    return self.fail("slices in several dimensions are not supported");
                }
            } else if slice[colons].is_some() {
                return self.fail("expected ]");
            } else {
                slice[colons] = Some(self.expression()?);
            }
        }
        self.expect_op("]")?;
        if colons > 0 {
            return Ok(Expr { line, kind: ExprKind::Slice(inner, Box::new(slice)) });
        }
        let index = match (slice[0].take(), items.is_empty()) {
            (Some(index), true) => index,
            (last, _) => {
                items.extend(last);
                Expr { line, kind: ExprKind::Tuple(items) }
            }
        };
        Ok(Expr { line, kind: ExprKind::Item(inner, Box::new(index)) })
    }

    fn test(&mut self, inner: Expr, line: usize) -> Outcome<Expr> {
        let negated = self.skip_name("not");
        let name = self.dotted_name()?;
        let starts_argument = match self.kind() {
            Kind::Name(name) => !matches!(name.as_str(), "else" | "or" | "and"),
            Kind::Str(_) | Kind::Int(_) | Kind::Float(_) | Kind::Op("[" | "{") => true,
            _ => false,
        };
        let mut args = Args::default();
        if self.is_op("(") {
            args = self.args()?;
        } else if starts_argument {
            if self.is_name("is") {
                return self.fail("You cannot chain multiple tests with is");
            }
            // Names like `in` and `if` are names here, too, as in Jinja2.
            let primary = self.primary()?;
            args.positional.push(self.behind(primary, false)?);
        }
        let test = Expr { line, kind: ExprKind::Test(Box::new(inner), name, args) };
        Ok(if negated { Expr { line, kind: ExprKind::Not(Box::new(test)) } } else { test })
    }

    fn args(&mut self) -> Outcome<Args> {
        self.expect_op("(")?;
        let mut args = Args::default();
        let mut first = true;
        while !self.is_op(")") {
            if !first {
                self.expect_op(",")?;
                if self.is_op(")") {
                    break;
                }
            }
            first = false;
            if self.skip_op("*") {
                args.list = Some(Box::new(self.expression()?));
            } else if self.skip_op("**") {
                args.dict = Some(Box::new(self.expression()?));
            } else if matches!((self.kind(), self.look()), (Kind::Name(_), Kind::Op("="))) {
                let name = self.expect_name()?;
                self.next();
                args.named.push((name, self.expression()?));
            } else if args.named.is_empty() && args.list.is_none() && args.dict.is_none() {
                args.positional.push(self.expression()?);
            } else {
                return self.fail("invalid syntax for function call expression");
            }
        }
        self.expect_op(")")?;
        Ok(args)
    }

    fn primary(&mut self) -> Outcome<Expr> {
        let line = self.line();
        let kind = match self.kind().clone() {
            Kind::Name(name) => {
                self.next();
                match name.as_str() {
                    "true" | "True" => ExprKind::Bool(true),
                    "false" | "False" => ExprKind::Bool(false),
                    "none" | "None" => ExprKind::None,
                    _ => ExprKind::Name(name.into()),
                }
            }
            Kind::Str(mut text) => {
                self.next();
                while let Kind::Str(more) = self.kind() {
                    text.push_str(more);
                    self.next();
                }
                ExprKind::Str(text.into())
            }
            Kind::Int(number) => {
                self.next();
                ExprKind::Int(number)
            }
            Kind::Float(number) => {
                self.next();
                ExprKind::Float(number)
            }
            Kind::Op("(") => {
                self.next();
                if self.skip_op(")") {
                    return Ok(Expr { line, kind: ExprKind::Tuple(Vec::new()) });
                }
                let inner = self.tuple(true, &[])?;
                self.expect_op(")")?;
                return Ok(inner);
            }
            Kind::Op("[") => {
                self.next();
                ExprKind::List(self.items("]", Self::expression)?)
            }
            Kind::Op("{") => {
                self.next();
                ExprKind::Dict(self.items("}", |parser| {
                    let key = parser.expression()?;
                    parser.expect_op(":")?;
                    Ok((key, parser.expression()?))
                })?)
            }
            _ => return self.fail("unexpected token"),
        };
        Ok(Expr { line, kind })
    }

    fn items<T>(&mut self, end: &str, parse: fn(&mut Self) -> Outcome<T>) -> Outcome<Vec<T>> {
        let mut items = Vec::new();
        while !self.is_op(end) {
            if !items.is_empty() {
                self.expect_op(",")?;
                if self.is_op(end) {
                    break;
                }
            }
            items.push(parse(self)?);
        }
        self.expect_op(end)?;
        Ok(items)
    }
}
