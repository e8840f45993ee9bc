//! Mistakes in a recipe: errors that know which part of their step they are about.

use moe_checkpoint::{Error, Kind};

/// An error of a step.
#[derive(Debug)]
pub(super) struct Mistake {
    /// The error and its remedy, without the place.
    pub error: Error,
    /// The number of the pass that it is about, from 1; 0 for the step itself.
    pub pass: usize,
    /// The keys that it is about, its subject first. A key of a table in the step is written after
    /// that table's, with a dot.
    pub keys: Vec<String>,
    /// Whether the value of the first key is wrong whatever the other keys are.
    pub is_of_value: bool,
}

impl Mistake {
    /// `error`, which is about `keys`.
    pub fn about<K: Into<String>>(keys: impl IntoIterator<Item = K>, error: Error) -> Self {
        let keys = keys.into_iter().map(Into::into).collect();
        Self { error, pass: 0, keys, is_of_value: false }
    }

    /// `error`, which the value of `key` leads to by itself.
    pub fn of_value(key: &str, error: Error) -> Self {
        Self { is_of_value: true, ..Self::about([key], error) }
    }

    /// The mistake, in pass number `pass` of the step.
    pub fn in_pass(self, pass: usize) -> Self {
        Self { pass, ..self }
    }

    /// The error, with the number of its pass.
    pub fn into_error(self) -> Error {
        match self.pass {
            0 => self.error,
            pass => self.error.within(&format!("pass {pass}")),
        }
    }
}

impl From<Error> for Mistake {
    fn from(error: Error) -> Self {
        let keys = error.named_options().iter().map(|option| key_of(option).to_owned());
        Self::about(keys.collect::<Vec<_>>(), error)
    }
}

/// The key of a step for an `option` of the command line.
pub(super) fn key_of(option: &str) -> &str {
    option.trim_start_matches('-')
}

/// An error about what a recipe says.
pub(super) fn usage(what: impl Into<String>, remedy: impl Into<String>) -> Error {
    Error::new(Kind::Usage, what).remedy(remedy)
}
