//! Parses expressions by the grammar of Jinja2 3.1, with its precedences and quirks, from the
//! loosest operators to the tightest.

use super::Fallible;
use super::ast::{Args, Binary, CompareOp, Expr, ExprKind, Name};
use super::lexer::TokenKind;
use super::parser::Parser;

/// Makes an expression of two operands.
type Joined = fn(Box<Expr>, Box<Expr>) -> ExprKind;

impl Parser {
    pub fn tuple(&mut self, with_if: bool, ends: &[&str]) -> Fallible<Expr> {
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
        matches!(self.kind(), TokenKind::PrintEnd | TokenKind::BlockEnd)
            || self.is_op(")")
            || ends.iter().any(|end| self.is_name(end))
    }

    pub fn expression(&mut self) -> Fallible<Expr> {
        self.nested(|parser| {
            let line = parser.line();
            let mut expr = parser.or()?;
            let depth = parser.depth;
            while parser.skip_name("if") {
                parser.deeper()?;
                let test = Box::new(parser.or()?);
                let otherwise = if parser.skip_name("else") {
                    Some(Box::new(parser.expression()?))
                } else {
                    None
                };
                expr = Expr { line, kind: ExprKind::If { test, then: Box::new(expr), otherwise } };
            }
            parser.depth = depth;
            Ok(expr)
        })
    }

