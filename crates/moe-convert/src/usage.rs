//! What clap refuses, in the three parts that all errors have: what, where, remedy.

use std::process::ExitCode;

use clap::error::ErrorKind;

use crate::bar::say;
use crate::cli::called;

/// Prints help and versions where they were asked for, and errors as those of this program.
pub fn report(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        // Where nobody reads it any more, nobody misses it.
        let _ = error.print();
    } else {
        let arguments: Vec<String> = std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
        let command = called(&arguments);
        say(&three_parts(&error.render().to_string(), command.as_ref().map(clap::Command::get_name)));
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

/// clap's text is what is wrong, over several lines; tips; usage; and where to find help.
fn three_parts(text: &str, command: Option<&str>) -> String {
    let after = |start: &'static str| text.lines().filter_map(move |line| line.trim_start().strip_prefix(start));
    // No option takes what begins with a hyphen.
    let is_remedy = |tip: &&str| !tip.starts_with("to pass '-");
    let remedies: Vec<&str> =
        after("tip: ").map(str::trim).filter(is_remedy).chain(after("remedy: ").map(str::trim)).collect();
    let is_what = |line: &&str| !line.is_empty() && !line.trim_start().starts_with("remedy: ");
    let what: Vec<&str> = text.lines().take_while(is_what).map(str::trim).collect();
    let mut error = what.join(" ");
    if let Some(usage) = after("Usage: ").next() {
        error += &format!("\n  usage:  {usage}");
    }
    let help = || format!("see moe-convert {}--help", command.map_or(String::new(), |command| format!("{command} ")));
    error + "\n  remedy: " + &if remedies.is_empty() { help() } else { remedies.join("; ") }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::Cli;

    fn refused(line: &str) -> String {
        let error = Cli::try_parse_from(line.split(' ')).err().map(|error| error.render().to_string());
        three_parts(&error.unwrap_or_default(), line.split(' ').nth(1))
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
            "error: invalid value 'much' for '--memory-budget <SIZE>': \"much\" is no size\n  \
             remedy: write it as 5GB, 8GiB, 500MiB or in bytes"
        );
    }

    #[test]
    fn what_clap_proposes_is_the_remedy() {
        let error = refused("moe-convert quantise model");
        assert!(error.contains("unrecognized subcommand 'quantise'") && error.contains("remedy: a similar"), "{error}");
        let error = refused("moe-convert prune model -o out --methd reap");
        assert!(error.contains("unexpected argument '--methd'") && error.contains("remedy: a similar"), "{error}");
        let error = refused("moe-convert upcycle model -o out --experts -4 --top-k 1");
        assert!(
            error.contains("unexpected argument '-4'") && error.contains("remedy: see moe-convert upcycle"),
            "{error}"
        );
        let error = refused("moe-convert prune model -o out --method best");
        assert!(
            error.contains("[possible values: reap, ") && error.contains("\n  remedy: see moe-convert prune"),
            "{error}"
        );
    }
}
