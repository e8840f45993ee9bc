//! Variables of a recipe: `${name}` stands for a value of any type.

use std::collections::{BTreeMap, BTreeSet};

use moe_checkpoint::{Error, Result};
use toml::Value;

use super::guess::guess;
use super::mistake::usage;

/// Maximum number of characters and list elements that variables may expand to. Ten variables, each
/// twice the one before, make a thousand times the first; thirty make a billion.
const MAX_MADE: usize = 4 << 20;

/// The current values of variables, and the names that were used so far.
#[derive(Debug, Default)]
pub(super) struct Variables {
    values: BTreeMap<String, Value>,
    used: BTreeSet<String>,
    /// Characters and elements that were made so far.
    made: usize,
}

impl Variables {
    /// Sets `name` to `value` from now on, after replacing variables in it.
    pub fn define(&mut self, name: &str, mut value: Value) -> Result<()> {
        self.replace(&mut value)?;
        match self.values.insert(name.to_owned(), value) {
            None => Ok(()),
            Some(_) => Err(usage(
                format!("there is a variable {name:?} already"),
                "give this one another name",
            )),
        }
    }

    /// Removes `name`; whether it was used is remembered.
    pub fn undefine(&mut self, name: &str) {
        self.values.remove(name);
    }

    /// Whether `name` was used since it was first defined, and forgets it: another variable may
    /// have the name afterwards.
    pub fn was_used(&mut self, name: &str) -> bool {
        self.used.remove(name)
    }

    /// Replaces `${name}` in every text within `value`. A text that consists of one variable
    /// becomes that variable's value, whatever its type.
    pub fn replace(&mut self, value: &mut Value) -> Result<()> {
        match value {
            Value::String(text) => {
                *value = self.replaced(text)?;
                Ok(())
            }
            Value::Array(values) => values.iter_mut().try_for_each(|value| self.replace(value)),
            Value::Table(table) => table.iter_mut().try_for_each(|(_, value)| self.replace(value)),
            _ => Ok(()),
        }
    }

    fn replaced(&mut self, text: &str) -> Result<Value> {
        let whole = text.strip_prefix("${").and_then(|rest| rest.strip_suffix('}'));
        if let Some(name) = whole.filter(|name| !name.contains(['$', '}'])) {
            let size = size(self.get(name)?);
            self.make(size)?;
            return self.get(name).cloned();
        }
        let mut made = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("${") {
            let (name, after) = after.split_once('}').ok_or_else(|| {
                usage(format!("${{ without }} in {text:?}"), "write a variable as ${name}")
            })?;
            let size = size(self.get(name)?);
            self.make(size + before.len())?;
            made += before;
            made += &inside_text(name, self.get(name)?, text)?;
            rest = after;
        }
        Ok(Value::String(made + rest))
    }

    /// Refuses to make `size` more characters and elements where that exceeds the limit.
    fn make(&mut self, size: usize) -> Result<()> {
        self.made += size;
        if self.made > MAX_MADE {
            let what = format!("variables within variables make more than {MAX_MADE} characters");
            return Err(usage(what, "let variables stand for less"));
        }
        Ok(())
    }

    fn get(&mut self, name: &str) -> Result<&Value> {
        let Some(value) = self.values.get(name) else { return Err(self.undefined(name)) };
        self.used.insert(name.to_owned());
        Ok(value)
    }

    /// The error for `name`, which isn't the name of a variable.
    fn undefined(&self, name: &str) -> Error {
        let known: Vec<_> = self.values.keys().map(String::as_str).collect();
        let guess = guess(name, known.iter().copied());
        let what = if known.is_empty() {
            format!("there is no variable {name:?} here")
        } else {
            format!("there is no variable {name:?} here, only {}{guess}", known.join(", "))
        };
        let remedy =
            format!("correct the name, or define {name} under [vars] or in a block's each");
        usage(what, remedy)
    }
}

/// The `value` of the variable `name` as it stands inside `text`.
fn inside_text(name: &str, value: &Value, text: &str) -> Result<String> {
    match value {
        Value::String(value) => Ok(value.clone()),
        Value::Integer(_) | Value::Float(_) | Value::Boolean(_) => Ok(value.to_string()),
        value => {
            let kind = value.type_str();
            let what = format!(
                "${{{name}}} is of type {kind}, which can't stand inside the text {text:?}"
            );
            Err(usage(what, "let it stand alone, or use a variable that is a text or a number"))
        }
    }
}

/// Characters and elements of `value`.
fn size(value: &Value) -> usize {
    1 + match value {
        Value::String(text) => text.len(),
        Value::Array(values) => values.iter().map(size).sum(),
        Value::Table(table) => table.iter().map(|(name, value)| name.len() + size(value)).sum(),
        _ => 0,
    }
}

