//! Runs statements: text, and tags between `{%` and `%}`.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use super::ast::{Args, AssignmentTarget, Body, Expr, ExprKind, For, Macro, Name, Stmt, StmtKind};
use super::interpreter::Interpreter;
use super::scope::{LoopState, Scope};
use super::value::Value;
use super::{Fail, Fallible};

/// Whether a loop continues after a statement.
#[derive(PartialEq, Eq)]
pub(super) enum Flow {
    On,
    Break,
    Continue,
}

impl Interpreter {
    pub fn body(&mut self, body: &[Stmt], scope: &Rc<Scope>, out: &mut String) -> Fallible<Flow> {
        for stmt in body {
            let flow = self.statement(stmt, scope, out).map_err(|e| e.at(stmt.line))?;
            if flow != Flow::On {
                return Ok(flow);
            }
        }
        Ok(Flow::On)
    }

    /// Runs `body` in its own scope, and returns its text.
    pub fn captured(&mut self, body: &[Stmt], scope: &Rc<Scope>) -> Fallible<String> {
        let (mut text, written) = (String::new(), self.written);
        self.body(body, scope, &mut text)?;
        self.written = written;
        Ok(text)
    }

    fn push(&mut self, text: &str, out: &mut String) -> Fallible<()> {
        self.step(text.len())?;
        self.room(text.len())?;
        self.written += text.len();
        out.push_str(text);
        Ok(())
    }

    fn statement(&mut self, stmt: &Stmt, scope: &Rc<Scope>, out: &mut String) -> Fallible<Flow> {
        self.step(0)?;
        match &stmt.kind {
            StmtKind::Text(text) => self.push(text, out)?,
            StmtKind::Print(exprs) => self.print(exprs, scope, out)?,
            StmtKind::For(for_) => {
                let items = self.expr(&for_.iter, scope)?;
                return self.for_(for_, &items, scope, 0, out);
            }
            StmtKind::If { arms, otherwise } => {
                let body = self.arm(arms, scope)?.unwrap_or(otherwise);
                return self.body(body, scope, out);
            }
            StmtKind::Set(target, expr) => {
                let value = self.expr(expr, scope)?;
                self.assign(target, value, scope, scope)?;
            }
            StmtKind::SetBlock { target, filters, body } => {
                let value = self.filtered(body, filters, scope)?;
                self.assign(target, value, scope, scope)?;
            }
            StmtKind::Macro(macro_) => {
                self.captured.push(Rc::clone(scope));
                scope.set(&macro_.name, in_scope(macro_, scope));
            }
            StmtKind::Call { macro_, call } => self.call_block(macro_, call, scope, out)?,
            StmtKind::Filter { filters, body } => {
                let text = self.filtered(body, filters, scope)?.to_text()?;
                self.push(&text, out)?;
            }
            StmtKind::With { values, body } => {
                let inner = self.with(values, scope)?;
                return self.body(body, &inner, out);
            }
            StmtKind::Scope(body) => return self.body(body, &Scope::within(scope), out),
            StmtKind::Block { body, is_scoped } => {
                let outer = if *is_scoped { Rc::clone(scope) } else { Rc::clone(&self.globals) };
                return self.body(body, &Scope::within(&outer), out);
            }
            StmtKind::Break => return Ok(Flow::Break),
            StmtKind::Continue => return Ok(Flow::Continue),
        }
        Ok(Flow::On)
    }

    fn print(&mut self, exprs: &[Expr], scope: &Rc<Scope>, out: &mut String) -> Fallible<()> {
        for expr in exprs {
            let value = self.expr(expr, scope)?;
            match value.text() {
                Some(text) => self.push(text, out)?,
                None => self.push(&value.to_text()?, out)?,
            }
        }
        Ok(())
    }

