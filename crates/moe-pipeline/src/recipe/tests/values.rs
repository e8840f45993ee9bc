//! Values of keys.

use super::{Recipe, message};
use crate::recipe::commands::all_commands;
use crate::recipe::schema::{command_of, keys_of_gates};

/// Mistakes that can be found without a model: a step's keys, what is said of them, and the remedy.
const MISTAKES: [(&str, &str, &str); 10] = [
    (
        "run = \"prune\"\ndata = [\"t\"]\nkeep = 75",
        "line 6, step 1 (prune): `keep` 75 is not a share",
        "0.75 for 75 %",
    ),
    (
        "run = \"prune\"\ndata = [\"t\"]\nkeep = 0.5\ndivisible-by = 0",
        "`divisible-by` 0",
        "give at least 1",
    ),
    (
        "run = \"prune\"\ndata = [\"t\"]\nkeep = 0.5\nexperts = 2",
        "`experts`, `keep` and `keep-mass`",
        "one of the three",
    ),
    (
        "run = \"prune\"\ndata = [\"t\"]\nkeep = 0.5\ndata-tokens = 0",
        "`data-tokens` 0",
        "give at least 2",
    ),
    (
        "run = \"prune\"\ndata = [\"t\"]\nkeep = 0.5\nsequence-length = 1",
        "`sequence-length` 1",
        "give at least 2",
    ),
    ("run = \"prune\"\nkeep = 0.5", "nothing says which experts matter", "give `data` TEXT"),
    (
        "run = \"heal\"\ndata = [\"t\"]\nlearning-rate = 0.0",
        "`learning-rate` 0",
        "give a positive number",
    ),
    ("run = \"distill\"\ndata = [\"t\"]\nwidth = 0", "`width` 0 leaves no network", "at least 1"),
    (
        "run = \"upcycle\"\nexperts = 2\ntop-k = 1\nshared-fraction = 50",
        "line 7, step 1 (upcycle): `shared-fraction` 50 is not a share",
        "from 0 to 1",
    ),
    (
        "run = \"merge\"\nkeep = 0.5\ndata = [\"t\"]\ndern-threshold = 2.0",
        "`dern-threshold` 2 is not a cosine",
        "from -1 to 1",
    ),
];

fn step(keys: &str) -> String {
    format!("[[step]]\nmodel = \"m\"\noutput = \"o\"\n{keys}")
}

fn assert_said(text: &str, what: &str, remedy: &str) {
    let error = message(text, &[]);
    assert!(error.contains(what) && error.contains(remedy), "{text}\n{error}");
}

#[test]
fn values_are_checked_before_any_step() {
    for (keys, what, remedy) in MISTAKES {
        assert_said(&step(keys), what, remedy);
    }
}

#[test]
fn defaults_that_all_steps_override_are_checked_too() {
    let prune = step("run = \"prune\"\ndata = [\"t\"]\nkeep = 0.5");
    assert_said(
        &format!("[defaults.prune]\nkeep = 75\n{prune}"),
        "line 2, [defaults.prune]: `keep` 75 is not a share",
        "0.75",
    );
    assert_said(
        &format!("[defaults.prune]\nkeep = \"half\"\n{prune}"),
        "line 2, [defaults.prune]: invalid type",
        "give a value of the kind",
    );
}

#[test]
fn defaults_that_a_step_overrides_need_not_go_together_with_its_other_keys() {
    let random = format!(
        "[defaults.prune]\ncriterion = \"reap\"\n{}",
        step("run = \"prune\"\nkeep = 0.5\ncriterion = \"random\"")
    );
    Recipe::parse(&random, &[], "x").unwrap();
}

#[test]
fn sizes_may_be_numbers_of_bytes() {
    let text =
        "[[step]]\nrun = \"eval\"\nmodel = \"m\"\ndata = [\"t\"]\ngates = { max-bytes = 4000000 }";
    Recipe::parse(text, &[], "x").unwrap();
    assert!(message(&text.replace("4000000", "-4"), &[]).contains("is not a size"));
}

/// The message where `key` of a step that runs `command` has `value`.
fn with_value(command: &str, key: &str, value: &str) -> String {
    let output = if command == "eval" { "" } else { "output = \"o\"\n" };
    let table = if keys_of_gates().iter().any(|gate| gate == key) { "gates." } else { "" };
    message(
        &format!("[[step]]\nrun = {command:?}\nmodel = \"m\"\n{output}{table}{key} = {value}"),
        &[],
    )
}

/// The mistake is found without the text of serde's error, whatever the option.
#[test]
fn values_that_an_option_refuses_are_named() {
    let mut count = 0;
    for command in all_commands().into_iter().filter_map(command_of) {
        for key in command.get_arguments().filter_map(clap::Arg::get_long) {
            let error = with_value(command.get_name(), key, "{ x = 1 }");
            assert!(
                error.starts_with("line ")
                    && error.contains("invalid type: a table, expected ")
                    && error.contains(&format!("{key}`\n")),
                "{}: {error}",
                command.get_name()
            );
            count += 1;
        }
    }
    assert!(count > 100, "{count}");
}

#[test]
fn words_sizes_and_numbers_that_an_option_does_not_know_are_named() {
    for (command, key, value, says) in [
        ("prune", "criterion", "\"reab\"", "unknown variant `reab`, expected one of reap"),
        ("prune", "criterion", "\"reab\"", "; did you mean reap?"),
        ("quantize", "scheme", "\"w8a8\"", "no scheme \"w8a8\" in `scheme`"),
        ("prune", "max-shard-size", "\"much\"", "\"much\" is not a size in `max-shard-size`"),
        (
            "prune",
            "experts",
            "-4",
            "invalid value: integer `-4`, expected a whole number, 0 or more",
        ),
        ("prune", "data", "\"t\"", "remedy: write data = [\"t\"]"),
        ("prune", "keep", "\"much%\"", "remedy: write per cent as a share"),
        ("prune", "data", "[1]", "invalid type: integer `1`, expected a text in `data`"),
        ("eval", "max-bytes", "\"much\"", "\"much\" is not a size in `gates.max-bytes`"),
        ("eval", "domain", "[\"t:max-kl=-1\"]", "`max-kl` -1 is not a limit"),
        ("eval", "max-kl", "\"1\"", "expected a number in `gates.max-kl`"),
    ] {
        let error = with_value(command, key, value);
        assert!(error.contains(says), "{says}: {error}");
    }
}

#[test]
fn gates_that_are_not_a_table_are_named() {
    let gates = "[[step]]\nrun = \"eval\"\nmodel = \"m\"\ndata = [\"t\"]\ngates = 1";
    let error = message(gates, &[]);
    assert!(error.contains("line 5") && error.contains("expected a table in `gates`"), "{error}");
}

/// An option of the command line is required exactly where serde requires its key.
#[test]
fn options_that_a_command_needs_are_named() {
    for command in all_commands().into_iter().filter_map(command_of) {
        let name = command.get_name();
        let output = if name == "eval" { "" } else { "output = \"o\"\n" };
        let text = format!("[[step]]\nrun = {name:?}\nmodel = \"m\"\n{output}");
        let error = Recipe::parse(&text, &[], "x").map(drop).map_err(|error| error.to_string());
        let needed = command.get_arguments().find(|arg| arg.is_required_set());
        match needed.and_then(clap::Arg::get_long) {
            Some(key) => {
                let error = error.unwrap_err();
                assert!(error.contains(&format!("missing field `{key}`")), "{name}: {error}");
            }
            None => assert!(!error.is_err_and(|error| error.contains("can't be read")), "{name}"),
        }
    }
}
