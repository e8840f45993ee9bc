//! Translates the command line to the names and values that clap reads.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;

use clap::{Arg, Command};
use moe_checkpoint::{Error, Kind, Result};
use moe_pipeline::spelling::{self, Spelled};

/// The words of a command line, beginning with the program's name, and notes on how they were
/// written.
#[derive(Debug, Default)]
pub struct Respelled {
    pub words: Vec<OsString>,
    pub notes: BTreeSet<String>,
    /// The options that were given, each with the name that it was given by.
    pub given: BTreeMap<String, String>,
}

/// Replaces other names of options of `command` in `words` by their names here, and values by the
/// spelling that options accept.
///
/// # Errors
/// If an option is given by two names.
pub fn respell(words: Vec<OsString>, command: &Command) -> Result<Respelled> {
    let mut respelled = Respelled::default();
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        if word == "--" {
            respelled.words.push(word);
            break;
        }
        match WrittenOption::read(&word, command) {
            Some(written) => respelled.option(&written, &mut words)?,
            None => respelled.words.push(word),
        }
    }
    respelled.words.extend(words);
    Ok(respelled)
}

/// An option as it is written.
struct WrittenOption<'a> {
    name: String,
    /// The text after `=`.
    value: Option<String>,
    /// The translation, if the option was written with another name.
    spelled: Option<Spelled>,
    arg: &'a Arg,
}

impl<'a> WrittenOption<'a> {
    /// Returns the option of `command` that `word` is; None if `word` isn't an option.
    fn read(word: &OsString, command: &'a Command) -> Option<Self> {
        let written = word.to_str()?.strip_prefix("--")?;
        let (name, value) = match written.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (written, None),
        };
        let spelled = spelling::option(name, command);
        let now = spelled.as_ref().map_or(name, |spelled| &spelled.option);
        let arg = spelling::arg_named(command, now)?;
        Some(Self { name: name.to_owned(), value, spelled, arg })
    }

    /// Returns the option's name here.
    fn now(&self) -> &str {
        self.spelled.as_ref().map_or(&self.name, |spelled| &spelled.option)
    }

    /// Returns whether the next word is the option's value.
    fn takes_next(&self) -> bool {
        let takes = self.arg.get_action().takes_values() && !self.arg.is_require_equals_set();
        takes && self.value.is_none()
    }

    /// `value` in the spelling that the option accepts.
    fn respelled(&self, value: &str) -> String {
        let value = match &self.spelled {
            Some(spelled) => spelled.value(value),
            None => value.to_owned(),
        };
        spelling::value(&value, self.arg).unwrap_or(value)
    }
}

impl Respelled {
    /// `words` unchanged, without any known option.
    pub fn as_written(words: Vec<OsString>) -> Self {
        Self { words, ..Self::default() }
    }

    /// Adds the option `written`, whose value may be the first of `words`.
    fn option(
        &mut self,
        written: &WrittenOption<'_>,
        words: &mut impl Iterator<Item = OsString>,
    ) -> Result<()> {
        self.check_one(written)?;
        if written.spelled.as_ref().is_some_and(|spelled| spelled.is_earlier) {
            let [was, now] = [&written.name, written.now()].map(|name| format!("--{name}"));
            self.notes.insert(spelling::renamed(&was, &now));
        }
        let mut option = format!("--{}", written.now());
        if let Some(value) = &written.value {
            option += &format!("={}", written.respelled(value));
        }
        self.words.push(option.into());
        let next = if written.takes_next() { words.next() } else { None };
        if let Some(next) = next {
            // A value that isn't UTF-8 stays unchanged.
            let value = next.to_str().map(|value| written.respelled(value).into());
            self.words.push(value.unwrap_or(next));
        }
        Ok(())
    }

    /// Refuses a second name for an option.
    fn check_one(&mut self, written: &WrittenOption<'_>) -> Result<()> {
        let now = written.arg.get_long().unwrap_or_default();
        let earlier = self.given.insert(now.to_owned(), written.name.clone());
        let other = &written.name;
        let is_another = |earlier: &String| spelling::folded(earlier) != spelling::folded(other);
        let Some(one) = earlier.filter(is_another) else { return Ok(()) };
        let what = format!("--{one} and --{other} are one option, and both are given");
        Err(Error::new(Kind::Usage, what).remedy(format!("give --{now} alone")))
    }
}
