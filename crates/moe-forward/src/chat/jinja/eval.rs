//! Evaluates expressions.

use std::rc::Rc;

use super::args::CallArgs;
use super::ast::{Args, CompareOp, Expr, ExprKind, Name};
use super::interpreter::Interpreter;
use super::scope::Scope;
use super::value::{Dict, Items, Value};
use super::{ENTRY_BYTES, Fail, Fallible, attributes, operators};

const NO_ELSE: &str = "an inline if-expression was false, and has no else";

impl Interpreter {
    pub fn args(&mut self, args: &Args, scope: &Rc<Scope>) -> Fallible<CallArgs> {
        let mut found = CallArgs::default();
        for arg in &args.positional {
            found.positional.push(self.expr(arg, scope)?);
        }
        for (name, arg) in &args.named {
            found.named.push((name.to_string(), self.expr(arg, scope)?));
        }
        if let Some(list) = &args.list {
            found.positional.extend(self.expr(list, scope)?.iterate()?);
        }
        if let Some(dict) = &args.dict {
            let Value::Dict(dict) = self.expr(dict, scope)? else {
                return Err(Fail::new("argument after ** must be a mapping"));
            };
            self.step(dict.entries().len() * ENTRY_BYTES)?;
            for (key, value) in dict.entries() {
                found.named.push((key.to_text()?, value.clone()));
            }
        }
        Ok(found)
    }

    fn list(&mut self, exprs: &[Expr], scope: &Rc<Scope>) -> Fallible<Vec<Value>> {
        exprs.iter().map(|expr| self.expr(expr, scope)).collect()
    }

    pub fn expr(&mut self, expr: &Expr, scope: &Rc<Scope>) -> Fallible<Value> {
        self.step(0)?;
        self.value_of(expr, scope).map_err(|e| e.at(expr.line))
    }

    fn value_of(&mut self, expr: &Expr, scope: &Rc<Scope>) -> Fallible<Value> {
        match &expr.kind {
            ExprKind::None => Ok(Value::None),
            ExprKind::Bool(value) => Ok(Value::Bool(*value)),
            ExprKind::Int(value) => Ok(Value::Int(*value)),
            ExprKind::Float(value) => Ok(Value::Float(*value)),
            ExprKind::Str(text) => self.step(text.len()).map(|()| Value::from(&**text)),
            ExprKind::Name(name) => Ok(variable(name, scope)),
            ExprKind::List(items) => Ok(self.list(items, scope)?.into()),
            ExprKind::Tuple(items) => Ok(Value::Tuple(Items::new(self.list(items, scope)?))),
            ExprKind::Dict(pairs) => self.dict(pairs, scope),
            ExprKind::Attr(object, name) => attributes::attribute(&self.expr(object, scope)?, name),
            ExprKind::Item(object, index) => self.item(object, index, scope),
            ExprKind::Slice(object, bounds) => self.slice(object, bounds, scope),
            ExprKind::Call(callee, args) => {
                let (callee, args) = self.with_args(callee, args, scope)?;
                self.call(&callee, args)
            }
            ExprKind::Filter(inner, name, args) => {
                let (value, args) = self.with_args(inner, args, scope)?;
                self.filter(name, value, args)
            }
            ExprKind::Test(inner, name, args) => {
                let (value, args) = self.with_args(inner, args, scope)?;
                self.test(name, &value, args).map(Value::Bool)
            }
            ExprKind::Not(inner) => Ok(Value::Bool(!self.expr(inner, scope)?.is_true())),
            ExprKind::Negative(inner) => operators::negative(&self.expr(inner, scope)?),
            ExprKind::Positive(inner) => operators::positive(&self.expr(inner, scope)?),
            ExprKind::And(left, right) => {
                let left = self.expr(left, scope)?;
                if left.is_true() { self.expr(right, scope) } else { Ok(left) }
            }
            ExprKind::Or(left, right) => {
                let left = self.expr(left, scope)?;
                if left.is_true() { Ok(left) } else { self.expr(right, scope) }
            }
            ExprKind::Binary(operator, left, right) => {
                let left = self.expr(left, scope)?;
                let right = self.expr(right, scope)?;
                self.binary(*operator, &left, &right)
            }
            ExprKind::Compare(left, rest) => self.compare(left, rest, scope).map(Value::Bool),
            ExprKind::Concat(parts) => self.concat(parts, scope),
            ExprKind::If { test, then, otherwise } => {
                let holds = self.expr(test, scope)?.is_true();
                match (holds, otherwise) {
                    (true, _) => self.expr(then, scope),
                    (false, Some(otherwise)) => self.expr(otherwise, scope),
                    (false, None) => Ok(Value::undefined(NO_ELSE)),
                }
            }
        }
    }

