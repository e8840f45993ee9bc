//! Other spellings of options and values: earlier names, names that other tools have for the very
//! same thing, underscores, other case, percentages.
//!
//! The command line and recipes translate them here before anything is parsed, so that the rest of
//! the program knows one spelling. A name that means something different in another tool stays an
//! error.

mod aliases;
mod earlier;

use clap::builder::PossibleValue;
use clap::{Arg, Command};

use aliases::Alias;

/// The name of an option that was written in another way.
#[derive(Debug)]
pub struct Spelled {
    /// Its current name, without leading hyphens.
    pub option: String,
    /// Whether it was written by its earlier name, which deserves a note.
    pub is_earlier: bool,
    in_scheme: bool,
}

impl Spelled {
    fn new(option: impl Into<String>) -> Self {
        Self { option: option.into(), is_earlier: false, in_scheme: false }
    }

    /// The option's value for `value`, which was written behind the other name.
    pub fn value(&self, value: &str) -> String {
        if self.in_scheme { format!("w{value}a16") } else { value.to_owned() }
    }
}

/// The note that the earlier name `was` of `now` was used.
pub fn renamed(was: &str, now: &str) -> String {
    format!("{was} is now {now}; the old name goes with {}", earlier::GONE_WITH)
}

/// The option of `command` that is `written` in another way, without leading hyphens; None if
/// `command` knows it as written, or not at all.
pub fn option(written: &str, command: &Command) -> Option<Spelled> {
    if has(command, written) {
        return None;
    }
    let name = folded(written);
    if has(command, &name) {
        return Some(Spelled::new(name));
    }
    if let Some(now) = earlier::name_now(command.get_name(), &name) {
        return Some(Spelled { is_earlier: true, ..Spelled::new(now) });
    }
    let alias = alias(&name, command)?;
    Some(Spelled { in_scheme: alias.in_scheme, ..Spelled::new(alias.option) })
}

/// The row of another tool's `name`, if `command` has its option.
fn alias(name: &str, command: &Command) -> Option<&'static Alias> {
    let mut rows = aliases::rows(name, command.get_name());
    rows.find(|alias| has(command, alias.option))
}

/// The options that `written` may stand for, in any command.
pub(crate) fn possible_options(written: &str) -> impl Iterator<Item = String> {
    let name = folded(written);
    let others = earlier::names_now(name.clone()).chain(aliases::options(name.clone()));
    std::iter::once(name).chain(others.map(str::to_owned))
}

/// `text` as the option `arg` takes it; None if it needs no change. Words may be in another case,
/// with underscores or in other tools' spelling; shares may be percentages.
pub fn value(text: &str, arg: &Arg) -> Option<String> {
    if !arg.get_action().takes_values() {
        return None;
    }
    let words = arg.get_possible_values();
    let spelled = match arg.get_value_delimiter() {
        _ if words.is_empty() => return share(text, arg),
        Some(delimiter) => {
            let each: Vec<String> = text.split(delimiter).map(|one| word(one, &words)).collect();
            each.join(&delimiter.to_string())
        }
        None => word(text, &words),
    };
    (spelled != text).then_some(spelled)
}

/// The one of `words` that `text` spells; `text` itself if there is none.
fn word(text: &str, words: &[PossibleValue]) -> String {
    let folded = folded(text);
    let found = words.iter().find(|word| word.matches(text, false) || word.matches(&folded, true));
    found.map_or(text, PossibleValue::get_name).to_owned()
}

/// A share given as a percentage, as a number.
fn share(text: &str, arg: &Arg) -> Option<String> {
    let is_share = arg.get_value_names().is_some_and(|names| names == ["SHARE"]);
    let number = text.trim().strip_suffix('%').filter(|_| is_share)?.trim_end();
    // Dividing by 100 would round twice.
    let share: f64 = format!("{number}e-2").parse().ok()?;
    share.is_finite().then(|| share.to_string())
}

/// `name` in lower case with hyphens.
pub fn folded(name: &str) -> String {
    name.to_ascii_lowercase().replace('_', "-")
}

/// Whether `command` has the option `--name`.
pub fn has(command: &Command, name: &str) -> bool {
    command.get_arguments().any(|arg| arg.get_long() == Some(name))
}

#[cfg(test)]
mod tests;