/// The `text` of `--set` as a value of the type of `declared`.
pub(super) fn given(text: &str, declared: &Value) -> Result<Value> {
    if let Some(declared) = declared.as_str() {
        return given_text(text, declared);
    }
    let value = text.parse::<Value>().ok().filter(|value| value.same_type(declared));
    value.ok_or_else(|| {
        let what =
            format!("{text:?} is not TOML of type {}, as {declared} is", declared.type_str());
        usage(what, format!("give a value of that type, such as '{declared}'"))
    })
}

/// The `text` of `--set` for a variable whose value in the recipe is the text `declared`.
fn given_text(text: &str, declared: &str) -> Result<Value> {
    // `--set out=$UNSET` would turn "${out}/moe" into a directory at the root of the disk.
    if text.is_empty() && !declared.is_empty() {
        return Err(usage("the value is empty", format!("give a text, such as {declared}")));
    }
    if text.starts_with(['[', '{', '"']) && !declared.starts_with(['[', '{', '"']) {
        let what = format!(
            "{text:?} looks like a list, a table or a quoted text, and this variable is a text"
        );
        return Err(usage(
            what,
            format!("give the text as it is, without quotes or brackets, such as {declared}"),
        ));
    }
    Ok(Value::String(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables() -> Variables {
        let mut variables = Variables::default();
        variables.define("n", Value::Integer(3)).unwrap();
        variables.define("files", Value::Array(vec!["a".into(), "b".into()])).unwrap();
        variables.define("out", Value::String("x/${n}".into())).unwrap();
        variables
    }

    fn replaced(text: &str) -> Result<Value, String> {
        variables().replaced(text).map_err(|error| error.to_string())
    }

    fn given(text: &str, declared: &Value) -> Result<Value, String> {
        super::given(text, declared).map_err(|error| error.to_string())
    }

    #[test]
    fn a_text_of_one_variable_is_its_value() {
        assert_eq!(replaced("${n}"), Ok(Value::Integer(3)));
        assert_eq!(replaced("${files}"), Ok(Value::Array(vec!["a".into(), "b".into()])));
        assert_eq!(replaced("${out}"), Ok("x/3".into()));
        assert_eq!(replaced("w${n}a16 in ${out}"), Ok("w3a16 in x/3".into()));
        assert_eq!(replaced("${n}${n}"), Ok("33".into()));
        assert_eq!(replaced("plain $5 {n}"), Ok("plain $5 {n}".into()));
    }

    #[test]
    fn what_cannot_be_replaced_is_named() {
        assert!(
            replaced("a ${m}").unwrap_err().contains("no variable \"m\" here, only files, n, out")
        );
        assert!(replaced("a ${files}").unwrap_err().contains("${files} is of type array"));
        assert!(replaced("a ${n").unwrap_err().contains("${ without }"));
        assert!(
            variables()
                .define("n", Value::Integer(4))
                .unwrap_err()
                .to_string()
                .contains("\"n\" already")
        );
    }

    #[test]
    fn variables_that_double_are_stopped() {
        for double in [
            |last: &str| Value::String(format!("${{{last}}}${{{last}}}")),
            |last: &str| Value::Array(vec![Value::String(format!("${{{last}}}")); 2]),
        ] {
            let mut variables = variables();
            let names: Vec<String> =
                std::iter::once("out".to_owned()).chain((0..64).map(|n| format!("v{n}"))).collect();
            let mut doubled =
                names.windows(2).map(|pair| variables.define(&pair[1], double(&pair[0])));
            let error = doubled.find_map(Result::err).unwrap().to_string();
            assert!(error.contains("more than 4194304"), "{error}");
        }
    }

    #[test]
    fn use_is_remembered_until_asked_for() {
        let mut variables = variables();
        assert!(!variables.was_used("files"));
        variables.replaced("${files}").unwrap();
        variables.undefine("files");
        assert!(variables.was_used("files") && !variables.was_used("files"));
        assert!(variables.was_used("n"), "by the definition of `out`");
    }

    #[test]
    fn settings_have_the_declared_type() {
        assert_eq!(given("7", &"text".into()), Ok("7".into()));
        assert_eq!(given("7", &Value::Integer(1)), Ok(Value::Integer(7)));
        let list = Value::Array(vec![Value::Integer(0)]);
        assert_eq!(
            given("[1, 2]", &list),
            Ok(Value::Array(vec![Value::Integer(1), Value::Integer(2)]))
        );
        assert!(
            given("seven", &Value::Integer(1))
                .unwrap_err()
                .contains("not TOML of type integer, as 1 is")
        );
        assert!(given("7", &list).unwrap_err().contains("not TOML of type array, as [0] is"));
    }
}
