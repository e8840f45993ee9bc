//! The arguments of calls of functions, methods and filters.

use super::value::{Str, Value};
use super::{Fail, Fallible};

/// The arguments of a call.
#[derive(Default, Clone)]
pub(super) struct CallArgs {
    pub positional: Vec<Value>,
    pub named: Vec<(String, Value)>,
}

impl CallArgs {
    /// Returns the arguments in the order of `names`, the parameters of `function`; None for one
    /// that isn't given.
    pub fn bind<const N: usize>(
        self,
        function: &str,
        names: [&str; N],
    ) -> Fallible<[Option<Value>; N]> {
        if self.positional.len() > N {
            let given = self.positional.len();
            let what = format!("{function} takes at most {N} arguments, but {given} were given");
            return Err(Fail::new(what));
        }
        let mut bound = [const { None }; N];
        for (value, slot) in self.positional.into_iter().zip(&mut bound) {
            *slot = Some(value);
        }
        for (name, value) in self.named {
            let Some(at) = names.iter().position(|known| *known == name) else {
                let what = format!("{function} got an unexpected keyword argument '{name}'");
                return Err(Fail::new(what));
            };
            if bound[at].replace(value).is_some() {
                let what = format!("{function} got multiple values for argument '{name}'");
                return Err(Fail::new(what));
            }
        }
        Ok(bound)
    }

    /// Checks that `function` is given no arguments.
    pub fn none(self, function: &str) -> Fallible<()> {
        self.bind(function, []).map(|[]| ())
    }

    /// Removes and returns the keyword argument of this name.
    pub fn take_named(&mut self, name: &str) -> Option<Value> {
        let at = self.named.iter().position(|(known, _)| known == name)?;
        Some(self.named.remove(at).1)
    }
}

/// Returns an argument that must be given.
pub(super) fn required(value: Option<Value>, function: &str, name: &str) -> Fallible<Value> {
    value.ok_or_else(|| Fail::new(format!("{function} is missing its argument '{name}'")))
}

/// Converts an argument to an integer.
pub(super) fn integer(value: &Value, function: &str) -> Fallible<i128> {
    if let Value::Undefined(what) = value {
        return Err(Fail::new(&**what));
    }
    value.integer().ok_or_else(|| {
        Fail::new(format!(
            "{function}: '{}' object cannot be interpreted as an integer",
            value.type_name()
        ))
    })
}

/// Converts an argument to an integer; `default` if it isn't given.
pub(super) fn integer_or(default: i128, value: Option<Value>, function: &str) -> Fallible<i128> {
    value.map_or(Ok(default), |value| integer(&value, function))
}

/// Converts an argument to a string.
pub(super) fn text(value: &Value, function: &str) -> Fallible<Str> {
    match value {
        Value::Str(text) | Value::Markup(text) => Ok(text.clone()),
        Value::Undefined(what) => Err(Fail::new(&**what)),
        _ => Err(Fail::new(format!("{function}: a str is wanted, not '{}'", value.type_name()))),
    }
}

/// Converts an argument that must be given to a string.
pub(super) fn required_text(value: Option<Value>, function: &str, name: &str) -> Fallible<Str> {
    text(&required(value, function, name)?, function)
}

/// Converts an argument to a string; `default` if it isn't given.
pub(super) fn text_or(default: &str, value: Option<Value>, function: &str) -> Fallible<Str> {
    value.map_or_else(|| Ok(Str::new(default)), |value| text(&value, function))
}

/// Returns whether an argument is given and true.
pub(super) fn is_set(value: Option<Value>) -> bool {
    value.is_some_and(|value| value.is_true())
}

/// Treats Python's `None` as an argument that isn't given.
pub(super) fn unless_none(value: Option<Value>) -> Option<Value> {
    value.filter(|value| !matches!(value, Value::None))
}
