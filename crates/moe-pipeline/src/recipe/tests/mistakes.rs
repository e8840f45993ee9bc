//! Mistakes are named by their place, with a remedy.

use super::{RECIPE, Recipe, message};

/// The message about `RECIPE` with `to` in place of `from`.
fn with(from: &str, to: &str) -> String {
    message(&RECIPE.replace(from, to), &[])
}

/// The message about one step with these keys.
fn step(rest: &str) -> String {
    message(&format!("[[step]]\nmodel = \"m\"\n{rest}"), &[])
}

#[track_caller]
fn assert_says(message: &str, parts: &[&str]) {
    assert!(parts.iter().all(|part| message.contains(part)), "{parts:?}: {message}");
}

#[test]
fn missing_and_mistyped_keys_are_named() {
    let mistyped = ["step 1 (upcycle): unknown field `top-n`", "; did you mean top-k?"];
    assert_says(&with("top-k", "top-n"), &mistyped);
    assert_says(&with("experts = 8", ""), &["missing field `experts`"]);
    let variable = with("${out}/moe\"\n    experts", "${oops}/moe\"\n    experts");
    assert_says(&variable, &["no variable \"oops\""]);
}

#[test]
fn mistyped_commands_and_tables_are_named() {
    let command = with("\"verify\"", "\"verfiy\"");
    assert_says(&command, &["there is no command \"verfiy\"", "; did you mean verify?"]);
    assert_says(&with("run = \"verify\"", ""), &["step 2: every step has a key \"run\""]);
    assert_says(&message("step = 3", &[]), &["line 1"]);
    assert_says(&message(&format!("{RECIPE}\n[defaults.eval]"), &[]), &["no step runs \"eval\""]);
}

#[test]
fn values_of_a_wrong_type_are_named() {
    let text = with("experts = 8", "experts = \"8\"");
    assert_says(&text, &["line 8, step 1 (upcycle): invalid type", "in `experts`"]);
    let prune = "run = \"prune\"\noutput = \"o\"\nseed = 1\ndata = [\"t\"]\n";
    let invalid = "invalid type: string \"half\", expected a number in `keep`";
    let expected = format!("line 7, step 1 (prune): {invalid}");
    assert_says(&step(&format!("{prune}keep = \"half\"")), &[&expected]);
    let passes = "run = \"convert\"\noutput = \"o\"\n[[step.pass]]\nrun = \"prune\"\nkeep = 0.5\ndata-tokens = [1]";
    let in_pass = ["line 8, step 1 (convert): pass 1: invalid", "in `data-tokens`"];
    assert_says(&step(passes), &in_pass);
}

#[test]
fn gates_in_the_wrong_place_or_of_a_wrong_type_are_named() {
    let eval = "run = \"eval\"\ndata = [\"t\"]\n";
    let text = step(&format!("{eval}gates = {{ max-kl = \"x\" }}"));
    assert_says(&text, &["line 5, step 1 (eval): ", "max-kl"]);
    let outside = step(&format!("{eval}max-kl = 0.1"));
    assert_says(&outside, &["line 5, step 1 (eval): ", "gates = { max-kl = 0.1 }"]);
}

/// A mistake in [defaults] is reported there, not in the step that it is filled into.
#[test]
fn mistakes_in_defaults_are_named_there() {
    let with = |defaults: &str| message(&format!("{RECIPE}\n[defaults.upcycle]\n{defaults}"), &[]);
    let line = RECIPE.matches('\n').count() + 3;
    for (defaults, what) in [
        ("top-n = 4", "unknown field `top-n`"),
        ("seed = \"x\"", "in `seed`"),
        ("seed = \"${sed}\"", "there is no variable \"sed\" here, only out in `seed`"),
    ] {
        let error = with(defaults);
        assert!(
            error.contains(&format!("line {line}, [defaults.upcycle]: ")) && error.contains(what),
            "{error}"
        );
    }
    let both = message(
        &format!("{}\n[defaults.upcycle]\nseed = 1", RECIPE.replace("top-k", "top-n")),
        &[],
    );
    assert!(both.contains("line 9, step 1 (upcycle): unknown field `top-n`"), "{both}");
    let passes = "[defaults.prune]\nkeeep = 0.5\n[[step]]\nrun = \"convert\"\nmodel = \"m\"\noutput = \"o\"\n[[step.pass]]\nrun = \"prune\"\ndata = [\"t\"]";
    let error = message(passes, &[]);
    assert!(error.contains("line 2, [defaults.prune]: pass 1: unknown field `keeep`"), "{error}");
    let unused = message(&format!("{RECIPE}\n[defaults.upcyle]"), &[]);
    assert!(unused.contains("no step runs \"upcyle\"; did you mean upcycle?"), "{unused}");
}

