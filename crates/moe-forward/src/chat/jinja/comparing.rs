//! How Python compares values: `==`, `is` and `<`.

use std::cmp::Ordering;
use std::rc::Rc;

use super::held::{check_compared, may_compare};
use super::value::{Dict, Value, View};
use super::{Fail, Fallible};

impl Value {
    /// Python's `==`.
    pub fn equals(&self, other: &Self) -> bool {
        if !may_compare(text_bytes(self, other)) {
            return false;
        }
        if let (Some(a), Some(b)) = (self.integer(), other.integer()) {
            return a == b;
        }
        if let (Some(a), Some(b)) = (self.number(), other.number()) {
            return a == b;
        }
        if let (Some(a), Some(b)) = (self.text(), other.text()) {
            return a == b;
        }
        match (self, other) {
            (Self::None, Self::None) | (Self::Undefined(_), Self::Undefined(_)) => true,
            (Self::List(a), Self::List(b)) | (Self::Tuple(a), Self::Tuple(b)) => equal_items(a, b),
            (Self::Dict(a), Self::Dict(b)) => equal_dicts(a, b),
            (Self::Range { .. }, Self::Range { .. }) => {
                let items = self.iterate().ok().zip(other.iterate().ok());
                items.is_some_and(|(a, b)| equal_items(&a, &b))
            }
            (Self::View(a, x), Self::View(b, y)) if a == b && *a != View::Values => {
                x.len() == y.len() && x.iter().all(|a| y.iter().any(|b| a.equals(b)))
            }
            _ => self.is(other),
        }
    }

    /// Python's `is`.
    pub fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::None, Self::None) => true,
            (Self::Bool(a), Self::Bool(b)) => a == b,
            // Python shares small integers and short strings, so most of these that are equal are
            // identical.
            (Self::Int(a), Self::Int(b)) => a == b,
            (Self::Str(a), Self::Str(b)) => **a == **b,
            (Self::List(a), Self::List(b)) | (Self::Tuple(a), Self::Tuple(b)) => a.is(b),
            (Self::Dict(a), Self::Dict(b)) => Rc::ptr_eq(a, b),
            (Self::Namespace(a), Self::Namespace(b)) => Rc::ptr_eq(a, b),
            (Self::Macro(a), Self::Macro(b)) => Rc::ptr_eq(a, b),
            (Self::Loop(a), Self::Loop(b)) => Rc::ptr_eq(a, b),
            (Self::Generator(a), Self::Generator(b)) => Rc::ptr_eq(a, b),
            (Self::Function(a), Self::Function(b)) => a == b,
            _ => false,
        }
    }

    /// Python's order; None for values that aren't ordered.
    pub fn compare(&self, other: &Self) -> Fallible<Option<Ordering>> {
        check_compared(text_bytes(self, other))?;
        if let (Some(a), Some(b)) = (self.integer(), other.integer()) {
            return Ok(Some(a.cmp(&b)));
        }
        if let (Some(a), Some(b)) = (self.number(), other.number()) {
            return Ok(a.partial_cmp(&b));
        }
        if let (Some(a), Some(b)) = (self.text(), other.text()) {
            return Ok(Some(a.cmp(b)));
        }
        match (self, other) {
            (Self::Undefined(what), _) | (_, Self::Undefined(what)) => Err(Fail::new(&**what)),
            (Self::List(a), Self::List(b)) | (Self::Tuple(a), Self::Tuple(b)) => {
                match a.iter().zip(b.iter()).find(|(a, b)| !a.equals(b)) {
                    Some((a, b)) => a.compare(b),
                    None => Ok(Some(a.len().cmp(&b.len()))),
                }
            }
            _ => {
                let (a, b) = (self.type_name(), other.type_name());
                Err(Fail::new(format!("'{a}' and '{b}' have no order")))
            }
        }
    }
}

/// Returns the maximum number of bytes that a comparison looks at; 0 unless both are strings.
fn text_bytes(a: &Value, b: &Value) -> usize {
    a.text().zip(b.text()).map_or(0, |(a, b)| a.len().min(b.len()))
}

fn equal_items(a: &[Value], b: &[Value]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.equals(b))
}

fn equal_dicts(a: &Dict, b: &Dict) -> bool {
    a.entries().len() == b.entries().len()
        && a.entries()
            .iter()
            .all(|(key, value)| b.get(key).is_some_and(|other| other.equals(value)))
}
