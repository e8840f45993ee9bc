//! Keys for several steps, of which some have no use for them.

use super::{Recipe, StepKind, message, options};

const TEXT: &str = "data = [\"t\"]\n";

/// Commands and a key in their defaults; the keys of all steps of the command; those of a step that
/// uses it; and those of a step that has no use for it.
const SPARED: [(&str, &str, &str, &str, &str); 18] = [
    (
        "quantize",
        "damping = 0.2",
        "",
        "scheme = \"w4a16\"\ndata = [\"t\"]",
        "scheme = \"w8a16\"\nsolver = \"rtn\"\ndata = []",
    ),
    (
        "quantize",
        "damping = 0.2\nseed = 3",
        "",
        "scheme = \"w4a16\"\ndata = [\"t\"]",
        "scheme = \"fp8\"",
    ),
    ("quantize", "data = [\"t\"]", "", "scheme = \"w4a16\"", "scheme = \"fp8\""),
    ("quantize", "group-size = 64", "", "scheme = \"w4a16\"\ndata = [\"t\"]", "scheme = \"fp8\""),
    (
        "quantize",
        "shrinkage = 2.0",
        TEXT,
        "calibrate-on = \"per-expert\"",
        "calibrate-on = \"routed\"",
    ),
    (
        "merge",
        "all-experts-every = 4",
        "keep = 0.5\ndata = [\"t\"]",
        "algorithm = \"hc-smoe\"",
        "algorithm = \"dern\"",
    ),
    (
        "merge",
        "group-cap = 4",
        "keep = 0.5\ndata = [\"t\"]",
        "algorithm = \"ream\"",
        "algorithm = \"dern\"",
    ),
    (
        "heal",
        "original-logits-per-token = 8",
        "from = \"m\"\ndata = [\"t\"]",
        "original-logits = \"top-k\"",
        "original-logits = \"full\"",
    ),
    ("heal", "patience = 2", TEXT, "held-out = [\"h\"]", ""),
    ("heal", "patience = 2", TEXT, "held-out = [\"h\"]", "held-out = []"),
    ("heal", "learning-rate = 1e-3", TEXT, "steps = 4", "steps = 0"),
    ("prune", "data = [\"t\"]", "keep = 0.5", "criterion = \"reap\"", "criterion = \"aimer\""),
    (
        "prune",
        "data = [\"t\"]\ndata-tokens = 99",
        "keep = 0.5",
        "criterion = \"reap\"",
        "criterion = \"random\"",
    ),
    ("prune", "no-baseline = true", "keep = 0.5\ndata = [\"t\"]", "held-out = [\"h\"]", ""),
    ("prune", "no-control = true", "keep = 0.5\ndata = [\"t\"]", "held-out = [\"h\"]", ""),
    ("distill", "criterion = \"cp\"", TEXT, "select = \"experts\"", "select = \"neurons\""),
    (
        "upcycle",
        "data = [\"t\"]",
        "experts = 4\ntop-k = 2",
        "router = \"kmeans\"",
        "router = \"normal\"",
    ),
    (
        "upcycle",
        "router-std = 0.1\ndata = [\"t\"]",
        "experts = 4\ntop-k = 2",
        "router = \"normal\"",
        "router = \"kmeans\"",
    ),
];

/// [defaults] are for all steps of a command, and keys in a block for all of its choices: one step
/// may have no use for a key, but a key that no step uses is refused.
#[test]
fn keys_for_several_steps_pass_by_those_without_use_for_them() {
    for (run, default, key, uses, idle) in SPARED {
        let step = |output: &str, more: &str| {
            format!("[[step]]\nrun = {run:?}\nmodel = \"m\"\noutput = {output:?}\n{key}\n{more}\n")
        };
        let defaults = format!("[defaults.{run}]\n{default}\n");
        let both = format!("{defaults}{}{}", step("a", uses), step("b", idle));
        let recipe = Recipe::parse(&both, &[], "x");
        assert!(recipe.is_ok(), "{both}\n{}", recipe.unwrap_err());
        // A step's own key is for that step alone.
        if !idle.contains("[]") {
            let own = step("b", &format!("{idle}\n{default}"));
            assert!(Recipe::parse(&own, &[], "x").is_err(), "{own}");
        }
    }
}

