//! Errors of the command line, in the three parts that all errors have: what, where, remedy.
//!
//! The errors are made from the kind and the context of clap's errors, and from errors of value
//! parsers. No text of clap's is read.

mod peers;
#[cfg(test)]
mod tests;

use std::error::Error as _;
use std::num::{IntErrorKind, ParseFloatError, ParseIntError};
use std::process::ExitCode;

use clap::Command;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use moe_checkpoint::{Error, Kind};
use moe_pipeline::spelling::folded;

use crate::bar::say;
use crate::cli::{as_text, called, has_option, program};
use crate::refusal::Refusal;
use crate::stdout::print_error;

/// Minimum similarity of two names. Below it, clap's proposals make no sense, such as --damping for
/// --ignore.
const ALIKE: f64 = 0.85;

/// Prints help and versions that were asked for, and errors in the form of this program.
pub fn report(refusal: Refusal) -> ExitCode {
    let words = as_text(std::env::args_os());
    let error = match refusal {
        Refusal::Clap(error) if is_help(&error) => {
            // Errors are ignored: nobody reads it any more.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
        Refusal::Clap(error) => of_clap(&error, &words),
        Refusal::Own(error) => error,
    };
    say(&format!("error: {error}"));
    if has_option(&words, "--json") {
        print_error(&error);
    }
    ExitCode::from(2)
}

fn is_help(error: &clap::Error) -> bool {
    !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
}

/// `error` of clap in the command line `words`, as an error of this program.
fn of_clap(error: &clap::Error, words: &[String]) -> Error {
    let command = called(words);
    let refused = Refused { error, words, command: command.as_ref() };
    let usage = error.get(ContextKind::Usage).map_or(String::new(), |usage| {
        let usage = usage.to_string();
        format!("\n  usage:  {}", usage.trim_start_matches("Usage: "))
    });
    Error::new(Kind::Usage, refused.what() + &usage).remedy(refused.remedy())
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
}

impl Refused<'_> {
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
            kind => format!("{option} {kind}").trim_start().to_owned(),
        }
    }

    fn conflict(&self, option: &str) -> String {
        match self.others() {
            [] => format!("the argument '{option}' cannot be used multiple times"),
            [other] => format!("the argument '{option}' cannot be used with '{other}'"),
            others => format!("the argument '{option}' cannot be used with: {}", others.join(" ")),
        }
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
            return format!("a value is required for '{option}' but none was supplied{known}");
        }
        let invalid = format!("invalid value '{value}' for '{option}'{known}");
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
            _ => self.of_value(),
        }
    }

    fn of_unknown(&self) -> String {
        let given = self.text(ContextKind::InvalidArg).unwrap_or_default();
        if ["true", "false"].contains(&given)
            && let Some(remedy) = switch(given, self.words)
        {
            return remedy;
        }
        let known = self
            .command
            .and_then(|command| peers::instead(given, command, program().get_subcommands()));
        let alike = self.text(ContextKind::SuggestedArg).filter(|other| is_alike(given, other));
        match (known, alike) {
            (Some(known), _) => known,
            (None, Some(other)) => format!("a similar argument exists: '{other}'"),
            (None, None) => self.help(),
        }
    }

    fn of_command(&self) -> String {
        let given = self.text(ContextKind::InvalidSubcommand).unwrap_or_default();
        let alike =
            self.text(ContextKind::SuggestedSubcommand).filter(|other| is_alike(given, other));
        match (peers::command_instead(given), alike) {
            (Some(here), _) => format!("that is moe-convert {here} here"),
            (None, Some(other)) => format!("a similar subcommand exists: '{other}'"),
            (None, None) => self.help(),
        }
    }

    fn of_value(&self) -> String {
        if let Some(Number { example, .. }) = self.number() {
            let value = self.text(ContextKind::InvalidValue).unwrap_or_default();
            let is_share = value
                .trim()
                .strip_suffix('%')
                .is_some_and(|number| number.trim_end().parse::<f64>().is_ok_and(f64::is_finite));
            let what = if is_share { "this option takes a number, not a share: " } else { "" };
            return format!("{what}give {example}; {}", self.help());
        }
        let own = self.own().and_then(Error::named_remedy).map(str::to_owned);
        let alike = self.text(ContextKind::SuggestedValue);
        own.or_else(|| alike.map(|word| format!("a similar value exists: '{word}'")))
            .unwrap_or_else(|| self.help())
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

/// Whether clap's proposal is similar enough to be repeated.
fn is_alike(given: &str, proposed: &str) -> bool {
    let [given, proposed] = [given, proposed].map(|option| option.trim_start_matches('-'));
    strsim::jaro_winkler(given, proposed) >= ALIKE
}

/// Returns the remedy if an option that is only turned on or off is followed by the separate word
/// `given`; None otherwise.
fn switch(given: &str, words: &[String]) -> Option<String> {
    let at = words.iter().position(|word| word == given)?;
    let option = words.get(at.checked_sub(1)?).filter(|option| option.starts_with("--"))?;
    Some(match folded(option).as_str() {
        "--act-order" => format!("write it as {option}={given}"),
        _ if given == "true" => format!("leave {given} out: {option} alone turns it on"),
        _ => format!("leave {option} and {given} out: it is off without them"),
    })
}
