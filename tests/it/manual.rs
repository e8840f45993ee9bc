//! Tests shell completions and man pages, which are made from the definitions of the command line.

use std::collections::BTreeSet;

use crate::common::{Sandbox, assert_none, has};

/// The completions that bash offers for the last of `words`.
fn completed(words: &str) -> Vec<String> {
    let script = format!(
        "source <(moe-convert completions bash)
         COMP_WORDS=({words}) COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
         completer=$(complete -p moe-convert | sed 's/.* -F \\([^ ]*\\).*/\\1/')
         $completer moe-convert \"${{COMP_WORDS[-1]}}\" \"${{COMP_WORDS[-2]}}\"
         printf '%s\\n' \"${{COMPREPLY[@]}}\""
    );
    let outcome = Sandbox::new().shell(&script).succeeds();
    assert_eq!(outcome.stderr, "", "{outcome}");
    outcome.stdout.lines().map(str::to_owned).collect()
}

#[test]
fn bash_completes_commands_options_and_values() {
    assert_eq!(completed("moe-convert quant"), ["quantize"]);
    assert_eq!(completed("moe-convert quantize --group"), ["--group-size"]);
    assert_eq!(completed("moe-convert prune --criterion rea"), ["reap"]);
    assert_eq!(completed("moe-convert eval --data-"), ["--data-tokens"]);
    let commands = completed("moe-convert ''");
    assert!(
        ["inspect", "heal", "man"].iter().all(|word| commands.iter().any(|c| c == word)),
        "{commands:?}"
    );
}

#[test]
fn every_shell_has_a_script_that_it_takes() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let sandbox = Sandbox::new();
        let script = sandbox.run(&format!("completions {shell}")).succeeds().stdout;
        let missing: Vec<_> =
            commands().into_iter().filter(|command| !script.contains(command.as_str())).collect();
        assert!(missing.is_empty(), "{shell}: {missing:?}");
        sandbox.write("script", &script);
        // The other two shells can't be installed everywhere, so their scripts are only searched
        // for the names of all commands.
        let parses = ["bash", "fish", "zsh"].contains(&shell);
        if parses && has(&[shell], &format!("completions of {shell} were not parsed")) {
            sandbox.shell(&format!("{shell} -n script")).succeeds();
        }
    }
}

#[test]
fn man_pages_have_every_command() {
    let sandbox = Sandbox::new();
    sandbox.run("man pages").succeeds();
    let commands = commands();
    let mut expected: Vec<_> =
        commands.iter().map(|command| format!("moe-convert-{command}.1")).collect();
    expected.push("moe-convert.1".to_owned());
    expected.sort();
    assert_eq!(sandbox.names("pages"), expected);
    let text = page(&sandbox, "moe-convert");
    let missing = commands.iter().filter(|c| !text.contains(&format!("moe-convert-{c}(1)")));
    assert_none(&missing.cloned().collect::<Vec<_>>());
}

/// The text of the man page `name`.
fn page(sandbox: &Sandbox, name: &str) -> String {
    let page = sandbox.read(&format!("pages/{name}.1"));
    String::from_utf8(page).unwrap().replace("\\-", "-")
}

#[test]
fn man_pages_have_every_option() {
    let sandbox = Sandbox::new();
    sandbox.run("man pages").succeeds();
    let mut problems = Vec::new();
    for command in commands().iter().map(String::as_str).chain([""]) {
        let name = format!("moe-convert-{command}");
        let text = page(&sandbox, name.trim_end_matches('-'));
        let options = options(&sandbox.run(&format!("{command} --help")).succeeds().stdout);
        assert!(options.len() > 8, "{command}: {options:?}");
        let missing: Vec<_> =
            options.iter().filter(|o| !text.contains(&format!("\\fB{o}\\fR"))).collect();
        if !missing.is_empty() || !text.contains(".SH EXAMPLES") {
            problems.push(format!("{name} lacks {missing:?}, or its examples"));
        }
    }
    assert_none(&problems);
}

#[test]
fn groff_renders_man_pages_without_a_warning() {
    if !has(&["groff"], "man pages were not rendered") {
        return;
    }
    let sandbox = Sandbox::new();
    sandbox.run("man pages").succeeds();
    for page in sandbox.names("pages") {
        let rendered = sandbox
            .shell(&format!("groff -Kutf8 -man -ww -Tutf8 -rLL=100n -P-cbou pages/{page}"))
            .succeeds();
        assert_eq!(rendered.stderr, "", "{page}");
        assert!(
            rendered.stdout.contains("NAME\n       moe-convert"),
            "{page}\n{}",
            rendered.stdout
        );
        // Examples are lines that a reader types.
        assert!(rendered.stdout.contains("\n       moe-convert "), "{page}\n{}", rendered.stdout);
    }
}

/// The commands that `--help` lists.
fn commands() -> BTreeSet<String> {
    let help = Sandbox::new().run("--help").succeeds().stdout;
    let list = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap().to_owned();
    let lines = list.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let names = lines.filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").map(str::to_owned).collect()
}

/// The long options that a help text explains.
fn options(help: &str) -> BTreeSet<String> {
    // Options are indented by 2 columns, or by 6 without a short name; wrapped text is indented
    // further.
    let explained = help.lines().filter_map(|line| {
        line.strip_prefix("      --").or(line
            .split_once(", --")
            .and_then(|(short, rest)| short.starts_with("  -").then_some(rest)))
    });
    let name = |line: &str| line.split([' ', '[', '=']).next().map(|name| format!("--{name}"));
    explained.filter_map(name).collect()
}
