//! Errors of the command line, in the three parts that all errors have: what, where, remedy.
//!
//! The errors are made from the kind and the context of clap's errors, and from errors of value
//! parsers. No text of clap's is read.

mod alike;
mod peers;
mod switches;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::error::Error as _;
use std::num::{IntErrorKind, ParseFloatError, ParseIntError};
use std::process::ExitCode;

use clap::Command;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use moe_checkpoint::{Error, Kind};
use moe_math::DeviceError;
use moe_pipeline::spelling::folded;

use crate::bar::{say, say_note};
use crate::cli::{as_text, called, place_of, program};
use crate::refusal::Refusal;
use crate::spelling::{Respelled, respell};
use crate::stdout::print_error;

/// Prints help and versions that were asked for, and errors in the form of this program.
pub fn report(refusal: Refusal) -> ExitCode {
    let words = as_text(std::env::args_os());
    let command = called(&words);
    let spelled = spelled(&words, command.as_ref());
    let (error, usage) = match refusal {
        Refusal::Clap(error) if is_help(&error) => {
            // Errors are ignored: nobody reads it any more.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
        Refusal::Clap(error) => {
            let refused = Refused {
                error: &error,
                words: &words,
                command: command.as_ref(),
                given: spelled.given,
            };
            (refused.reason(), Some(refused.with_usage()))
        }
        Refusal::Own(error) => (error, None),
    };
    if !is_quiet(&words) {
        spelled.notes.iter().for_each(|note| say_note(note));
    }
    say(&format!("error: {}", usage.as_ref().unwrap_or(&error)));
    if place_of(&words, "--json").is_some() {
        print_error(&error);
    }
    ExitCode::from(2)
}

/// Translates other names of the options of `command` in `words`; gives nothing if a spelling is
/// the error.
fn spelled(words: &[String], command: Option<&Command>) -> Respelled {
    let words = words.iter().map(Into::into).collect();
    command.and_then(|command| respell(words, command).ok()).unwrap_or_default()
}

fn is_quiet(words: &[String]) -> bool {
    ["--quiet", "-q"].into_iter().any(|option| place_of(words, option).is_some())
}

fn is_help(error: &clap::Error) -> bool {
    !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
}

/// The remedy for an unknown key of a recipe, where another tool has an option of that name.
pub fn key_instead(error: &Error) -> Option<String> {
    let (command, key) = error.named_unknown()?;
    let program = program();
    let command = program.find_subcommand(command)?;
    peers::key_instead(key, command, program.get_subcommands())
}

/// A command line that clap refuses.
struct Refused<'a> {
    error: &'a clap::Error,
    words: &'a [String],
    /// The command that is called; None if there is no command of that name.
    command: Option<&'a Command>,
    /// The options that were given, each with the name that it was given by.
    given: BTreeMap<String, String>,
}

