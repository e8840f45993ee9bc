//! The arguments of calls, as functions, methods and filters take them.

use super::value::{Text, Value};
use super::{Fail, Outcome};

/// The arguments of a call.
#[derive(Default, Clone)]
pub(super) struct CallArgs {
    pub positional: Vec<Value>,
    pub named: Vec<(String, Value)>,
}

impl CallArgs {
    /// The arguments by the names of the parameters of `function`, in this order.
    pub fn bind<const N: usize>(
        self,
        function: &str,
        names: [&str; N],
    ) -> Outcome<[Option<Value>; N]> {
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

    /// Refuses any argument of `function`.
    pub fn none(self, function: &str) -> Outcome<()> {
        self.bind(function, []).map(|[]| ())
    }

    /// Takes away the argument of this name.
    pub fn take_named(&mut self, name: &str) -> Option<Value> {
        let at = self.named.iter().position(|(known, _)| known == name)?;
        Some(self.named.remove(at).1)
    }
}

/// An argument that must be there.
pub(super) fn required(value: Option<Value>, function: &str, name: &str) -> Outcome<Value> {
    value.ok_or_else(|| Fail::new(format!("{function} is missing its argument '{name}'")))
}

/// An argument that is an integer.
pub(super) fn integer(value: &Value, function: &str) -> Outcome<i128> {
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

/// An argument that is an integer, or `default` where it isn't given.
pub(super) fn integer_or(default: i128, value: Option<Value>, function: &str) -> Outcome<i128> {
    value.map_or(Ok(default), |value| integer(&value, function))
}

/// An argument that is a text.
pub(super) fn text(value: &Value, function: &str) -> Outcome<Text> {
    match value {
        Value::Str(text) | Value::Markup(text) => Ok(text.clone()),
        Value::Undefined(what) => Err(Fail::new(&**what)),
        _ => Err(Fail::new(format!("{function}: a str is wanted, not '{}'", value.type_name()))),
    }
}

/// An argument that is a text and must be there.
pub(super) fn required_text(value: Option<Value>, function: &str, name: &str) -> Outcome<Text> {
    text(&required(value, function, name)?, function)
}

/// An argument that is a text, or `default` where it isn't given.
pub(super) fn text_or(default: &str, value: Option<Value>, function: &str) -> Outcome<Text> {
    value.map_or_else(|| Ok(Text::new(default)), |value| text(&value, function))
}

/// Whether an argument was given and is true.
pub(super) fn is_set(value: Option<Value>) -> bool {
    value.is_some_and(|value| value.is_true())
}

/// An argument for which Python's `None` says as much as nothing.
pub(super) fn unless_none(value: Option<Value>) -> Option<Value> {
    value.filter(|value| !matches!(value, Value::None))
}
