//! Scopes of variables, and the state of `loop`.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use super::ast::{For, Name};
use super::value::Value;

/// The variables of a template, an iteration of a loop or a call of a macro. Other names are looked
/// up in the enclosing scope.
pub(super) struct Scope {
    /// A list, since a scope has only a handful of variables, which a list finds sooner than a
    /// table.
    vars: RefCell<Vec<(Name, Value)>>,
    parent: Option<Rc<Scope>>,
}

impl Scope {
    /// Makes a scope without an enclosing one.
    pub fn outermost() -> Rc<Self> {
        Rc::new(Self { vars: RefCell::default(), parent: None })
    }

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

    pub fn get(&self, name: &str) -> Option<Value> {
        let mut scope = Some(self);
        while let Some(here) = scope {
            if let Some((_, value)) = here.vars.borrow().iter().find(|(known, _)| **known == *name)
            {
                return Some(value.clone());
            }
            scope = here.parent.as_deref();
        }
        None
    }

    /// Drops all variables, and so the macros that hold this scope.
    pub fn clear(&self) {
        self.vars.borrow_mut().clear();
    }
}

/// The state of `loop`.
pub(super) struct LoopState {
    pub items: Vec<Value>,
    pub at: Cell<usize>,
    pub depth0: usize,
    pub changed: RefCell<Option<Vec<Value>>>,
    /// The loop and its scope, if it can be called recursively.
    pub recursive: Option<(Arc<For>, Rc<Scope>)>,
}

impl LoopState {
    pub fn length(&self) -> usize {
        self.items.len()
    }

    pub fn index(&self) -> usize {
        self.at.get() + 1
    }

    pub fn attribute(&self, name: &str) -> Option<Value> {
        let at = self.at.get();
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
            "previtem" => self.item(at.checked_sub(1), "previous"),
            "nextitem" => self.item(Some(at + 1), "next"),
            _ => return None,
        })
    }

    fn item(&self, index: Option<usize>, which: &str) -> Value {
        let found = index.and_then(|index| self.items.get(index)).cloned();
        found.unwrap_or_else(|| Value::undefined(format!("there is no {which} item")))
    }
}

fn int(value: usize) -> Value {
    Value::Int(value as i128)
}