impl Refused<'_> {
    /// The error of this program that says why.
    fn reason(&self) -> Error {
        Error::new(Kind::Usage, self.what()).remedy(self.remedy())
    }

    /// The same with the command's usage, for readers of text.
    fn with_usage(&self) -> Error {
        match self.error.get(ContextKind::Usage) {
            Some(usage) => self.reason().usage(usage.to_string().trim_start_matches("Usage: ")),
            None => self.reason(),
        }
    }

    /// The first text of this kind in the error's context.
    fn text(&self, kind: ContextKind) -> Option<&str> {
        match self.error.get(kind)? {
            ContextValue::String(text) => Some(text),
            ContextValue::Strings(texts) => texts.first().map(String::as_str),
            _ => None,
        }
    }

    /// All texts of this kind in the error's context.
    fn texts(&self, kind: ContextKind) -> &[String] {
        match self.error.get(kind) {
            Some(ContextValue::String(text)) => std::slice::from_ref(text),
            Some(ContextValue::Strings(texts)) => texts,
            _ => &[],
        }
    }

    /// The message.
    fn what(&self) -> String {
        let option = self.text(ContextKind::InvalidArg).unwrap_or_default();
        match self.error.kind() {
            ErrorKind::UnknownArgument => format!("unexpected argument '{option}' found"),
            ErrorKind::InvalidSubcommand => {
                let word = self.text(ContextKind::InvalidSubcommand).unwrap_or_default();
                format!("unrecognized subcommand '{word}'")
            }
            ErrorKind::MissingRequiredArgument => {
                let options = self.texts(ContextKind::InvalidArg).join(" ");
                format!("the following required arguments were not provided: {options}")
            }
            ErrorKind::ArgumentConflict => self.conflict(option),
            ErrorKind::InvalidValue | ErrorKind::ValueValidation => self.invalid_value(option),
            ErrorKind::NoEquals => {
                format!("equal sign is needed when assigning values to '{option}'")
            }
            ErrorKind::TooManyValues => {
                let value = self.text(ContextKind::InvalidValue).unwrap_or_default();
                format!("'{option}' takes no value, and '{value}' is given")
            }
            kind => format!("{option} {kind}").trim_start().to_owned(),
        }
    }

    fn conflict(&self, option: &str) -> String {
        let option = self.quoted(option);
        match self.others() {
            [] => format!("the argument {option} cannot be used multiple times"),
            [other] => format!("the argument {option} cannot be used with {}", self.quoted(other)),
            others => format!("the argument {option} cannot be used with: {}", others.join(" ")),
        }
    }

    /// `option` in quotes, and the name that it was given by, if that is another.
    fn quoted(&self, option: &str) -> String {
        match self.other_name(option) {
            Some(given) => format!("'{option}' (given as --{given})"),
            None => format!("'{option}'"),
        }
    }

    /// The name that `option` was given by, if that is another.
    fn other_name(&self, option: &str) -> Option<&str> {
        let name = bare(option).trim_start_matches('-');
        self.given.get(name).map(String::as_str).filter(|given| folded(given) != name)
    }

    /// The arguments that conflict with this one; empty where it was given twice.
    fn others(&self) -> &[String] {
        let others = self.texts(ContextKind::PriorArg);
        let is_same = self.text(ContextKind::InvalidArg) == others.first().map(String::as_str);
        if is_same { &[] } else { others }
    }

    fn invalid_value(&self, option: &str) -> String {
        let value = self.text(ContextKind::InvalidValue).unwrap_or_default();
        let words = self.texts(ContextKind::ValidValue);
        let known = match words {
            [] => String::new(),
            words => format!(" [possible values: {}]", words.join(", ")),
        };
        if value.is_empty() {
            let option = self.quoted(option);
            return format!("a value is required for {option} but none was supplied{known}");
        }
        let invalid = format!("invalid value '{value}' for {}{known}", self.quoted(option));
        match (self.number(), self.own(), self.error.source()) {
            (Some(number), ..) => format!("{invalid}: {}", number.what),
            (None, Some(own), _) => format!("{invalid}: {}", own.said()),
            (None, None, Some(why)) => format!("{invalid}: {why}"),
            (None, None, None) => invalid,
        }
    }

    /// The error of this program because of which a value was refused.
    fn own(&self) -> Option<&Error> {
        self.error.source()?.downcast_ref()
    }

    /// The error for a text that isn't a number, where an option takes one.
    fn number(&self) -> Option<Number> {
        let why = self.error.source()?;
        if why.is::<ParseFloatError>() {
            return Some(Number { what: "not a number", example: "a number, such as 0.5" });
        }
        Some(match why.downcast_ref::<ParseIntError>()?.kind() {
            IntErrorKind::PosOverflow => {
                Number { what: "too large a number", example: "a smaller number, such as 4" }
            }
            _ => Number {
                what: "not a whole number of 0 or more",
                example: "a whole number, such as 4",
            },
        })
    }

    /// The remedy.
    fn remedy(&self) -> String {
        match self.error.kind() {
            ErrorKind::UnknownArgument => self.of_unknown(),
            ErrorKind::InvalidSubcommand => self.of_command(),
            ErrorKind::ArgumentConflict => match self.others().first() {
                Some(other) => {
                    let option = self.text(ContextKind::InvalidArg).unwrap_or_default();
                    format!("leave {} or {} out", bare(option), bare(other))
                }
                None => "give it once".to_owned(),
            },
            ErrorKind::TooManyValues => switches::without_value(
                self.text(ContextKind::InvalidArg).unwrap_or_default(),
                self.text(ContextKind::InvalidValue).unwrap_or_default(),
            ),
            _ => self.of_value(),
        }
    }

    fn of_unknown(&self) -> String {
        let given = self.text(ContextKind::InvalidArg).unwrap_or_default();
        let Some(command) = self.command else { return self.help() };
        switches::followed_by(given, self.words, command)
            .or_else(|| peers::instead(given, command, program().get_subcommands()))
            .or_else(|| switches::opposite(given, command))
            .or_else(|| alike::option(given, command))
            .unwrap_or_else(|| self.help())
    }

    fn of_command(&self) -> String {
        let given = self.text(ContextKind::InvalidSubcommand).unwrap_or_default();
        if let Some(here) = peers::command_instead(given) {
            return format!("that is moe-convert {here} here");
        }
        let program = program();
        let alike = alike::best(given, program.get_subcommands().map(Command::get_name));
        alike.map_or_else(|| self.help(), |other| format!("a similar subcommand exists: '{other}'"))
    }

    fn of_value(&self) -> String {
        let value = self.text(ContextKind::InvalidValue).unwrap_or_default();
        let option = self.text(ContextKind::InvalidArg).unwrap_or_default();
        if let Some(Number { example, .. }) = self.number() {
            let is_share = !option.contains("<SHARE>") && is_percentage(value);
            let what = if is_share { "this option takes a number, not a share: " } else { "" };
            return format!("{what}give {example}; {}", self.help());
        }
        let known = self.texts(ContextKind::ValidValue).iter().map(String::as_str);
        let own = self.own().and_then(Error::named_remedy).or_else(|| self.of_device());
        own.map(str::to_owned)
            .or_else(|| Some(format!("a similar value exists: '{}'", alike::best(value, known)?)))
            .or_else(|| peers::row(self.other_name(option)?, self.command?))
            .unwrap_or_else(|| self.help())
    }

    /// The remedy for a device that doesn't exist.
    fn of_device(&self) -> Option<&str> {
        self.error.source()?.downcast_ref().map(DeviceError::remedy)
    }

    fn help(&self) -> String {
        let command =
            self.command.map_or(String::new(), |command| format!("{} ", command.get_name()));
        format!("see moe-convert {command}--help")
    }
}

/// The message and remedy for a text that isn't a number.
struct Number {
    what: &'static str,
    example: &'static str,
}

/// `option` without the name of its value.
fn bare(option: &str) -> &str {
    option.split(' ').next().unwrap_or(option)
}

/// Whether `value` is a share in per cent.
fn is_percentage(value: &str) -> bool {
    let number = value.trim().strip_suffix('%');
    number.is_some_and(|number| number.trim_end().parse::<f64>().is_ok_and(f64::is_finite))
}