/// Each mistake has its own remedy.
#[test]
fn remedies_fit_the_mistake() {
    for (error, remedy) in [
        (step("run = \"verfiy\""), "remedy: give run one of these"),
        (step("run = \"verify\"\nkeep = 1"), "remedy: correct the key or remove it"),
        (step("run = \"prune\""), "remedy: add output = "),
        (
            step("run = \"upcycle\"\noutput = \"o\"\nexperts = 2"),
            "remedy: add this key to the step",
        ),
        (step("output = \"o\""), "remedy: add run = "),
        (message("x = ", &[]), "remedy: correct the TOML"),
        (
            message("[[step]]\nrun = \"verify\"\nmodel = \"${x}\"", &[]),
            "remedy: correct the name, or define x",
        ),
    ] {
        assert!(error.contains(remedy), "{remedy}: {error}");
    }
}

#[test]
fn remedies_for_gates_say_which_limits_there_are() {
    let gates = |gates: &str| {
        let eval = "run = \"eval\"\noriginal = \"n\"\ndata = [\"t\"]\n";
        step(&format!("{eval}gates = {{ {gates} }}"))
    };
    let nats = "remedy: give a number of nats from 0 on";
    assert_says(&gates("max-kl = -1"), &["line 6, step 1 (eval): ", nats]);
    assert_says(&gates("domain = [\"t:max-kl=nan\"]"), &[nats]);
    let share = "remedy: give a share above 0, at most 1: 0.9 for 90 %";
    assert_says(&gates("min-agreement = 90"), &[share]);
    assert_says(&gates("max-bytes = \"much\""), &["remedy: write it as 5GB"]);
    let alone = step("run = \"eval\"\ndata = [\"t\"]\ngates = { max-kl = 1 }");
    assert_says(&alone, &["remedy: give `original` ORIGINAL"]);
}

/// If a key or a table of defaults is mistyped, the message is about that, not about the key that
/// the step therefore lacks.
#[test]
fn errors_name_the_mistyped_key_or_table() {
    let step =
        "[[step]]\nrun = \"upcycle\"\nmodel = \"m\"\noutput = \"o\"\nexperts = 4\ntop-k = 2\n";
    let prune =
        "[[step]]\nrun = \"prune\"\nmodel = \"m\"\noutput = \"o\"\ndata = [\"t\"]\nkeep = 0.5\n";
    let passes = "[[step]]\nrun = \"convert\"\nmodel = \"m\"\noutput = \"o\"\n[[step.pass]]\nrun = \"prune\"\n";
    for (text, parts) in [
        (
            step.replace("model", "modle"),
            ["line 3, step 1 (upcycle): unknown field `modle`", "did you mean model?"],
        ),
        (
            step.replace("experts", "expertss"),
            ["line 5, step 1 (upcycle): unknown field `expertss`", "mean experts?"],
        ),
        (
            format!("[defaults.upcycl]\nmodel = \"m\"\n{}", step.replace("model = \"m\"\n", "")),
            ["[defaults.upcycl]: no step runs \"upcycl\"", "did you mean upcycle?"],
        ),
        (
            format!("[defaults.upcycle]\nmodle = \"m\"\n{}", step.replace("model = \"m\"\n", "")),
            ["line 2, [defaults.upcycle]: unknown field `modle`", "did you mean model?"],
        ),
        (format!("{prune}keeep = 1"), ["unknown field `keeep`", "keep, keep-mass, "]),
        (
            format!("{passes}keep = 0.5\nmodel = \"x\""),
            ["pass 1: unknown field `model`", "expected one of run, "],
        ),
        (String::new(), ["the recipe has no step", "add a [[step]]"]),
    ] {
        let error = message(&text, &[]);
        assert!(parts.iter().all(|part| error.contains(part)), "{text}: {error}");
    }
}

/// Mistakes in the tables of the recipe itself have line and column, as those of TOML.
#[test]
fn unknown_keys_and_too_large_numbers_are_shown_in_their_line() {
    let key = message("name = \"x\"\nvras = { a = 1 }\n", &[]);
    let shown = "TOML parse error at line 2, column 1\n  |\n2 | vras = { a = 1 }\n  | ^^^^\n";
    assert!(key.contains(shown), "{key}");
    assert!(key.contains("unknown field `vras`, expected one of name, vars, "), "{key}");
    assert!(key.contains("did you mean vars?"), "{key}");
    for number in ["9223372036854775808", "-9223372036854775809", "0x8000000000000000"] {
        let text = format!("[vars]\nx = 1\nseeds = [0, {number}]\n");
        let error = message(&text, &[]);
        let marks = "^".repeat(number.len());
        let shown =
            format!("line 3, column 13\n  |\n3 | seeds = [0, {number}]\n  |             {marks}\n");
        assert!(error.contains(&shown), "{error}");
        assert!(error.contains("too large for TOML"), "{error}");
    }
}

