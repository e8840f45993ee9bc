//! Running a template: statements, scopes and expressions.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value as Json;

use super::ast::{Args, Comparison, Expr, ExprKind, For, Name, Stmt, StmtKind, Target};
use super::calls::CallArgs;
use super::held::{excess, held};
use super::value::{Dict, Function, Value};
use super::{ENTRY_BYTES, Fail, MAX_BYTES, MAX_SECONDS, MAX_STEPS, Outcome, STACK_BYTES, json, operators};

/// Variables of a template, a loop's turn or a macro's call; what isn't here is looked for outside.
pub(super) struct Scope {
    /// A handful, which a list finds sooner than a table.
    vars: RefCell<Vec<(Name, Value)>>,
    parent: Option<Rc<Scope>>,
}

impl Scope {
    pub fn within(parent: &Rc<Self>) -> Rc<Self> {
        Rc::new(Self { vars: RefCell::default(), parent: Some(Rc::clone(parent)) })
    }

    pub fn set(&self, name: &Name, value: Value) {
        let mut vars = self.vars.borrow_mut();
        match vars.iter_mut().find(|(known, _)| known == name) {
            Some((_, known)) => *known = value,
            None => vars.push((Arc::clone(name), value)),
        }
    }

    fn get(&self, name: &str) -> Option<Value> {
        let mut scope = Some(self);
        while let Some(here) = scope {
            if let Some((_, value)) = here.vars.borrow().iter().find(|(known, _)| **known == *name) {
                return Some(value.clone());
            }
            scope = here.parent.as_deref();
        }
        None
    }

    fn root(self: &Rc<Self>) -> Rc<Self> {
        let mut scope = self;
        while let Some(parent) = &scope.parent {
            scope = parent;
        }
        Rc::clone(scope)
    }
}

/// What `loop` is.
pub(super) struct LoopState {
    items: Vec<Value>,
    at: Cell<usize>,
    depth0: usize,
    pub changed: RefCell<Option<Vec<Value>>>,
    /// The loop and where it stands, if it can be called.
    recursive: Option<(Arc<For>, Rc<Scope>)>,
}

impl LoopState {
    pub fn length(&self) -> usize {
        self.items.len()
    }

    pub fn index(&self) -> usize {
        self.at.get() + 1
    }

    pub fn attribute(&self, name: &str) -> Option<Value> {
        let int = |value: usize| Value::Int(value as i128);
        let at = self.at.get();
        let item = |index: Option<usize>, which: &str| {
            let found = index.and_then(|index| self.items.get(index)).cloned();
            found.unwrap_or_else(|| Value::undefined(format!("there is no {which} item")))
        };
        Some(match name {
            "index" => int(at + 1),
            "index0" => int(at),
            "revindex" => int(self.length() - at),
            "revindex0" => int(self.length() - at - 1),
            "first" => Value::Bool(at == 0),
            "last" => Value::Bool(at + 1 == self.length()),
            "length" => int(self.length()),
            "depth" => int(self.depth0 + 1),
            "depth0" => int(self.depth0),
            "previtem" => item(at.checked_sub(1), "previous"),
            "nextitem" => item(Some(at + 1), "next"),
            _ => return None,
        })
    }
}

/// Whether a loop goes on after a statement.
#[derive(PartialEq, Eq)]
enum Flow {
    On,
    Break,
    Continue,
}

pub(super) struct Interpreter {
    steps: u64,
    since: Instant,
    /// An address at the start of the stack.
    base: usize,
    /// Scopes that macros hold, which hold the macros.
    captured: Vec<Rc<Scope>>,
}

/// The text that `body` makes of `variables`.
pub(super) fn render(body: &[Stmt], variables: &[(&str, Json)]) -> Outcome<String> {
    let marker = 0u8;
    let mut interpreter =
        Interpreter { steps: 0, since: Instant::now(), base: (&raw const marker).addr(), captured: Vec::new() };
    let globals = Rc::new(Scope { vars: RefCell::default(), parent: None });
    let functions = [
        ("range", Function::Range),
        ("dict", Function::Dict),
        ("namespace", Function::Namespace),
        ("cycler", Function::Cycler),
        ("joiner", Function::Joiner),
        ("lipsum", Function::Lipsum),
        ("raise_exception", Function::RaiseException),
        ("strftime_now", Function::StrftimeNow),
    ];
    for (name, function) in functions {
        globals.set(&name.into(), Value::Function(function));
    }
    for (name, value) in variables {
        globals.set(&(*name).into(), json::value(value)?);
    }
    let mut out = String::new();
    let result = interpreter.body(body, &globals, &mut out);
    for scope in interpreter.captured.drain(..) {
        scope.vars.borrow_mut().clear();
    }
    result.map(|_| out)
}

