//! Tests that recipes which can only fail are refused before their first step.

use std::fmt::Write as _;

use super::{CODE, MOE, Request, accepted, requests_refused};
use crate::common::{Sandbox, assert_none, step};

/// A recipe, options for `run`, its exit code, and words of its message.
type Recipe<'a> = (String, &'a str, i32, &'a [&'a str]);

#[track_caller]
fn recipes_refused(recipes: &[Recipe<'_>]) {
    let mut problems = Vec::new();
    for (recipe, options, code, words) in recipes {
        let sandbox = Sandbox::new();
        sandbox.write("recipe.toml", recipe);
        let refused = sandbox.refuses(&format!("run recipe.toml {options}"), *code, words);
        problems.extend(refused.map(|problem| format!("{recipe}: {problem}")));
    }
    assert_none(&problems);
}

fn prune(model: &str, output: &str, experts: usize) -> String {
    let keys = format!("output = {output:?}\nexperts = {experts}\ncriterion = \"random\"");
    step("prune", model, &keys)
}

/// Recipes, in which `${STEP}` stands for the start of a step that upcycles, and words of the
/// messages that they get.
#[track_caller]
fn mistakes_refused(cases: &[(&str, &'static [&'static str])]) {
    const STEP: &str =
        "[[step]]\nrun = \"upcycle\"\nmodel = \"golden/models/dense\"\noutput = \"out\"\n";
    let words: Vec<_> =
        cases.iter().map(|(_, words)| [*words, &["recipe.toml"]].concat()).collect();
    let recipes = cases
        .iter()
        .zip(&words)
        .map(|((text, _), words)| (text.replace("${STEP}", STEP), "", 2, &words[..]));
    recipes_refused(&recipes.collect::<Vec<_>>());
}

#[test]
fn recipes_without_a_step_that_runs_are_refused() {
    mistakes_refused(&[
        ("", &["step"]),
        ("step = []", &["no step"]),
        ("nonsense", &["line 1"]),
        ("stepp = 1\n", &["stepp"]),
        ("[[step]]\n", &["step 1", "run"]),
        ("[[step]]\nrun = \"fly\"\nmodel = \"x\"\n", &["step 1", "fly", "upcycle"]),
    ]);
}

#[test]
fn steps_with_missing_or_unknown_keys_are_refused() {
    mistakes_refused(&[
        ("[[step]]\nrun = \"verify\"\n", &["step 1 (verify)", "model"]),
        (
            "[[step]]\nrun = \"verify\"\nmodel = \"x\"\ncolour = 1\n",
            &["line 4, step 1 (verify)", "colour"],
        ),
        ("${STEP}experts = 4\n", &["step 1 (upcycle)", "top-k"]),
        ("${STEP}experts = 4\ntop-k = 2\ntop_k = 2\n", &["step 1 (upcycle)", "top_k"]),
        (
            "${STEP}experts = 4\ntop-k = 2\n\n[[step]]\nrun = \"eval\"\nmodel = \"out\"\ndata = [\"x\"]\ngates = { max-kll = 1 }\n",
            &["line 12, step 2 (eval)", "max-kll"],
        ),
    ]);
}

#[test]
fn steps_with_impossible_values_are_refused() {
    mistakes_refused(&[
        ("${STEP}experts = \"4\"\ntop-k = 2\n", &["line 5, step 1 (upcycle)", "experts"]),
        ("${STEP}experts = -4\ntop-k = 2\n", &["step 1 (upcycle)"]),
        (
            "${STEP}experts = 4\ntop-k = 2\n\n[[step]]\nrun = \"verify\"\nmodel = \"${gone}\"\n",
            &["step 2", "gone"],
        ),
        ("${STEP}experts = 4\ntop-k = 5\n", &["step 1", "top-k 5"]),
    ]);
}