/// A pass of a step has lines of its own.
#[test]
fn variables_in_passes_are_named_by_their_pass() {
    let text = "[[step]]\nrun = \"convert\"\nmodel = \"m\"\noutput = \"o\"\n[[step.pass]]\nrun = \"prune\"\nkeep = \"${k}\"\n";
    let error = message(text, &[]);
    let said = "line 7, step 1 (convert): pass 1: there is no variable \"k\" here in `keep`";
    assert!(error.contains(said), "{error}");
}

const TEXT: &str = "data = [\"t\"]";
const PRUNE: &str = "data = [\"t\"]\nkeep = 0.5";
const UPCYCLE: &str = "experts = 8\ntop-k = 2";
const RTN: &str = "solver = \"rtn\"";

/// Wrong options of each command: keys of a step that are right, and the wrong one.
const WRONG: [(&str, &str, &str); 52] = [
    ("upcycle", "experts = 8", "top-k = 0"),
    ("upcycle", "experts = 8", "top-k = 9"),
    ("upcycle", "top-k = 2", "experts = 99999"),
    ("upcycle", UPCYCLE, "shared-experts = 0"),
    ("upcycle", UPCYCLE, "granularity = 0"),
    ("upcycle", UPCYCLE, "noise-std = -1"),
    ("upcycle", UPCYCLE, "drop-fraction = 2"),
    ("upcycle", UPCYCLE, "router-entropy = 1"),
    ("upcycle", UPCYCLE, "router = \"kmeans\""),
    ("upcycle", UPCYCLE, "router = \"prompts\""),
    ("upcycle", UPCYCLE, "shared-width = 8"),
    ("upcycle", UPCYCLE, "data-tokens = 1"),
    ("upcycle", UPCYCLE, TEXT),
    ("prune", TEXT, "keep = 1.5"),
    ("prune", TEXT, "experts = 0"),
    ("prune", PRUNE, "divisible-by = 0"),
    ("prune", PRUNE, "sequence-length = 1"),
    ("prune", PRUNE, "data-tokens = 1"),
    ("prune", PRUNE, "held-out-tokens = 1"),
    ("prune", PRUNE, "stats = \"s\""),
    ("prune", "keep = 0.5\ncriterion = \"random\"", TEXT),
    ("merge", PRUNE, "group-cap = 0"),
    ("merge", PRUNE, "dern-threshold = 2"),
    ("quantize", RTN, "group-size = 0"),
    ("quantize", TEXT, "damping = 0"),
    ("quantize", TEXT, "shrinkage = -1"),
    ("quantize", TEXT, "gate-power = 3"),
    ("quantize", "scheme = \"fp8\"", "solver = \"gptq\""),
    ("quantize", "scheme = \"fp8\"", "asymmetric = true"),
    ("quantize", RTN, TEXT),
    ("quantize", RTN, "pool = [\"t\"]"),
    ("quantize", RTN, "hot-cap = 9"),
    ("quantize", TEXT, "profile = \"free\""),
    ("quantize", TEXT, "pool-tokens = 9"),
    ("quantize", TEXT, "target-bits = -1"),
    ("distill", TEXT, "width = 0"),
    ("distill", TEXT, "batch-tokens = 0"),
    ("distill", TEXT, "relative-learning-rate = -1"),
    ("distill", "width = 8", "data = []"),
    ("heal", TEXT, "steps = 99999999"),
    ("heal", TEXT, "warmup = 999"),
    ("heal", TEXT, "learning-rate = -1"),
    ("heal", TEXT, "accumulate = 0"),
    ("heal", TEXT, "accumulate = 9999999"),
    ("heal", TEXT, "clip = -1"),
    ("heal", TEXT, "balance = -1"),
    ("heal", TEXT, "capacity-factor = 0"),
    ("heal", TEXT, "original-weight = 2"),
    ("heal", TEXT, "original-logits-per-token = 9"),
    ("heal", TEXT, "patience = 1"),
    ("heal", "train = [\"all\"]", "data = [\"t@0.5\"]"),
    ("observe", "add = [\"s\"]", "all-experts-every = 1"),
];

/// The mistake is shown in the line of the wrong option. The key is read from the error's fields,
/// since a message words it freely.
#[test]
fn wrong_options_are_shown_in_the_line_of_their_key() {
    let mut problems = Vec::new();
    for (run, right, wrong) in WRONG {
        let text =
            format!("[[step]]\nrun = \"{run}\"\nmodel = \"m\"\noutput = \"o\"\n{right}\n{wrong}");
        let error = Recipe::parse(&text, &[], "x").unwrap_err();
        let place = format!("line {}, step 1 ({run}): ", text.lines().count());
        let key = wrong.split(' ').next().unwrap();
        let is_named = error.named_options().contains(&format!("--{key}"));
        if !(is_named && error.what().starts_with(&place)) {
            problems.push(format!("{text}\n{error}"));
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n\n"));
}
