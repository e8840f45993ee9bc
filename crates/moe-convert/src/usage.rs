//! What clap refuses, in the three parts that all errors have: what, where, remedy.

mod peers;

use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use moe_checkpoint::{Error, Kind};

use crate::bar::say;
use crate::cli::{called, program};
use crate::stdout::print_error;

/// Below this, two names have little in common, and clap proposes nonsense: --ridge for --ignore.
const ALIKE: f64 = 0.85;

/// Prints help and versions where they were asked for, and errors as those of this program.
pub fn report(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        // Where nobody reads it any more, nobody misses it.
        let _ = error.print();
    } else {
        let arguments: Vec<String> =
            std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
        let command = called(&arguments);
        let remedy = remedy(error, command.as_ref());
        let (what, remedy) = what_and_remedy(
            &error.render().to_string(),
            command.as_ref().map(clap::Command::get_name),
            remedy,
        );
        say(&format!("{what}\n  remedy: {remedy}"));
        if arguments.iter().any(|word| word == "--json") {
            let what = what.trim_start_matches("error: ");
            print_error(&Error::new(Kind::Usage, what).remedy(remedy));
        }
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

/// What is to be done about `error` in the arguments of `command`, where more is known than clap
/// says.
fn remedy(error: &clap::Error, command: Option<&clap::Command>) -> Option<Remedy> {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        Some(ContextValue::Strings(texts)) => texts.first().map(String::as_str),
        _ => None,
    };
    match error.kind() {
        ErrorKind::UnknownArgument => {
            let given = text(ContextKind::InvalidArg)?;
            if let ["true" | "false"] = [given] {
                return switch(given).map(Remedy::Whole);
            }
            let known = command.and_then(|command| peers::instead(given, command, &program()));
            Some(match (known, text(ContextKind::SuggestedArg)) {
                (Some(known), _) => Remedy::Whole(known),
                (None, Some(other)) if is_alike(given, other) => return None,
                _ => Remedy::Help,
            })
        }
        ErrorKind::InvalidSubcommand => {
            let given = text(ContextKind::InvalidSubcommand)?;
            Some(match (peers::command_instead(given), text(ContextKind::SuggestedSubcommand)) {
                (Some(here), _) => Remedy::Whole(format!("that is moe-convert {here} here")),
                (None, Some(other)) if is_alike(given, other) => return None,
                _ => Remedy::Help,
            })
        }
        ErrorKind::ArgumentConflict => {
            let (one, other) = (text(ContextKind::InvalidArg)?, text(ContextKind::PriorArg)?);
            let bare = |option: &str| option.split(' ').next().unwrap_or(option).to_owned();
            Some(Remedy::Whole(format!("leave {} or {} out", bare(one), bare(other))))
        }
        ErrorKind::InvalidValue => {
            word(error).map(Remedy::Whole).or_else(|| number(error).map(Remedy::BesideHelp))
        }
        _ => number(error).map(Remedy::BesideHelp),
    }
}

/// What is said instead of what clap proposes.
enum Remedy {
    /// All of it.
    Whole(String),
    /// This, and where to find help.
    BesideHelp(String),
    /// Where to find help.
    Help,
}

/// What the key of a recipe that `what` calls unknown is called here, where another tool's option
/// has its name.
pub fn key_instead(what: &str) -> Option<String> {
    let (place, rest) = what.split_once("unknown field `")?;
    let key = rest.split('`').next()?;
    let after = |mark: &str| place.split_once(mark).map(|(_, rest)| rest);
    let command = after("[defaults.").or_else(|| after("("))?;
    let command = command.split([']', ')', ';']).next()?;
    let program = program();
    let said = peers::instead(&format!("--{key}"), program.find_subcommand(command)?, &program)?;
    // The model and the output have keys.
    let is_positional = said.contains("moe-convert ") || said.contains("-o OUT");
    (!is_positional).then(|| said.replace("--", ""))
}

/// Whether clap's proposal is worth repeating.
fn is_alike(given: &str, proposed: &str) -> bool {
    let bare = |option: &str| option.trim_start_matches('-').to_owned();
    strsim::jaro_winkler(&bare(given), &bare(proposed)) >= ALIKE
}

/// The word that a value is but for its case, or `_` for `-`.
fn word(error: &clap::Error) -> Option<String> {
    let Some(ContextValue::String(value)) = error.get(ContextKind::InvalidValue) else {
        return None;
    };
    let Some(ContextValue::Strings(words)) = error.get(ContextKind::ValidValue) else {
        return None;
    };
    let meant = value.to_ascii_lowercase().replace('_', "-");
    let meant = DTYPES
        .iter()
        .find(|(names, _)| names.contains(&meant.as_str()))
        .map_or(meant, |(_, name)| (*name).to_owned());
    words.iter().find(|word| **word == meant).map(|word| format!("write it as {word}"))
}