#[test]
fn recipes_that_are_not_there_are_refused() {
    let sandbox = Sandbox::new();
    let keys = "output = \"out\"\nexperts = 4\ntop-k = 2\n";
    let step = step("upcycle", "golden/models/dense", keys);
    sandbox.write("recipe.toml", format!("[vars]\nout = \"x\"\n{step}"));
    let requests: &[Request] = &[
        ("nowhere.toml", 1, &["nowhere.toml"]),
        ("golden", 1, &["golden"]),
        ("recipe.toml --set oout=y", 2, &["oout", "out"]),
    ];
    requests_refused(&sandbox, "run", requests);
}

/// Recipes, with their names and a word of the message that they get in bounds.
#[track_caller]
fn refused_in_bounds(cases: &[(&str, String, &str)]) {
    let mut problems = Vec::new();
    for (name, text, word) in cases {
        let sandbox = Sandbox::new();
        sandbox.write("recipe.toml", text);
        let accepted = accepted(&sandbox, "run recipe.toml", &["recipe.toml", *word]);
        problems.extend(accepted.map(|problem| format!("{name}: {problem}")));
    }
    assert_none(&problems);
}

#[test]
fn recipes_of_any_size_and_depth_are_refused_in_bounds() {
    refused_in_bounds(&[
        ("deep lists", format!("a = {}", "[".repeat(500_000)), ""),
        ("deep tables", format!("a = {}", "{a = ".repeat(200_000)), ""),
        ("deep keys", format!("{}a = 1", "a.".repeat(400_000)), ""),
        ("NUL", "a = \"\0\"".into(), "line 1"),
        ("2 MB", "#".repeat(2_000_000), "1048576"),
    ]);
}

#[test]
fn recipes_that_grow_without_end_are_refused_in_bounds() {
    let step = "[[step]]\nrun = \"verify\"\nmodel = \"${v0}\"\n";
    let mut doubling = String::from("[vars]\nv63 = \"0123456789\"\n");
    (0..63).rev().for_each(|n| _ = writeln!(doubling, "v{n} = \"${{v{m}}}${{v{m}}}\"", m = n + 1));
    let mut nested = String::from("[vars]\nv5000 = []\n");
    (0..5000).rev().for_each(|n| _ = writeln!(nested, "v{n} = [\"${{v{}}}\"]", n + 1));
    let mut blocks = String::from("[[step]]\n");
    (0..20).for_each(|n| _ = writeln!(blocks, "each.e{n} = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]"));
    blocks += "[[step.step]]\nrun = \"verify\"\nmodel = \"x";
    (0..20).for_each(|n| _ = write!(blocks, "${{e{n}}}"));
    refused_in_bounds(&[
        ("variables that double", doubling + step, "make more than"),
        ("variables in variables", nested + step, "make more than"),
        ("10^20 steps", blocks + "\"\n", "more than 10000 steps"),
    ]);
}

fn observe(model: &str) -> String {
    step("observe", model, &format!("output = \"s\"\ndata = [{CODE:?}]"))
}

/// Errors of later steps come before the first step runs, and name the step.
#[test]
fn steps_that_do_not_fit_the_results_of_earlier_ones_are_refused_first() {
    let data = format!("data = [{CODE:?}]");
    let distill = step("distill", MOE, &format!("output = \"dense\"\n{data}"));
    let eval =
        step("eval", "dense", &format!("original = \"golden/families/llama/base/model\"\n{data}"));
    let from_stats = "output = \"p\"\nexperts = 4\nstats = \"s\"";
    let other = step("prune", "golden/families/qwen3_moe/base/model", from_stats);
    let of_dense = ["step 2 (prune)", "no mixture of experts", "that distill writes"];
    let few_experts = ["step 3 (prune)", "has 8 experts", "keep 4 to 8"];
    let another_model = ["step 2 (prune)", "another model, golden/models/moe"];
    recipes_refused(&[
        (prune(MOE, "a", 12) + &prune("a", "b", 8) + &prune("b", "c", 9), "", 2, &few_experts),
        (distill.clone() + &prune("dense", "b", 8), "", 2, &of_dense),
        (distill.clone() + &observe("dense"), "", 2, &["step 2 (observe)", of_dense[1]]),
        (distill + &eval, "", 1, &["step 2 (eval)", "vocabularies of 2048 and 101"]),
        (observe(MOE) + &other, "", 1, &another_model),
    ]);
}

