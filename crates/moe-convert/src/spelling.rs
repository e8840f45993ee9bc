//! The command line in the spelling that clap reads.

use std::collections::BTreeMap;
use std::ffi::OsString;

use clap::{Arg, ArgAction, Command};
use moe_checkpoint::{Error, Kind, Result};
use moe_pipeline::spelling;

/// Words of the command line, the program's name first, and what is said of how they were written.
pub struct Respelled {
    pub words: Vec<OsString>,
    pub notes: Vec<String>,
}

/// `words` with options of `command` under the names that they have here, and values in the
/// spelling that they take.
///
/// # Errors
/// Where two names of an option are given that takes one value.
pub fn respell(words: Vec<OsString>, command: &Command) -> Result<Respelled> {
    let mut respelled = Respelled { words: Vec::new(), notes: Vec::new() };
    let mut given = BTreeMap::new();
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        if word == "--" {
            respelled.words.push(word);
            break;
        }
        let Some(written) = word.to_str().and_then(|word| word.strip_prefix("--")) else {
            respelled.words.push(word);
            continue;
        };
        let (written, mut value) = match written.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (written.to_owned(), None),
        };
        let spelled = spelling::option(&written, command);
        let name = spelled.as_ref().map_or(&written, |spelled| &spelled.option).clone();
        let Some(arg) = command.get_arguments().find(|arg| arg.get_long() == Some(&name)) else {
            respelled.words.push(word);
            continue;
        };
        let is_joined = value.is_some();
        let mut last = None;
        if takes_next(arg) && !is_joined {
            last = words.next();
            value = last.as_ref().and_then(|word| word.to_str()).map(str::to_owned);
        }
        check_one(arg, &written, &name, &mut given)?;
        if let Some(spelled) = &spelled {
            value = value.map(|value| spelled.value(&value));
            if spelled.is_earlier {
                let note = spelling::renamed(&format!("--{written}"), &format!("--{name}"));
                respelled.notes.push(note);
            }
        }
        let value = value.map(|value| spelling::value(&value, arg).unwrap_or(value));
        match value {
            Some(value) if is_joined => respelled.words.push(format!("--{name}={value}").into()),
            value => {
                respelled.words.push(format!("--{name}").into());
                // A value that isn't UTF-8 stays as it is.
                respelled.words.extend(value.map(OsString::from).or(last));
            }
        }
    }
    respelled.words.extend(words);
    respelled.notes.sort();
    respelled.notes.dedup();
    Ok(respelled)
}

/// Whether the next word is the value of `arg`.
fn takes_next(arg: &Arg) -> bool {
    arg.get_action().takes_values() && !arg.is_require_equals_set()
}

/// Refuses to give `arg` under two names; `given` has the names that were written so far.
fn check_one(
    arg: &Arg,
    written: &str,
    name: &str,
    given: &mut BTreeMap<String, String>,
) -> Result<()> {
    let earlier = given.insert(name.to_owned(), written.to_owned());
    match earlier.filter(|earlier| earlier != written) {
        Some(earlier) if !matches!(arg.get_action(), ArgAction::Append) => {
            let what = format!("--{earlier} and --{written} are one option, and both are given");
            Err(Error::new(Kind::Usage, what).remedy(format!("give --{name} alone, once")))
        }
        _ => Ok(()),
    }
}
