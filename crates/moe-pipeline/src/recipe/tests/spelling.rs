//! Keys and options in other spellings.

use std::path::Path;

use super::{RECIPE, Recipe, StepKind, message, options};
use crate::recipe::wording::as_keys;

#[test]
fn options_become_keys() {
    assert_eq!(
        as_keys("--keep 75: give --experts N, or --device cpu", |key| key != "device"),
        "`keep` 75: give `experts` N, or --device cpu"
    );
    assert_eq!(
        as_keys("give moe-convert x --help; a -- b; observe --add", |key| key != "help"),
        "give moe-convert x --help; a -- b; observe --add"
    );
}

/// A step, with other names for keys that all steps have.
#[test]
fn keys_of_all_steps_have_other_names_too() {
    let step =
        |keys: &str| format!("[[step]]\nrun = \"prune\"\nkeep = 0.5\ndata = [\"t\"]\n{keys}");
    for keys in [
        "MODEL = \"m\"\nOUTPUT = \"o\"\nOVERWRITE = true\nMax_Shard_Size = \"1GB\"",
        "model = \"m\"\noutput_dir = \"o\"\noverwrite = true\nLabel = \"x\"",
    ] {
        let recipe = Recipe::parse(&step(keys), &[], "x").unwrap();
        let output = recipe.steps[0].output();
        assert_eq!(
            (&*recipe.steps[0].model, output),
            (Path::new("m"), Some((Path::new("o"), true)))
        );
    }
    let twice = message(&step("model = \"m\"\noutput = \"o\"\nout_dir = \"p\""), &[]);
    assert!(twice.contains("are one key"), "{twice}");
}

#[test]
fn keys_that_are_alike_or_of_the_run_are_named() {
    for (key, said) in [
        ("metod = \"reap\"", "did you mean criterion, which was method?"),
        ("keeep = 0.5", "did you mean keep?"),
        ("dry_run = true", "give --dry-run to moe-convert run"),
        ("resume = true", "give --resume to moe-convert run"),
        ("Quiet = true", "give --quiet to moe-convert run"),
        ("num_threads = 2", "give --threads 2 to moe-convert run"),
    ] {
        let step = format!("[[step]]\nrun = \"prune\"\nmodel = \"m\"\noutput = \"o\"\n{key}\n");
        let said_of = message(&step, &[]);
        assert!(said_of.contains(said), "{key}: {said_of}");
    }
}

const EARLIER: &str = r#"[defaults.prune]
method = "REAP"

[[step]]
run = "prune"
model = "m"
output = "o"
keep = "75%"
data = ["t"]

[[step]]
run = "eval"
model = "o"
against = "m"
data = ["t"]
max_tokens = 64
gates = { max_kl = 1, min-agreement = "99.5%" }

[[step]]
run = "eval"
model = "p"
against = "m"
data = ["t"]
"#;

#[test]
fn earlier_keys_are_read_with_a_note_for_each() {
    let recipe = Recipe::parse(EARLIER, &[], "x").unwrap();
    let pruned = options(&recipe.steps[0]);
    assert_eq!((&pruned["criterion"], &pruned["keep"]), (&"reap".into(), &0.75.into()));
    let StepKind::Eval { original, options } = &recipe.steps[1].kind else { panic!() };
    assert_eq!((original.as_deref(), options.data_tokens), (Some(Path::new("m")), Some(64)));
    assert_eq!(options.gates.min_agreement, Some(0.995));
    assert_eq!(
        recipe.notes(Path::new("r.toml")),
        [
            "r.toml, line 14, step 2 (eval): `against` is now `original`; the old name goes with 0.3 \
             (also in line 22)",
            "r.toml, line 16, step 2 (eval): `max_tokens` is now `data-tokens`; the old name goes with 0.3",
            "r.toml, line 2, [defaults.prune]: `method` is now `criterion`; the old name goes with 0.3",
        ]
    );
    assert!(Recipe::parse(RECIPE, &[], "x").unwrap().notes(Path::new("r.toml")).is_empty());
}

#[test]
fn a_key_has_one_name_at_a_time() {
    let both =
        message(&EARLIER.replace("keep =", "criterion = \"ean\"\nmethod = \"reap\"\nkeep ="), &[]);
    assert!(
        both.contains(
            "line 8, step 1 (prune): `criterion` and `method` are one key, and both are given"
        ) && both.contains("give `criterion` alone"),
        "{both}"
    );
    let in_defaults = message(&EARLIER.replace("REAP\"\n", "reap\"\ncriterion = \"ean\"\n"), &[]);
    assert!(
        in_defaults.contains("[defaults.prune]: `method` and `criterion` are one key"),
        "{in_defaults}"
    );
}

#[test]
fn keys_of_other_tools_are_read_and_found_by_their_lines() {
    let with = |keys: &str| RECIPE.replace("experts = 8\n    top-k = 2", keys);
    let recipe =
        Recipe::parse(&with("num_local_experts = 8\n    num_experts_per_tok = 2"), &[], "x");
    let recipe = recipe.unwrap();
    assert_eq!(options(&recipe.steps[0])["experts"], 8);
    assert!(recipe.notes(Path::new("r.toml")).is_empty());
    let wrong = message(&with("num_experts = \"8\"\n    topk = 2"), &[]);
    assert!(wrong.contains("line 8, step 1 (upcycle): invalid type"), "{wrong}");
    let bits = "[[step]]\neach.b = [4, 8]\n[[step.step]]\nrun = \"quantize\"\nmodel = \"m\"\noutput = \"o${b}\"\nbits = \"${b}\"\ndata = [\"t\"]";
    let recipe = Recipe::parse(bits, &[], "x").unwrap();
    let schemes: Vec<_> = recipe.steps.iter().map(|step| options(step)["scheme"].clone()).collect();
    assert_eq!(schemes, ["w4a16", "w8a16"]);
}