/// How an option is turned on or off, where a word of its own behind it says `given`.
fn switch(given: &str) -> Option<String> {
    let arguments: Vec<String> =
        std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    let at = arguments.iter().position(|word| word == given)?;
    let option = arguments.get(at.checked_sub(1)?).filter(|option| option.starts_with("--"))?;
    Some(match option.as_str() {
        "--act-order" => format!("write it as {option}={given}"),
        _ if given == "true" => format!("leave {given} out: {option} alone turns it on"),
        _ => format!("leave {option} and {given} out: it is off without them"),
    })
}

/// What other tools call types of numbers.
const DTYPES: [(&[&str], &str); 3] = [
    (&["bfloat16", "bf-16"], "bf16"),
    (&["float32", "fp32", "float"], "f32"),
    (&["float16", "fp16", "half"], "f16"),
];

/// What to write instead of a text that is not the number that an option takes; none for another
/// error.
fn number(error: &clap::Error) -> Option<String> {
    let Some(ContextValue::String(value)) = error.get(ContextKind::InvalidValue) else {
        return None;
    };
    let said = error.to_string();
    let example =
        PLAIN.iter().find(|(of_rust, ..)| said.contains(of_rust)).map(|(.., example)| example)?;
    let share: Option<f64> =
        value.trim().strip_suffix('%').and_then(|number| number.trim_end().parse().ok());
    match share.filter(|share| share.is_finite()) {
        Some(share) if said.contains("<SHARE>") => {
            Some(format!("write {share} % as {}", share / 100.0))
        }
        Some(_) => Some(format!("this option takes a number, not a share: give {example}")),
        None => Some(format!("give {example}")),
    }
}

/// What Rust says of texts that are not numbers, what is said instead, and what is right.
const PLAIN: [(&str, &str, &str); 4] = [
    ("invalid float literal", "not a number", "a number, such as 0.5"),
    (
        "invalid digit found in string",
        "not a whole number of 0 or more",
        "a whole number, such as 4",
    ),
    ("number too large to fit in target type", "too large a number", "a smaller number, such as 4"),
    (
        "cannot parse integer from empty string",
        "not a whole number of 0 or more",
        "a whole number, such as 4",
    ),
];

