//! Expressions.

use std::rc::Rc;

use super::ast::{Args, Comparison, Expr, ExprKind};
use super::calls::CallArgs;
use super::interpreter::Interpreter;
use super::scope::Scope;
use super::value::{Dict, Value};
use super::{ENTRY_BYTES, Fail, Outcome, attributes, operators};

impl Interpreter {
    pub fn args(&mut self, args: &Args, scope: &Rc<Scope>) -> Outcome<CallArgs> {
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

    fn list(&mut self, exprs: &[Expr], scope: &Rc<Scope>) -> Outcome<Vec<Value>> {
        exprs.iter().map(|expr| self.expr(expr, scope)).collect()
    }

    pub fn expr(&mut self, expr: &Expr, scope: &Rc<Scope>) -> Outcome<Value> {
        self.step(0)?;
        self.value_of(expr, scope).map_err(|e| e.at(expr.line))
    }

    fn value_of(&mut self, expr: &Expr, scope: &Rc<Scope>) -> Outcome<Value> {
        Ok(match &expr.kind {
            ExprKind::None => Value::None,
            ExprKind::Bool(value) => Value::Bool(*value),
            ExprKind::Int(value) => Value::Int(*value),
            ExprKind::Float(value) => Value::Float(*value),
            ExprKind::Str(text) => {
                self.step(text.len())?;
                Value::from(&**text)
            }
            ExprKind::Name(name) => scope
                .get(name)
                .unwrap_or_else(|| Value::undefined(format!("'{name}' is undefined"))),
            ExprKind::List(items) => self.list(items, scope)?.into(),
            ExprKind::Tuple(items) => {
                Value::Tuple(super::value::Items::new(self.list(items, scope)?))
            }
            ExprKind::Dict(pairs) => {
                let mut dict = Dict::default();
                for (key, value) in pairs {
                    let key = self.expr(key, scope)?;
                    if matches!(key, Value::List(_) | Value::Dict(_)) {
                        return Err(Fail::new(format!("unhashable type: '{}'", key.type_name())));
                    }
                    dict.insert(key, self.expr(value, scope)?);
                }
                dict.into_value()
            }
            ExprKind::Attr(object, name) => {
                let object = self.expr(object, scope)?;
                attributes::attribute(&object, name)?
            }
            ExprKind::Item(object, index) => {
                let object = self.expr(object, scope)?;
                let index = self.expr(index, scope)?;
                // Characters are counted.
                self.step(object.text().map_or(0, str::len))?;
                attributes::item(&object, &index)?
            }
            ExprKind::Slice(object, bounds) => {
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
                part
            }
            ExprKind::Call(callee, args) => {
                let callee = self.expr(callee, scope)?;
                let args = self.args(args, scope)?;
                self.call(&callee, args)?
            }
            ExprKind::Filter(inner, name, args) => {
                let value = self.expr(inner, scope)?;
                let args = self.args(args, scope)?;
                self.filter(name, value, args)?
            }
            ExprKind::Test(inner, name, args) => {
                let value = self.expr(inner, scope)?;
                let args = self.args(args, scope)?;
                Value::Bool(self.test(name, &value, args)?)
            }
            ExprKind::Not(inner) => Value::Bool(!self.expr(inner, scope)?.is_true()),
            ExprKind::Negative(inner) => operators::negative(&self.expr(inner, scope)?)?,
            ExprKind::Positive(inner) => operators::positive(&self.expr(inner, scope)?)?,
            ExprKind::And(left, right) => {
                let left = self.expr(left, scope)?;
                if left.is_true() { self.expr(right, scope)? } else { left }
            }
            ExprKind::Or(left, right) => {
                let left = self.expr(left, scope)?;
                if left.is_true() { left } else { self.expr(right, scope)? }
            }
            ExprKind::Binary(operator, left, right) => {
                let left = self.expr(left, scope)?;
                let right = self.expr(right, scope)?;
                self.binary(*operator, &left, &right)?
            }
            ExprKind::Compare(left, rest) => Value::Bool(self.compare(left, rest, scope)?),
            ExprKind::Concat(parts) => {
                let parts = self.list(parts, scope)?;
                self.concat(&parts)?
            }
            ExprKind::If { test, then, otherwise } => {
                if self.expr(test, scope)?.is_true() {
                    self.expr(then, scope)?
                } else if let Some(otherwise) = otherwise {
                    self.expr(otherwise, scope)?
                } else {
                    Value::undefined("an inline if-expression was false, and has no else")
                }
            }
        })
    }

    fn compare(
        &mut self,
        left: &Expr,
        rest: &[(Comparison, Expr)],
        scope: &Rc<Scope>,
    ) -> Outcome<bool> {
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

    /// What `~` gives: all parts as texts.
    fn concat(&mut self, parts: &[Value]) -> Outcome<Value> {
        let mut texts = String::new();
        for part in parts {
            match part.text() {
                Some(text) => self.append(text, &mut texts)?,
                None => self.append(&part.to_text()?, &mut texts)?,
            }
        }
        Ok(texts.into())
    }

    fn append(&mut self, part: &str, texts: &mut String) -> Outcome<()> {
        self.step(part.len())?;
        self.room(texts.len() + part.len())?;
        texts.push_str(part);
        Ok(())
    }
}