impl Interpreter {
    /// Counts a step, and what it costs beside to handle `bytes` bytes.
    pub fn step(&mut self, bytes: usize) -> Outcome<()> {
        let before = self.steps;
        self.steps += 1 + bytes as u64 / 256;
        if self.steps > MAX_STEPS {
            let what = "the template runs out of fuel: more than 10,000,000 steps for a conversation";
            return Err(Fail::new(what));
        }
        // Asked for at every 256th step, or what takes as long.
        if (self.steps ^ before) >> 8 != 0 && self.since.elapsed() > Duration::from_secs(MAX_SECONDS) {
            return Err(Fail::new(format!("the template runs for more than {MAX_SECONDS} s for a conversation")));
        }
        if let Some(what) = excess() {
            return Err(Fail::new(format!("the template {what}")));
        }
        let marker = 0u8;
        // A quarter is left for what runs between two steps.
        if self.base.abs_diff((&raw const marker).addr()) > STACK_BYTES / 4 * 3 {
            return Err(Fail::new("the template calls itself too often"));
        }
        self.room(0)
    }

    /// Refuses what would hold `bytes` more than a template may.
    pub fn room(&self, bytes: usize) -> Outcome<()> {
        if held().saturating_add(bytes) > MAX_BYTES {
            return Err(Fail::new(format!("the template takes more than {} MiB for a conversation", MAX_BYTES >> 20)));
        }
        Ok(())
    }

    fn body(&mut self, body: &[Stmt], scope: &Rc<Scope>, out: &mut String) -> Outcome<Flow> {
        for stmt in body {
            let flow = self.statement(stmt, scope, out).map_err(|e| e.at(stmt.line))?;
            if flow != Flow::On {
                return Ok(flow);
            }
        }
        Ok(Flow::On)
    }

    /// The text of `body`, in a scope of its own.
    pub fn captured(&mut self, body: &[Stmt], scope: &Rc<Scope>) -> Outcome<String> {
        let mut text = String::new();
        self.body(body, scope, &mut text)?;
        Ok(text)
    }

    fn push(&mut self, text: &str, out: &mut String) -> Outcome<()> {
        self.step(text.len())?;
        self.room(out.len() + text.len())?;
        out.push_str(text);
        Ok(())
    }

    fn statement(&mut self, stmt: &Stmt, scope: &Rc<Scope>, out: &mut String) -> Outcome<Flow> {
        self.step(0)?;
        match &stmt.kind {
            StmtKind::Text(text) => self.push(text, out)?,
            StmtKind::Print(exprs) => {
                for expr in exprs {
                    let value = self.expr(expr, scope)?;
                    match value.text() {
                        Some(text) => self.push(text, out)?,
                        None => self.push(&value.to_text()?, out)?,
                    }
                }
            }
            StmtKind::For(for_) => {
                let items = self.expr(&for_.iter, scope)?;
                return self.for_(for_, &items, scope, 0, out);
            }
            StmtKind::If { arms, otherwise } => {
                for (test, body) in arms {
                    if self.expr(test, scope)?.is_true() {
                        return self.body(body, scope, out);
                    }
                }
                return self.body(otherwise, scope, out);
            }
            StmtKind::Set(target, expr) => {
                let value = self.expr(expr, scope)?;
                self.assign(target, value, scope, scope)?;
            }
            StmtKind::SetBlock { target, filters, body } => {
                let text = self.captured(body, &Scope::within(scope))?;
                let value = self.filtered(text.into(), filters, scope)?;
                self.assign(target, value, scope, scope)?;
            }
            StmtKind::Macro(macro_) => {
                self.captured.push(Rc::clone(scope));
                scope.set(&macro_.name, Value::Macro(Rc::new((Arc::clone(macro_), Rc::clone(scope)))));
            }
            StmtKind::Call { macro_, call } => {
                let ExprKind::Call(callee, args) = &call.kind else { return Ok(Flow::On) };
                let callee = self.expr(callee, scope)?;
                let mut args = self.args(args, scope)?;
                let caller = Value::Macro(Rc::new((Arc::clone(macro_), Rc::clone(scope))));
                args.named.push(("caller".into(), caller));
                let text = self.call(&callee, args)?.to_text()?;
                self.push(&text, out)?;
            }
            StmtKind::Filter { filters, body } => {
                let text = self.captured(body, &Scope::within(scope))?;
                let text = self.filtered(text.into(), filters, scope)?.to_text()?;
                self.push(&text, out)?;
            }
            StmtKind::With { values, body } => {
                let inner = Scope::within(scope);
                for (target, expr) in values {
                    let value = self.expr(expr, scope)?;
                    self.assign(target, value, &inner, scope)?;
                }
                return self.body(body, &inner, out);
            }
            StmtKind::Scope(body) => return self.body(body, &Scope::within(scope), out),
            StmtKind::Block(body) => return self.body(body, &Scope::within(&scope.root()), out),
            StmtKind::Break => return Ok(Flow::Break),
            StmtKind::Continue => return Ok(Flow::Continue),
        }
        Ok(Flow::On)
    }