/// What is wrong and the remedy, out of clap's text: what is wrong, over several lines; tips;
/// usage; and where to find help.
fn what_and_remedy(text: &str, command: Option<&str>, remedy: Option<Remedy>) -> (String, String) {
    let mut text = PLAIN
        .iter()
        .fold(text.to_owned(), |text, (of_rust, plain, _)| text.replace(of_rust, plain));
    // clap shows the bounds of a number as Rust writes a range.
    if text.contains(" is not in ") {
        text = text.replace(" is not in ", " is not from ").replace("..=", " to ");
    }
    let text = &text;
    let after = |start: &'static str| {
        text.lines().filter_map(move |line| line.trim_start().strip_prefix(start))
    };
    // No option takes what begins with a hyphen.
    let is_remedy = |tip: &&str| !tip.starts_with("to pass '-");
    let remedies: Vec<&str> = after("tip: ")
        .map(str::trim)
        .filter(is_remedy)
        .chain(after("remedy: ").map(str::trim))
        .collect();
    let is_what = |line: &&str| !line.is_empty() && !line.trim_start().starts_with("remedy: ");
    let what: Vec<&str> = text.lines().take_while(is_what).map(str::trim).collect();
    let mut error = what.join(" ");
    if let Some(usage) = after("Usage: ").next() {
        error += &format!("\n  usage:  {usage}");
    }
    let help = || {
        format!(
            "see moe-convert {}--help",
            command.map_or(String::new(), |command| format!("{command} "))
        )
    };
    let given = || if remedies.is_empty() { help() } else { remedies.join("; ") };
    let remedy = match remedy {
        Some(Remedy::Whole(remedy)) => remedy,
        Some(Remedy::BesideHelp(remedy)) => format!("{remedy}; {}", help()),
        Some(Remedy::Help) => help(),
        None => given(),
    };
    (error, remedy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;

    fn refused(line: &str) -> String {
        let error = Cli::read(line.split(' ')).err();
        let text = error.as_ref().map(|error| error.render().to_string());
        let arguments: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let command = called(&arguments);
        let remedy = error.as_ref().and_then(|error| remedy(error, command.as_ref()));
        let command = command.as_ref().map(clap::Command::get_name);
        let (what, remedy) = what_and_remedy(&text.unwrap_or_default(), command, remedy);
        format!("{what}\n  remedy: {remedy}")
    }

    #[test]
    fn errors_of_clap_have_what_where_and_a_remedy() {
        assert_eq!(
            refused("moe-convert upcycle dense --experts 4"),
            "error: the following required arguments were not provided: --output <OUT> --top-k <K>\n  \
             usage:  moe-convert upcycle --output <OUT> --experts <N> --top-k <K> <MODEL>\n  \
             remedy: see moe-convert upcycle --help"
        );
        assert_eq!(
            refused("moe-convert verify model --memory-budget much"),
            "error: invalid value 'much' for '--memory-budget <SIZE>': \"much\" is not a size\n  \
             remedy: write it as 5GB, 8GiB, 500MiB or in bytes"
        );
    }

    #[test]
    fn shares_in_per_cent_and_schemes_of_others_have_a_way_on() {
        for (line, what, remedy) in [
            (
                "moe-convert prune model -o out --keep 75%",
                "'75%' for '--keep <SHARE>': not a number",
                "write 75 % as 0.75",
            ),
            (
                "moe-convert eval model --data t --min-agreement 99.5%",
                "not a number",
                "write 99.5 % as 0.995",
            ),
            (
                "moe-convert prune model -o out --experts 50%",
                "not a whole number",
                "takes a number, not a share",
            ),
            (
                "moe-convert quantize model -o out --target-bits 50%",
                "not a number",
                "takes a number, not a share",
            ),
            ("moe-convert verify model --memory-budget 50%", "not a size", "write it as 5GB"),
            ("moe-convert verify model --memory-budget -5GB", "not a size", "write it as 5GB"),
            (
                "moe-convert upcycle model -o out --experts -4 --top-k 1",
                "not a whole number",
                "such as 4",
            ),
            (
                "moe-convert prune model -o out --seed 99999999999999999999",
                "too large",
                "a smaller number",
            ),
            (
                "moe-convert quantize model -o out --gate-power 3",
                "3 is not from 0 to 2",
                "see moe-convert quantize",
            ),
            (
                "moe-convert prune model -o out --keep much",
                "not a number",
                "see moe-convert prune --help",
            ),
            (
                "moe-convert quantize model -o out --scheme w8a8",
                "no scheme \"w8a8\"",
                "fp8 is what engines run",
            ),
            ("moe-convert quantize model -o out --scheme w4a61", "no scheme", "give w4a16"),
            ("moe-convert quantize model -o out --scheme W4A16", "no scheme", "write it as w4a16"),
            (
                "moe-convert prune model -o out --keep 0.5 --method REAP",
                "'REAP'",
                "write it as reap",
            ),
            ("moe-convert eval model --data t --dtype bfloat16", "'bfloat16'", "write it as bf16"),
            ("moe-convert eval model --held-out t", "'--held-out'", "give --data TEXT"),
            (
                "moe-convert prune model -o out --plan p --method reap",
                "'--method",
                "leave --plan or --method out",
            ),
            (
                "moe-convert prune model -o out --plan p --keep 0.5",
                "'--keep",
                "leave --plan or --keep out",
            ),
            ("moe-convert quantize model -o out --bits 4", "'--bits'", "give --scheme w4a16"),
            (
                "moe-convert quantize model -o out --ignore lm_head",
                "'--ignore'",
                "routed experts alone",
            ),
            (
                "moe-convert merge model -o out --num-experts 4",
                "'--num-experts'",
                "give --experts N",
            ),
            ("moe-convert merge model -o out --output-dir x", "'--output-dir'", "give -o OUT"),
            ("moe-convert quantize model -o out --rigde 1", "'--rigde'", "'--ridge'"),
            (
                "moe-convert quantize model -o out --rigmarole 1",
                "'--rigmarole'",
                "see moe-convert quantize --help",
            ),
            ("moe-convert evaluate model", "'evaluate'", "moe-convert eval"),
            ("moe-convert convert model", "'convert'", "see moe-convert --help"),
            ("moe-convert run r.toml --overwrite", "goes with --junit", "or leave --overwrite"),
        ] {
            let error = refused(line);
            let (before, after) = error.split_once("\n  remedy: ").unwrap();
            assert!(before.contains(what) && after.contains(remedy), "{line}: {error}");
        }
    }

    #[test]
    fn keys_of_recipes_have_their_names_here() {
        for (what, said) in [
            (
                "line 5, step 1 (quantize): unknown field `bits`, expected one of scheme",
                Some("give scheme w4a16"),
            ),
            (
                "line 5, step 2.1 (heal; seed 0): unknown field `epochs`, expected",
                Some("give steps N"),
            ),
            (
                "line 2, [defaults.heal]: unknown field `lr`, expected",
                Some("give learning-rate RATE"),
            ),
            ("step 1 (prune): unknown field `keeep`, expected", None),
            ("step 1 (prune): unknown field `output-dir`, expected", None),
            ("the recipe has no step", None),
        ] {
            let found = key_instead(what);
            let fits = said.map_or(found.is_none(), |said| {
                found.as_ref().is_some_and(|found| found.starts_with(said))
            });
            assert!(fits, "{what}: {found:?}");
        }
    }

    #[test]
    fn what_clap_proposes_is_the_remedy() {
        let error = refused("moe-convert quantise model");
        assert!(
            error.contains("unrecognized subcommand 'quantise'")
                && error.contains("remedy: a similar"),
            "{error}"
        );
        let error = refused("moe-convert prune model -o out --methd reap");
        assert!(
            error.contains("unexpected argument '--methd'") && error.contains("remedy: a similar"),
            "{error}"
        );
        let error = refused("moe-convert prune model -o out --method best");
        assert!(
            error.contains("[possible values: reap, ")
                && error.contains("\n  remedy: see moe-convert prune"),
            "{error}"
        );
    }
}
