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
    /// The option's current name, without leading hyphens.
    pub option: String,
    /// Whether it was written by its earlier name, which deserves a note.
    pub is_earlier: bool,
    in_scheme: bool,
}

impl Spelled {
    fn new(option: impl Into<String>) -> Self {
        Self { option: option.into(), is_earlier: false, in_scheme: false }
    }

    /// The option's value for `value`, which was given with the other name.
    pub fn value(&self, value: &str) -> String {
        let is_number = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
        // A recipe's variable is filled in later.
        if self.in_scheme && (is_number || value.contains("${")) {
            format!("w{value}a16")
        } else {
            value.to_owned()
        }
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

/// Another name of an option.
#[derive(Debug, Clone, Copy)]
pub struct OtherName {
    /// The name, without leading hyphens.
    pub name: &'static str,
    /// The option, likewise.
    pub option: &'static str,
    /// Whether the option had this name in an earlier version.
    pub is_earlier: bool,
}

/// All other names that `command` takes.
pub fn other_names(command: &Command) -> impl Iterator<Item = OtherName> {
    let earlier = earlier::names_of(command.get_name());
    let earlier = earlier.map(|(name, option)| OtherName { name, option, is_earlier: true });
    let others = aliases::names_of(command.get_name());
    let others = others.map(|(name, option)| OtherName { name, option, is_earlier: false });
    earlier.chain(others).filter(|other| has(command, other.option))
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
        _ if words.is_empty() => return unlisted(text, arg),
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

/// The same for an option without a list of words: a share may be a percentage, and a family is
/// written as transformers writes its model_type.
fn unlisted(text: &str, arg: &Arg) -> Option<String> {
    let names = arg.get_value_names().unwrap_or_default();
    match names.first()?.as_str() {
        "SHARE" => of_percentage(text).map(|share| share.to_string()),
        "FAMILY" => Some(text.to_ascii_lowercase().replace('-', "_")).filter(|now| now != text),
        _ => None,
    }
}

/// The share that `text` gives in per cent; None if it isn't one.
pub(crate) fn of_percentage(text: &str) -> Option<f64> {
    let number = text.trim().strip_suffix('%')?.trim_end().to_ascii_lowercase();
    let (digits, exponent) = number.split_once('e').unwrap_or((&number, "0"));
    let exponent = exponent.parse::<i32>().ok()?.checked_sub(2)?;
    // Dividing by 100 would round twice.
    let share: f64 = format!("{digits}e{exponent}").parse().ok()?;
    share.is_finite().then_some(share)
}

/// `name` in lower case with hyphens.
pub fn folded(name: &str) -> String {
    name.to_ascii_lowercase().replace('_', "-")
}

/// Whether `command` has the option `--name`.
pub fn has(command: &Command, name: &str) -> bool {
    arg_named(command, name).is_some()
}

/// The option `--name` of `command`, by its name or an alias of clap's.
pub fn arg_named<'c>(command: &'c Command, name: &str) -> Option<&'c Arg> {
    let is_named = |arg: &&Arg| {
        let is_alias = || arg.get_all_aliases().is_some_and(|aliases| aliases.contains(&name));
        arg.get_long() == Some(name) || is_alias()
    };
    command.get_arguments().find(is_named)
}

#[cfg(test)]
mod tests;
