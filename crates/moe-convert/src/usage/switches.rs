//! Remedies for switches that are given a value, or turned off by a name that doesn't exist.

use clap::{Arg, Command};
use moe_pipeline::spelling::{arg_named, folded};

/// The remedy where the switch `option` has the `value` after `=`.
pub fn without_value(option: &str, value: &str) -> String {
    match folded(value).as_str() {
        "false" => format!("leave {option}={value} out: it is off without that"),
        _ => format!("leave ={value} out: {option} alone turns it on"),
    }
}

/// The remedy if an option of `command` that is only turned on or off is followed by the separate
/// word `given`; None otherwise.
pub fn followed_by(given: &str, words: &[String], command: &Command) -> Option<String> {
    let value = folded(given);
    if !["true", "false"].contains(&value.as_str()) {
        return None;
    }
    let at = words.iter().position(|word| word == given)?;
    let option = words.get(at.checked_sub(1)?)?;
    let arg = arg_named(command, &folded(option.strip_prefix("--")?))?;
    Some(match value.as_str() {
        _ if arg.get_action().takes_values() => format!("write it as {option}={value}"),
        "true" => format!("leave {given} out: {option} alone turns it on"),
        _ => format!("leave {option} and {given} out: it is off without them"),
    })
}

/// The remedy for `given`, which would turn off what an option of `command` turns on, or on what
/// one turns off; None where there is no such option.
pub fn opposite(given: &str, command: &Command) -> Option<String> {
    let name = folded(given.strip_prefix("--")?.split('=').next()?);
    let Some(on) = name.strip_prefix("no-") else {
        let off = arg_named(command, &format!("no-{name}"))?.get_long()?;
        return Some(format!("leave it out: that is so unless --{off} is given"));
    };
    let arg = arg_named(command, on)?;
    if arg.get_action().takes_values() {
        is_switch(arg).then(|| format!("give --{on}=false"))
    } else {
        Some(format!("leave it out: that is so unless --{on} is given"))
    }
}

/// Whether `arg` takes true or false.
fn is_switch(arg: &Arg) -> bool {
    arg.get_possible_values().iter().any(|value| value.matches("false", false))
}
