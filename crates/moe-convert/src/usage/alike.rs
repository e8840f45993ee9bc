//! Finds what a mistyped name was meant to be.

use clap::Command;
use moe_pipeline::spelling::{OtherName, folded, other_names};

/// Minimum similarity of two names. Below it, proposals make no sense, such as --damping for
/// --ignore.
const ALIKE: f64 = 0.85;

/// The one of `known` that is most similar to `given`; None where none is similar.
pub fn best<'k>(given: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let given = folded(given);
    let alike =
        known.into_iter().map(|other| (strsim::jaro_winkler(&given, &folded(other)), other));
    let alike = alike.filter(|(alike, _)| *alike >= ALIKE);
    alike.max_by(|one, other| one.0.total_cmp(&other.0)).map(|(_, other)| other)
}

/// The sentence that names the option of `command` that is most similar to `given`, among its
/// names here, its earlier names and those of other tools.
pub fn option(given: &str, command: &Command) -> Option<String> {
    let bare = given.trim_start_matches('-').split('=').next()?;
    let own: Vec<&str> = command
        .get_arguments()
        .filter(|arg| !arg.is_hide_set())
        .filter_map(clap::Arg::get_long)
        .collect();
    let others: Vec<OtherName> = other_names(command).collect();
    // The names here come last: of equally similar ones, the last is taken.
    let names = others.iter().map(|other| other.name).chain(own.iter().copied());
    let name = best(bare, names)?;
    let is = match others.iter().find(|other| other.name == name) {
        Some(other) if !own.contains(&name) => {
            let when = if other.is_earlier { "now " } else { "" };
            format!(", which is {when}'--{}'", other.option)
        }
        _ => String::new(),
    };
    Some(format!("a similar argument exists: '--{name}'{is}"))
}