#[test]
fn options_of_later_steps_are_checked_first() {
    let quantize = step("quantize", "a", "output = \"b\"\nscheme = \"fp8\"\nsolver = \"gptq\"");
    recipes_refused(&[
        (
            prune(MOE, "a", 12) + &prune(MOE, "b", 8) + "probe-tokens = 99999\n",
            "",
            2,
            &["line 13, step 2 (prune)", "`probe-tokens` 99999"],
        ),
        (prune(MOE, "a", 12) + &quantize, "", 2, &["step 2 (quantize)", "leave `solver` out"]),
    ]);
}

#[test]
fn values_of_recipes_have_remedies_of_their_own() {
    let prune = prune(MOE, "out", 12);
    let too_large = ["line 7", "too large", "9223372036854775807"];
    let label = "label = \"${out}${seed}\"";
    let used = step("inspect", MOE, label).replace("[[step]]", "[[step.step]]");
    let vars = "[vars]\nout = \"target\"\nseeds = [0]\n";
    let block = format!("{vars}[[step]]\neach.seed = \"${{seeds}}\"\n{used}");
    recipes_refused(&[
        (prune.clone() + "seed = 99999999999999999999\n", "", 2, &too_large),
        (prune.clone() + "seed = 9223372036854775808\n", "", 2, &too_large),
        (step("eval", MOE, "data = \"x.txt\""), "", 2, &["in `data`", "write data = [\"x.txt\"]"]),
        (step("inspect", "~/moe", ""), "", 1, &["~/moe", "write the path out"]),
        (step("inspect", "golden/models/*", ""), "", 1, &["golden/models/*", "write the path out"]),
        (
            prune.replace("12", "\"${n}\""),
            "",
            2,
            &["line 5, step 1 (prune)", "no variable \"n\" here"],
        ),
        (block.clone(), "--set out=", 2, &["--set out", "empty"]),
        (block.clone(), "--set out=[1", 2, &["--set out", "without quotes or brackets"]),
        (block, "--set seeds=[1", 2, &["--set seeds", "not TOML of type array", "'[0]'"]),
    ]);
}

/// A million combinations are counted without making them, and some hundreds take no time.
#[test]
fn recipes_of_many_steps_are_checked_quickly() {
    let many = |n: usize| (0..n).map(|n| n.to_string()).collect::<Vec<_>>().join(", ");
    let inner = |run: &str, model: &str, keys: &str| {
        step(run, model, keys).replace("[[step]]", "[[step.step]]")
    };
    let list = many(100);
    let choices = format!("each.a = [{list}]\neach.b = [{list}]\neach.c = [{list}]");
    let inspect = inner("inspect", MOE, "label = \"${a}${b}${c}\"");
    let million = format!("[[step]]\n{choices}\n{inspect}");
    let keys = "output = \"p${seed}\"\nseed = \"${seed}\"\nkeep = 0.5\ncriterion = \"random\"";
    let prune = inner("prune", MOE, keys);
    let keys = "output = \"q${seed}\"\nsolver = \"rtn\"\ngroup-size = 33";
    let quantize = inner("quantize", "p${seed}", keys);
    let hundreds = format!("[[step]]\neach.seed = [{}]\n{prune}{quantize}", many(250));
    recipes_refused(&[
        (million, "", 2, &["more than 10000 steps", "fewer choices"]),
        (hundreds, "", 2, &["step 2 (quantize; seed 0)", "groups of 33"]),
    ]);
}
