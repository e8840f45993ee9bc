//! Tests that the text of `--help` is the one in `help/`, and that every example in it runs.
//!
//! `BLESS=1 cargo test -p moe-convert --test it help::` rewrites the files after an intended
//! change.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;

use crate::common::{Sandbox, assert_none, root};

/// The words under "Commands:", and an empty one for the program without a command.
fn commands() -> Vec<String> {
    let help = Sandbox::new().run("--help").succeeds().stdout;
    let commands = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    // Further lines of a description are indented more.
    let lines = commands.lines().filter(|l| l.starts_with("  ") && !l.starts_with("   "));
    let names = lines.filter_map(|line| line.split_whitespace().next());
    [""].into_iter().chain(names.filter(|name| *name != "help")).map(str::to_owned).collect()
}

/// The name of the file with the help of `command`.
fn file_name(command: &str) -> String {
    format!("{}.txt", if command.is_empty() { "moe-convert" } else { command })
}

#[test]
fn every_help_that_was_is_there() {
    let commands: BTreeSet<String> = commands().iter().map(|name| file_name(name)).collect();
    let files = fs::read_dir(root().join("tests/help")).unwrap();
    let files = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    assert_eq!(files.collect::<BTreeSet<_>>(), commands);
}

#[test]
fn help_is_what_it_was() {
    let bless = std::env::var_os("BLESS").is_some_and(|v| v == "1");
    let mut problems = Vec::new();
    for command in commands() {
        let found = Sandbox::new()
            .shell(&format!("COLUMNS=110 moe-convert {command} --help"))
            .succeeds()
            .stdout;
        let name = file_name(&command);
        let path = root().join("tests/help").join(&name);
        if bless {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, &found).unwrap();
        } else if fs::read_to_string(&path).unwrap_or_default() != found {
            problems.push(format!(
                "{command} --help differs from tests/help/{name}; if it should, run with BLESS=1\n{found}"
            ));
        }
    }
    assert_none(&problems);
}

/// The indented lines under "Example:" or "Examples:". Lines that end in a backslash are joined
/// with the next.
fn examples(help: &str) -> Vec<String> {
    let lines = help.lines().skip_while(|l| !l.starts_with("Example")).skip(1);
    let block: Vec<_> = lines.take_while(|l| l.starts_with("  ")).map(str::trim).collect();
    block.join("\n").replace("\\\n", " ").lines().map(str::to_owned).collect()
}

/// Runs every example as a reader would: those of a command one after the other, in one directory.
#[test]
fn examples_run() {
    let mut problems = Vec::new();
    // contract/machine.rs runs this example and checks its output.
    let mut seen = BTreeSet::from(["moe-convert selftest".to_owned()]);
    for command in commands() {
        let sandbox = Sandbox::new();
        symlink(root().join("recipes"), sandbox.path("recipes")).unwrap();
        fs::create_dir(sandbox.path("target")).unwrap();
        let examples = examples(&sandbox.run(&format!("{command} --help")).succeeds().stdout);
        assert!(!examples.is_empty(), "{command} has no example");
        let (reads, writes) = (" target/moe-8x ", "-o target/moe-8x ");
        if examples.iter().any(|e| e.contains(reads))
            && !examples.iter().any(|e| e.contains(writes))
        {
            // The result that the examples of `upcycle` write.
            sandbox
                .run("upcycle golden/models/dense -o target/moe-8x --experts 8 --top-k 2")
                .succeeds();
        }
        for example in examples {
            // An example without an output of its own has to run only once.
            if !example.contains(" -o ") && !seen.insert(example.clone()) {
                continue;
            }
            let outcome = sandbox.shell(&quickly(&example.replace("/tmp/", "tmp/")));
            if outcome.code != 0 {
                problems.push(format!("{command} --help: {outcome}"));
            }
        }
    }
    assert_none(&problems);
}

/// The command with fewer steps where it doesn't give their number, and with the cheapest pass: its
/// output is similar, and it takes seconds. `scripts/nightly` runs a benchmark of every pass, which
/// took half of the time of all examples.
fn quickly(command: &str) -> String {
    match command.contains("moe-convert distill ") && !command.contains("--steps") {
        true => format!("{command} --steps 4"),
        false => command.replace("--passes quantize", "--passes prune"),
    }
}

/// The `sh` commands of a page, in order, as a reader would paste them.
#[track_caller]
fn commands_run(page: &str) {
    let text = fs::read_to_string(root().join(page)).unwrap();
    let blocks = text.split("```sh\n").skip(1).filter_map(|b| b.split("```").next());
    let joined = blocks.collect::<String>().replace("\\\n", " ");
    let commands: Vec<_> = joined.lines().filter(|line| line.starts_with("moe-convert ")).collect();
    assert!(commands.len() >= 5, "{commands:?}");
    let sandbox = Sandbox::new();
    symlink(root().join("recipes"), sandbox.path("recipes")).unwrap();
    fs::create_dir(sandbox.path("target")).unwrap();
    for command in commands {
        sandbox.shell(&format!("HOME=$PWD\n{}", quickly(command))).succeeds();
    }
    // Commands that a reader pastes in a clone leave no files in it.
    let left: Vec<_> =
        sandbox.names(".").into_iter().filter(|name| !name.starts_with('.')).collect();
    assert_eq!(left, ["golden", "recipes", "target"], "{page}");
}

#[test]
fn commands_in_the_readme_run() {
    commands_run("README.md");
}

#[test]
fn commands_in_the_guides_run() {
    commands_run("docs/upcycling.md");
    commands_run("docs/pruning.md");
    commands_run("docs/quantization.md");
    commands_run("docs/heal.md");
    commands_run("docs/distillation.md");
}
