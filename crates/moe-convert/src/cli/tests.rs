//! Compares the defaults that guides state with those of the command line.

use std::path::Path;

use super::program;

/// Guides, and the commands whose options they describe.
const GUIDES: [(&str, &[&str]); 5] = [
    ("pruning", &["prune", "merge", "observe"]),
    ("quantization", &["quantize"]),
    ("distillation", &["distill"]),
    ("heal", &["heal"]),
    ("upcycling", &["upcycle"]),
];

/// Options, and the defaults that `guide` states for them.
fn stated(guide: &str) -> Vec<(&str, &str)> {
    let mut stated = Vec::new();
    for option in guide.split("`--").skip(1) {
        let Some((option, rest)) = option.split_once('`') else { continue };
        // "`--shrinkage` (0.5)", "`--weight-decay` 0.01" and "`--forcing student` (default)".
        let behind = rest.trim_start_matches([' ', '(', ',']);
        let number = behind.split([' ', ')', ';', ',']).next().unwrap_or_default();
        match option.split_once(' ') {
            None if number.parse::<f64>().is_ok() => stated.push((option, number)),
            Some((option, word)) if behind.starts_with("default") => stated.push((option, word)),
            _ => {}
        }
    }
    // Rows of a table of values, of which one is marked as the default.
    let mut option = None;
    for line in guide.lines().filter(|line| !line.starts_with("|--")) {
        let cell = line.strip_prefix("| ").and_then(|row| row.split(" |").next());
        let Some(cell) = cell else {
            option = None;
            continue;
        };
        match (option, cell.strip_prefix("`--")) {
            (None, Some(name)) => option = Some(name.trim_end_matches('`')),
            (Some(option), _) if cell.contains("default") => {
                let word = cell.split([' ', ',']).next().unwrap_or_default();
                stated.push((option, word.trim_matches('`')));
            }
            _ => {}
        }
    }
    stated
}

/// Whether `option` of `command` has the default `stated`.
fn has_default(command: &clap::Command, option: &str, stated: &str) -> bool {
    let arg = command.get_arguments().find(|arg| arg.get_long() == Some(option));
    let defaults = arg.map(clap::Arg::get_default_values).unwrap_or_default();
    defaults.iter().any(|default| is_same(&default.to_string_lossy(), stated))
}

/// Whether both are the same word or number.
fn is_same(default: &str, stated: &str) -> bool {
    let numbers = default.parse::<f64>().ok().zip(stated.parse::<f64>().ok());
    default == stated || numbers.is_some_and(|(default, stated)| default == stated)
}

#[test]
fn guides_state_the_defaults_that_options_have() {
    let program = program();
    let mut problems = Vec::new();
    let mut count = 0;
    for (guide, commands) in GUIDES {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../docs/{guide}.md"));
        let guide = std::fs::read_to_string(&path).unwrap();
        for (option, stated) in stated(&guide) {
            count += 1;
            let mut commands = commands.iter().filter_map(|name| program.find_subcommand(name));
            if !commands.any(|command| has_default(command, option, stated)) {
                problems.push(format!("{}: --{option} {stated}", path.display()));
            }
        }
    }
    assert!(problems.is_empty(), "{problems:#?}");
    assert!(count >= 12, "{count}");
}