    fn dict(&mut self, pairs: &[(Expr, Expr)], scope: &Rc<Scope>) -> Fallible<Value> {
        let mut dict = Dict::default();
        for (key, value) in pairs {
            let key = self.expr(key, scope)?;
            if matches!(key, Value::List(_) | Value::Dict(_)) {
                return Err(Fail::new(format!("unhashable type: '{}'", key.type_name())));
            }
            dict.insert(key, self.expr(value, scope)?);
        }
        Ok(dict.into_value())
    }

    fn item(&mut self, object: &Expr, index: &Expr, scope: &Rc<Scope>) -> Fallible<Value> {
        let object = self.expr(object, scope)?;
        let index = self.expr(index, scope)?;
        // Counting a string's characters takes time.
        self.step(object.text().map_or(0, str::len))?;
        attributes::item(&object, &index)
    }

    fn slice(
        &mut self,
        object: &Expr,
        bounds: &[Option<Expr>; 3],
        scope: &Rc<Scope>,
    ) -> Fallible<Value> {
        let object = self.expr(object, scope)?;
        let mut found = [Value::None, Value::None, Value::None];
        for (bound, found) in bounds.iter().zip(&mut found) {
            if let Some(bound) = bound {
                *found = self.expr(bound, scope)?;
            }
        }
        let characters = object.text().map_or(0, str::len);
        self.step(characters)?;
        self.room(characters.saturating_mul(2 * size_of::<usize>()))?;
        let part = attributes::slice(&object, &found)?;
        self.step(part.length().unwrap_or(0) * size_of::<Value>())?;
        Ok(part)
    }

    /// Evaluates the subject of a call, filter or test, and then the arguments.
    fn with_args(
        &mut self,
        subject: &Expr,
        args: &Args,
        scope: &Rc<Scope>,
    ) -> Fallible<(Value, CallArgs)> {
        Ok((self.expr(subject, scope)?, self.args(args, scope)?))
    }

    fn compare(
        &mut self,
        left: &Expr,
        rest: &[(CompareOp, Expr)],
        scope: &Rc<Scope>,
    ) -> Fallible<bool> {
        let mut left = self.expr(left, scope)?;
        for (comparison, right) in rest {
            let right = self.expr(right, scope)?;
            self.step(right.text().map_or(0, str::len))?;
            if !operators::compare(*comparison, &left, &right)? {
                return Ok(false);
            }
            left = right;
        }
        Ok(true)
    }

    /// Evaluates `~`, which joins all parts as strings.
    fn concat(&mut self, parts: &[Expr], scope: &Rc<Scope>) -> Fallible<Value> {
        let parts = self.list(parts, scope)?;
        let mut texts = String::new();
        for part in &parts {
            match part.text() {
                Some(text) => self.append(text, &mut texts)?,
                None => self.append(&part.to_text()?, &mut texts)?,
            }
        }
        Ok(texts.into())
    }

    /// Appends `part` to `texts`, if there is room for it.
    pub fn append(&mut self, part: &str, texts: &mut String) -> Fallible<()> {
        self.step(part.len())?;
        self.room(texts.len() + part.len())?;
        texts.push_str(part);
        Ok(())
    }
}

fn variable(name: &Name, scope: &Scope) -> Value {
    scope.get(name).unwrap_or_else(|| Value::undefined(format!("'{name}' is undefined")))
}
