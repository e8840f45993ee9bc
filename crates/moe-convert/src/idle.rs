//! Refuses options that would be ignored: without the option that they depend on, or in a command
//! where they have no meaning.

use clap::ArgMatches;
use clap::parser::ValueSource;
use moe_checkpoint::{Error, Kind, Result};

/// Commands, their options, and the option without which these have no effect. Options that recipes
/// have too are checked by `check` of their type.
const COMPANIONS: &[(&[&str], &[&str], &str)] =
    &[(&["observe"], &["seed"], "data"), (&["run"], &["overwrite"], "junit")];

/// Commands, common options that have no meaning there, and why.
const MEANINGLESS: &[(&[&str], &[&str], &str)] = &[
    (
        &["inspect", "verify", "report", "schema", "completions", "man"],
        &["dtype", "router-dtype", "device-memory"],
        "runs no model",
    ),
    (&["selftest"], &["dtype", "router-dtype"], "compares with outputs that are exact to f32"),
];

/// Refuses options of the command in `matches` that would be ignored.
pub fn check(matches: &ArgMatches) -> Result<()> {
    let Some((name, given)) = matches.subcommand() else { return Ok(()) };
    let Some((what, remedy)) = of_companions(name, given).or_else(|| meaningless(name, given))
    else {
        return Ok(());
    };
    Err(Error::new(Kind::Usage, what).remedy(remedy))
}

fn of_companions(name: &str, given: &ArgMatches) -> Option<(String, String)> {
    for (_, options, other) in COMPANIONS.iter().filter(|(commands, ..)| commands.contains(&name)) {
        let alone =
            options.iter().find(|option| is_given(given, option) && !is_given(given, other));
        if let Some(option) = alone {
            let what = format!("--{option} goes with --{other}");
            return Some((what, format!("give --{other}, or leave --{option} out")));
        }
    }
    None
}

fn meaningless(name: &str, given: &ArgMatches) -> Option<(String, String)> {
    let (_, options, why) = MEANINGLESS.iter().find(|(commands, ..)| commands.contains(&name))?;
    let option = options.iter().find(|option| is_given(given, option))?;
    Some((
        format!("--{option} means nothing to {name}, which {why}"),
        format!("leave --{option} out"),
    ))
}

/// Whether `option` was given on the command line.
fn is_given(given: &ArgMatches, option: &str) -> bool {
    given.value_source(&option.replace('-', "_")) == Some(ValueSource::CommandLine)
}

#[cfg(test)]
mod tests {
    use crate::cli::{Cli, program};
    use crate::refusal::Refusal;

    use super::*;

    #[test]
    fn every_option_of_the_tables_is_there() {
        let program = program();
        let rows =
            COMPANIONS.iter().map(|(commands, options, other)| (commands, options, Some(other)));
        for (commands, options, other) in
            rows.chain(MEANINGLESS.iter().map(|(c, o, _)| (c, o, None)))
        {
            for command in *commands {
                let command = program.find_subcommand(command).unwrap();
                for option in options.iter().chain(other) {
                    let has = |arg: &clap::Arg| {
                        arg.get_long() == Some(option)
                            && arg.get_id() == option.replace('-', "_").as_str()
                    };
                    assert!(command.get_arguments().any(has), "{} --{option}", command.get_name());
                }
            }
        }
    }

    /// Lines whose every option is used.
    const USED: [&str; 6] = [
        "prune m -o o --keep 0.5 --stats s --held-out h --held-out-tokens 64 --no-baseline",
        "prune m -o o --plan p.json --held-out h --sequence-length 64 --seed 1 --mtp drop",
        "observe m -o s --data d --no-left-out",
        "heal m -o o --data d --original o --original-logits top-k --original-logits-per-token 8",
        "verify m --device cpu --threads 1",
        "eval m --data d --dtype f32",
    ];

    /// Lines with an option that would be ignored, and what is said of it.
    const IGNORED: [(&str, &str); 8] = [
        ("observe m -o s --add t --seed 1", "goes with --data"),
        ("run r.toml --overwrite", "goes with --junit"),
        ("verify m --dtype f32", "runs no model"),
        ("report m --dtype f32", "runs no model"),
        ("selftest --router-dtype model", "exact to f32"),
        ("prune m -o o --plan p.json --criterion reap", "cannot be used with"),
        ("prune m -o o --plan p.json --divisible-by 1", "cannot be used with"),
        ("prune m -o o --plan p.json --keep-mass 0.9", "cannot be used with"),
    ];

    #[test]
    fn what_would_be_ignored_is_refused() {
        for (line, says) in IGNORED {
            let read = Cli::read(std::iter::once("moe-convert").chain(line.split(' ')));
            let text = match read.err() {
                Some(Refusal::Clap(error)) => error.to_string(),
                Some(Refusal::Own(error)) => error.to_string(),
                None => String::new(),
            };
            assert!(text.contains(says), "{line}: {text}");
        }
        for line in USED {
            let read = Cli::read(std::iter::once("moe-convert").chain(line.split(' ')));
            assert!(read.is_ok(), "{line}");
        }
    }
}