    /// Returns the body of the first arm whose test holds.
    fn arm<'a>(
        &mut self,
        arms: &'a [(Expr, Body)],
        scope: &Rc<Scope>,
    ) -> Fallible<Option<&'a Body>> {
        for (test, body) in arms {
            if self.expr(test, scope)?.is_true() {
                return Ok(Some(body));
            }
        }
        Ok(None)
    }

    /// Writes the result of `call`, whose block is the macro `caller`.
    fn call_block(
        &mut self,
        macro_: &Arc<Macro>,
        call: &Expr,
        scope: &Rc<Scope>,
        out: &mut String,
    ) -> Fallible<()> {
        let ExprKind::Call(callee, args) = &call.kind else { return Ok(()) };
        let callee = self.expr(callee, scope)?;
        let mut args = self.args(args, scope)?;
        args.named.push(("caller".into(), in_scope(macro_, scope)));
        let text = self.call(&callee, args)?.to_text()?;
        self.push(&text, out)
    }

    /// Makes a scope within `scope` that has these variables.
    fn with(
        &mut self,
        values: &[(AssignmentTarget, Expr)],
        scope: &Rc<Scope>,
    ) -> Fallible<Rc<Scope>> {
        let inner = Scope::within(scope);
        for (target, expr) in values {
            let value = self.expr(expr, scope)?;
            self.assign(target, value, &inner, scope)?;
        }
        Ok(inner)
    }

    /// Runs `body`, and applies `filters` to its text.
    fn filtered(
        &mut self,
        body: &[Stmt],
        filters: &[(Name, Args)],
        scope: &Rc<Scope>,
    ) -> Fallible<Value> {
        let mut value = self.captured(body, &Scope::within(scope))?.into();
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
    ) -> Fallible<Flow> {
        let items = self.looped(for_, items, scope)?;
        if items.is_empty() {
            return self.body(&for_.otherwise, &Scope::within(scope), out);
        }
        let state = Rc::new(LoopState {
            items,
            at: Cell::new(0),
            depth0,
            changed: RefCell::default(),
            recursive: for_.recursive.then(|| (Arc::clone(for_), Rc::clone(scope))),
        });
        self.turns(for_, &state, scope, out)?;
        Ok(Flow::On)
    }

    /// Runs the body of a loop for each of its items.
    fn turns(
        &mut self,
        for_: &For,
        state: &Rc<LoopState>,
        scope: &Rc<Scope>,
        out: &mut String,
    ) -> Fallible<()> {
        let name: Name = "loop".into();
        for (index, item) in state.items.iter().enumerate() {
            // An iteration makes a scope, which takes as long as a few steps.
            self.step(1024)?;
            state.at.set(index);
            let inner = Scope::within(scope);
            inner.set(&name, Value::Loop(Rc::clone(state)));
            self.assign(&for_.target, item.clone(), &inner, scope)?;
            if self.body(&for_.body, &inner, out)? == Flow::Break {
                break;
            }
        }
        Ok(())
    }

    /// Returns the items that a loop's filter keeps.
    fn looped(&mut self, for_: &For, items: &Value, scope: &Rc<Scope>) -> Fallible<Vec<Value>> {
        let items = items.iterate()?;
        self.step(items.len() * 16)?;
        let Some(filter) = &for_.filter else { return Ok(items) };
        let mut kept = Vec::new();
        for item in items {
            self.step(1024)?;
            let inner = Scope::within(scope);
            self.assign(&for_.target, item.clone(), &inner, scope)?;
            if self.expr(filter, &inner)?.is_true() {
                kept.push(item);
            }
        }
        Ok(kept)
    }

    /// Evaluates `loop(items)`.
    pub fn call_loop(&mut self, state: &LoopState, items: &Value) -> Fallible<Value> {
        let Some((for_, scope)) = &state.recursive else {
            return Err(Fail::new(
                "The loop must have the 'recursive' marker to be called recursively.",
            ));
        };
        let (mut text, written) = (String::new(), self.written);
        self.for_(for_, items, scope, state.depth0 + 1, &mut text)?;
        self.written = written;
        Ok(text.into())
    }

    fn assign(
        &mut self,
        target: &AssignmentTarget,
        value: Value,
        scope: &Rc<Scope>,
        outer: &Rc<Scope>,
    ) -> Fallible<()> {
        match target {
            AssignmentTarget::Name(name) => scope.set(name, value),
            AssignmentTarget::Attr(name, attribute) => set_field(name, attribute, value, outer)?,
            AssignmentTarget::Tuple(targets) => {
                let values = value.iterate()?;
                if values.len() != targets.len() {
                    let (given, names) = (values.len(), targets.len());
                    let what = format!("{given} values to unpack, {names} names for them");
                    return Err(Fail::new(what));
                }
                for (target, value) in targets.iter().zip(values) {
                    self.assign(target, value, scope, outer)?;
                }
            }
        }
        Ok(())
    }
}

fn in_scope(macro_: &Arc<Macro>, scope: &Rc<Scope>) -> Value {
    Value::Macro(Rc::new((Arc::clone(macro_), Rc::clone(scope))))
}

fn set_field(name: &Name, attribute: &Name, value: Value, scope: &Scope) -> Fallible<()> {
    let Some(Value::Namespace(namespace)) = scope.get(name) else {
        return Err(Fail::new("cannot assign attribute on non-namespace object"));
    };
    if attribute.starts_with('_') {
        return Err(Fail::new(format!("a namespace can't have the attribute {attribute:?}")));
    }
    namespace.set((&**attribute).into(), value);
    Ok(())
}