    /// Parses left-associative operators of one level. A long row of them counts as deep as nested
    /// parentheses.
    fn row(
        &mut self,
        operand: fn(&mut Self) -> Fallible<Expr>,
        operator: fn(&mut Self) -> Option<Joined>,
    ) -> Fallible<Expr> {
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

    pub fn or(&mut self) -> Fallible<Expr> {
        self.row(Self::and, |parser| parser.skip_name("or").then_some(ExprKind::Or as _))
    }

    fn and(&mut self) -> Fallible<Expr> {
        self.row(Self::not, |parser| parser.skip_name("and").then_some(ExprKind::And as _))
    }

    fn not(&mut self) -> Fallible<Expr> {
        let line = self.line();
        if self.skip_name("not") {
            let inner = self.nested(Self::not)?;
            return Ok(Expr { line, kind: ExprKind::Not(Box::new(inner)) });
        }
        self.compare()
    }

    fn comparison(&mut self) -> Option<CompareOp> {
        let found = match self.kind() {
            TokenKind::Op("==") => CompareOp::Eq,
            TokenKind::Op("!=") => CompareOp::Ne,
            TokenKind::Op("<") => CompareOp::Lt,
            TokenKind::Op("<=") => CompareOp::Le,
            TokenKind::Op(">") => CompareOp::Gt,
            TokenKind::Op(">=") => CompareOp::Ge,
            TokenKind::Name(name) if name == "in" => CompareOp::In,
            TokenKind::Name(name)
                if name == "not"
                    && matches!(self.look(), TokenKind::Name(next) if next == "in") =>
            {
                self.next();
                CompareOp::NotIn
            }
            _ => return None,
        };
        self.next();
        Some(found)
    }

    fn compare(&mut self) -> Fallible<Expr> {
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

    fn sum(&mut self) -> Fallible<Expr> {
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

    fn concat(&mut self) -> Fallible<Expr> {
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

    fn product(&mut self) -> Fallible<Expr> {
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

    fn power(&mut self) -> Fallible<Expr> {
        self.row(
            |parser| parser.unary(true),
            |parser| {
                parser
                    .skip_op("**")
                    .then_some(|left, right| ExprKind::Binary(Binary::Pow, left, right))
            },
        )
    }

    fn unary(&mut self, with_filters: bool) -> Fallible<Expr> {
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
        self.postfix(expr, with_filters)
    }

    /// Parses the postfix part of an expression: attributes, items, calls, and then filters and
    /// tests.
    fn postfix(&mut self, mut expr: Expr, with_filters: bool) -> Fallible<Expr> {
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
                let (name, args) = self.named_filter()?;
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

    /// Parses a filter's name and its arguments.
    pub fn named_filter(&mut self) -> Fallible<(Name, Args)> {
        let name = self.dotted_name()?;
        let args = if self.is_op("(") { self.args()? } else { Args::default() };
        Ok((name, args))
    }

    fn attribute(&mut self, inner: Expr, line: usize) -> Fallible<Expr> {
        let kind = match self.next().kind {
            TokenKind::Name(name) => ExprKind::Attr(Box::new(inner), name.into()),
            TokenKind::Int(index) => {
                ExprKind::Item(Box::new(inner), Box::new(Expr { line, kind: ExprKind::Int(index) }))
            }
            _ => return self.fail("expected name or number"),
        };
        Ok(Expr { line, kind })
    }

    fn subscript(&mut self, inner: Expr, line: usize) -> Fallible<Expr> {
        let mut bounds = [None, None, None];
        let mut colons = 0;
        let mut items = Vec::new();
        while !self.is_op("]") {
            if self.skip_op(":") {
                colons += 1;
                if colons > 2 {
                    return self.fail("expected ]");
                }
            } else if self.skip_op(",") {
                items.extend(bounds[0].take());
                if colons > 0 {
                    return self.fail("slices in several dimensions are not supported");
                }
            } else if bounds[colons].is_some() {
                return self.fail("expected ]");
            } else {
                bounds[colons] = Some(self.expression()?);
            }
        }
        self.expect_op("]")?;
        let kind = if colons > 0 {
            ExprKind::Slice(Box::new(inner), Box::new(bounds))
        } else {
            let [last, ..] = bounds;
            ExprKind::Item(Box::new(inner), Box::new(index(items, last, line)))
        };
        Ok(Expr { line, kind })
    }

    fn test(&mut self, inner: Expr, line: usize) -> Fallible<Expr> {
        let negated = self.skip_name("not");
        let name = self.dotted_name()?;
        let starts_argument = match self.kind() {
            TokenKind::Name(name) => !matches!(name.as_str(), "else" | "or" | "and"),
            TokenKind::Str(_)
            | TokenKind::Int(_)
            | TokenKind::Float(_)
            | TokenKind::Op("[" | "{") => true,
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
            args.positional.push(self.postfix(primary, false)?);
        }
        let test = Expr { line, kind: ExprKind::Test(Box::new(inner), name, args) };
        Ok(if negated { Expr { line, kind: ExprKind::Not(Box::new(test)) } } else { test })
    }

    pub fn args(&mut self) -> Fallible<Args> {
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
            self.arg(&mut args)?;
        }
        self.expect_op(")")?;
        Ok(args)
    }

    fn arg(&mut self, args: &mut Args) -> Fallible<()> {
        if self.skip_op("*") {
            args.list = Some(Box::new(self.expression()?));
        } else if self.skip_op("**") {
            args.dict = Some(Box::new(self.expression()?));
        } else if matches!((self.kind(), self.look()), (TokenKind::Name(_), TokenKind::Op("="))) {
            let name = self.expect_name()?;
            self.next();
            args.named.push((name, self.expression()?));
        } else if args.named.is_empty() && args.list.is_none() && args.dict.is_none() {
            args.positional.push(self.expression()?);
        } else {
            return self.fail("invalid syntax for function call expression");
        }
        Ok(())
    }

    fn primary(&mut self) -> Fallible<Expr> {
        let line = self.line();
        let kind = match self.kind().clone() {
            TokenKind::Op("(") => return self.parenthesized(line),
            TokenKind::Op("[") => {
                self.next();
                ExprKind::List(self.items("]", Self::expression)?)
            }
            TokenKind::Op("{") => {
                self.next();
                ExprKind::Dict(self.items("}", Self::pair)?)
            }
            TokenKind::Str(_) => self.strings(),
            TokenKind::Name(name) => {
                self.next();
                constant_or_name(&name)
            }
            TokenKind::Int(number) => {
                self.next();
                ExprKind::Int(number)
            }
            TokenKind::Float(number) => {
                self.next();
                ExprKind::Float(number)
            }
            _ => return self.fail("unexpected token"),
        };
        Ok(Expr { line, kind })
    }

    fn parenthesized(&mut self, line: usize) -> Fallible<Expr> {
        self.next();
        if self.skip_op(")") {
            return Ok(Expr { line, kind: ExprKind::Tuple(Vec::new()) });
        }
        let inner = self.tuple(true, &[])?;
        self.expect_op(")")?;
        Ok(inner)
    }

    /// Parses adjacent string literals, which form one string.
    fn strings(&mut self) -> ExprKind {
        let mut text = String::new();
        while let TokenKind::Str(more) = self.kind() {
            text.push_str(more);
            self.next();
        }
        ExprKind::Str(text.into())
    }

    /// Parses a key of a dictionary and its value.
    fn pair(&mut self) -> Fallible<(Expr, Expr)> {
        let key = self.expression()?;
        self.expect_op(":")?;
        Ok((key, self.expression()?))
    }

    fn items<T>(&mut self, end: &str, parse: fn(&mut Self) -> Fallible<T>) -> Fallible<Vec<T>> {
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

fn constant_or_name(name: &str) -> ExprKind {
    match name {
        "true" | "True" => ExprKind::Bool(true),
        "false" | "False" => ExprKind::Bool(false),
        "none" | "None" => ExprKind::None,
        _ => ExprKind::Name(name.into()),
    }
}

/// Returns the index in brackets without colons: one expression, or a tuple of several.
fn index(mut items: Vec<Expr>, last: Option<Expr>, line: usize) -> Expr {
    match last {
        Some(index) if items.is_empty() => index,
        last => {
            items.extend(last);
            Expr { line, kind: ExprKind::Tuple(items) }
        }
    }
}