#[test]
fn a_key_that_no_step_uses_is_refused() {
    let damping = "[defaults.quantize]\ndamping = 0.2\n[[step]]\nrun = \"quantize\"\nmodel = \"m\"\noutput = \"o\"\nscheme = \"fp8\"";
    let none = message(damping, &[]);
    assert!(none.contains("line 2, [defaults.quantize]: `damping` is for GPTQ"), "{none}");
}

#[test]
fn keys_pass_by_passes_without_use_for_them() {
    let passes = "[defaults.quantize]\ndamping = 0.2\n[[step]]\nrun = \"quantize\"\nmodel = \"m\"\noutput = \"o\"\ndata = [\"t\"]\n\
                  [[step]]\nrun = \"convert\"\nmodel = \"m\"\noutput = \"p\"\n[[step.pass]]\nrun = \"quantize\"\nscheme = \"fp8\"\n";
    Recipe::parse(passes, &[], "x").unwrap();
}

/// Gates that compare with an original are left out of evaluations without one.
#[test]
fn gates_pass_by_evaluations_without_an_original() {
    let defaults = "[defaults.eval]\ndata = [\"code=t\"]\n[defaults.eval.gates]\nmax-bytes = 9\n";
    let step = |more: &str| format!("[[step]]\nrun = \"eval\"\nmodel = \"m\"\n{more}\n");
    let against = step("label = \"beside\"\noriginal = \"o\"");
    for gate in [
        "max-kl = 0.1",
        "max-loss-increase = 0.1\nmin-agreement = 0.9",
        "domain = [\"code:max-kl=0.1\"]",
    ] {
        let recipe =
            Recipe::parse(&format!("{defaults}{gate}\n{against}{}", step("")), &[], "x").unwrap();
        let gates = recipe.steps.iter().map(|step| match &step.kind {
            StepKind::Eval { options, .. } => serde_json::json!(options.gates),
            _ => panic!("{step:?}"),
        });
        let gates: Vec<serde_json::Value> = gates.collect();
        let key = gate.split(' ').next().unwrap();
        let is_given = |gate: &serde_json::Value| {
            !gate.is_null() && gate.as_array().is_none_or(|all| !all.is_empty())
        };
        assert!(is_given(&gates[0][key]) && !is_given(&gates[1][key]), "{gate}: {gates:?}");
        assert_eq!(gates[1]["max-bytes"], 9, "{gate}");
        let none = message(&format!("{defaults}{gate}\n{}", step("")), &[]);
        assert!(none.contains("[defaults.eval]: this gate compares with an original"), "{none}");
        // A step's own gates are for that step alone.
        let own = step(&format!("data = [\"code=t\"]\n[step.gates]\n{gate}"));
        let own = message(&format!("{own}{against}data = [\"t\"]"), &[]);
        assert!(own.contains("step 1 (eval): this gate compares with an original"), "{own}");
    }
}

#[test]
fn keys_of_a_block_pass_by_choices_without_use_for_them() {
    let block = |methods: &str| {
        format!(
            "[[step]]\neach.method = {methods}\n[[step.step]]\nrun = \"merge\"\nmodel = \"m\"\noutput = \"${{method}}\"\n\
             algorithm = \"${{method}}\"\nkeep = 0.5\ndata = [\"t\"]\ngroup-cap = 4"
        )
    };
    let steps = Recipe::parse(&block("[\"ream\", \"dern\"]"), &[], "x").unwrap().steps;
    assert_eq!(
        (&options(&steps[0])["group-cap"], &options(&steps[1])["group-cap"]),
        (&4.into(), &().into())
    );
    let none = message(&block("[\"m-smoe\", \"dern\"]"), &[]);
    assert!(
        none.contains(
            "line 10, step 1.1 (merge; method m-smoe): `group-cap` is for `algorithm` ream"
        ),
        "{none}"
    );
}