    fn filtered(&mut self, mut value: Value, filters: &[(Name, Args)], scope: &Rc<Scope>) -> Outcome<Value> {
        for (name, args) in filters {
            let args = self.args(args, scope)?;
            value = self.filter(name, value, args)?;
        }
        Ok(value)
    }

    fn for_(
        &mut self,
        for_: &Arc<For>,
        items: &Value,
        scope: &Rc<Scope>,
        depth0: usize,
        out: &mut String,
    ) -> Outcome<Flow> {
        let mut items = items.iterate()?;
        self.step(items.len() * 16)?;
        if let Some(filter) = &for_.filter {
            let mut kept = Vec::new();
            for item in items {
                self.step(1024)?;
                let inner = Scope::within(scope);
                self.assign(&for_.target, item.clone(), &inner, scope)?;
                if self.expr(filter, &inner)?.is_true() {
                    kept.push(item);
                }
            }
            items = kept;
        }
        if items.is_empty() {
            return self.body(&for_.otherwise, &Scope::within(scope), out);
        }
        let recursive = for_.recursive.then(|| (Arc::clone(for_), Rc::clone(scope)));
        let state = LoopState { items, at: Cell::new(0), depth0, changed: RefCell::default(), recursive };
        let state = Rc::new(state);
        let name: Name = "loop".into();
        for (index, item) in state.items.iter().enumerate() {
            // A turn has a scope to make, which takes as long as a few steps.
            self.step(1024)?;
            state.at.set(index);
            let inner = Scope::within(scope);
            inner.set(&name, Value::Loop(Rc::clone(&state)));
            self.assign(&for_.target, item.clone(), &inner, scope)?;
            if self.body(&for_.body, &inner, out)? == Flow::Break {
                break;
            }
        }
        Ok(Flow::On)
    }

    /// What `loop(items)` gives.
    pub fn call_loop(&mut self, state: &LoopState, items: &Value) -> Outcome<Value> {
        let Some((for_, scope)) = &state.recursive else {
            return Err(Fail::new("The loop must have the 'recursive' marker to be called recursively."));
        };
        let mut text = String::new();
        self.for_(for_, items, scope, state.depth0 + 1, &mut text)?;
        Ok(text.into())
    }

    fn assign(&mut self, target: &Target, value: Value, scope: &Rc<Scope>, outer: &Rc<Scope>) -> Outcome<()> {
        match target {
            Target::Name(name) => scope.set(name, value),
            Target::Attr(name, attribute) => {
                let Some(Value::Namespace(namespace)) = outer.get(name) else {
                    return Err(Fail::new("cannot assign attribute on non-namespace object"));
                };
                if attribute.starts_with('_') {
                    return Err(Fail::new(format!("a namespace can't have the attribute {attribute:?}")));
                }
                namespace.set((&**attribute).into(), value);
            }
            Target::Tuple(targets) => {
                let values = value.iterate()?;
                if values.len() != targets.len() {
                    let what = format!("{} values to unpack, {} names for them", values.len(), targets.len());
                    return Err(Fail::new(what));
                }
                for (target, value) in targets.iter().zip(values) {
                    self.assign(target, value, scope, outer)?;
                }
            }
        }
        Ok(())
    }

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
            ExprKind::Name(name) => {
                let found = scope.get(name);
                if found.is_none() && &**name == "self" {
                    return Err(Fail::new("blocks by their names (self.name()) are not supported"));
                }
                found.unwrap_or_else(|| Value::undefined(format!("'{name}' is undefined")))
            }
            ExprKind::List(items) => self.list(items, scope)?.into(),
            ExprKind::Tuple(items) => Value::Tuple(super::value::Items::new(self.list(items, scope)?)),
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
                operators::attribute(&object, name)?
            }
            ExprKind::Item(object, index) => {
                let object = self.expr(object, scope)?;
                let index = self.expr(index, scope)?;
                operators::item(&object, &index)?
            }
            ExprKind::Slice(object, bounds) => {
                let object = self.expr(object, scope)?;
                let mut found = [Value::None, Value::None, Value::None];
                for (bound, found) in bounds.iter().zip(&mut found) {
                    if let Some(bound) = bound {
                        *found = self.expr(bound, scope)?;
                    }
                }
                let part = operators::slice(&object, &found)?;
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

    fn compare(&mut self, left: &Expr, rest: &[(Comparison, Expr)], scope: &Rc<Scope>) -> Outcome<bool> {
        let mut left = self.expr(left, scope)?;
        for (comparison, right) in rest {
            let right = self.expr(right, scope)?;
            if !operators::compare(*comparison, &left, &right)? {
                return Ok(false);
            }
            left = right;
        }
        Ok(true)
    }

    /// What `~` gives: all parts as texts.
    fn concat(&mut self, parts: &[Value]) -> Outcome<Value> {
        let texts = parts.iter().map(Value::to_text).collect::<Outcome<Vec<String>>>()?;
        let bytes = texts.iter().map(String::len).sum();
        self.step(bytes)?;
        self.room(2 * bytes)?;
        Ok(texts.concat().into())
    }
}
