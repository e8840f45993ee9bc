//! Blocks and their choices.

use std::path::Path;

use super::{Recipe, message, options};

const MATRIX: &str = r#"
    [vars]
    out = "x"
    seeds = [0, 1]
    [defaults.quantize]
    model = "moe"
    seed = "${seed}"
    [[step]]
    run = "verify"
    model = "moe"
    [[step]]
    each.bits = [3, 2]
    each.text = [{ text = "all", files = ["a=a.txt", "b.txt"], sizes = [512] }, { text = "one", files = ["a.txt"], sizes = [64, 128] }]
    [[step.step]]
    each.tokens = "${sizes}"
    each.seed = "${seeds}"
    [[step.step.step]]
    run = "quantize"
    output = "${out}/${bits}-${text}-${tokens}-${seed}"
    scheme = "w${bits}a16"
    data = "${files}"
    data-tokens = "${tokens}"
    [[step.step.step]]
    run = "eval"
    label = "${bits} bits, ${text}, ${tokens}"
    model = "${out}/${bits}-${text}-${tokens}-${seed}"
    data = ["b.txt"]
"#;

#[test]
fn blocks_run_for_every_combination() {
    let steps = Recipe::parse(MATRIX, &[], "x").unwrap().steps;
    assert_eq!((steps[0].command.as_str(), steps[0].chosen.as_str()), ("verify", ""));
    let made: Vec<_> = steps[1..].iter().step_by(2).map(|step| step.chosen.as_str()).collect();
    let sizes = ["text all, tokens 512", "text one, tokens 64", "text one, tokens 128"];
    let of_bits = |bits| {
        sizes
            .iter()
            .flat_map(move |size| [0, 1].map(|seed| format!("bits {bits}, {size}, seed {seed}")))
    };
    assert_eq!(made, [3, 2].into_iter().flat_map(of_bits).collect::<Vec<_>>());
    assert_eq!(steps[7].output(), Some((Path::new("x/3-one-64-1"), false)));
    let options = options(&steps[7]);
    assert_eq!((&options["data-tokens"], &options["seed"]), (&64.into(), &1.into()));
    assert_eq!(options["data"].as_array().unwrap().len(), 1);
    assert_eq!(steps[8].row(), "3 bits, one, 64");
    assert_eq!(steps[8].name(), "eval; bits 3, text one, tokens 64, seed 1");
    let fewer = [("seeds".to_owned(), "[7]".to_owned())];
    assert_eq!(Recipe::parse(MATRIX, &fewer, "x").unwrap().steps.len(), 1 + 2 * 2 * 3);
}

/// CI doesn't run the study: three bit widths, each rounded once and for three mixes, three sizes,
/// five ways and three seeds.
#[test]
fn the_full_study_is_a_recipe() {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes/full/compare-samples.toml");
    let recipe = Recipe::read(&path, &[]).unwrap();
    assert_eq!(recipe.steps.len(), 2 * 3 * (1 + 3 * 3 * 5 * 3));
    let part = [("widths".to_owned(), "[4]".to_owned()), ("seeds".to_owned(), "[0]".to_owned())];
    assert_eq!(Recipe::read(&path, &part).unwrap().steps.len(), 2 * (1 + 3 * 3 * 5));
}

#[test]
fn mistakes_in_blocks_are_named() {
    let with = |from: &str, to: &str| {
        assert!(MATRIX.contains(from), "{from}");
        message(&MATRIX.replace(from, to), &[])
    };
    let bits = "each.bits = [3, 2]";
    assert!(
        with("[3, 2]", "[3, 5]")
            .contains("step 2.1.1 (quantize; bits 5, text all, tokens 512, seed 0): ")
    );
    assert!(
        with(bits, "each.bits = []")
            .contains("step 2 (a block): each.bits: give at least one value")
    );
    assert!(with(bits, "each.bits = 3").contains("each.bits: give a list"));
    assert!(
        with(bits, "each.bits = [3, 2]\neach.nits = [1]")
            .contains("each.nits: no step of the block uses ${nits}")
    );
    assert!(with(bits, "each.out = [1]").contains("each.out: there is a variable \"out\" already"));
    assert!(
        with("w${bits}a16", "w${bit}a16")
            .contains("there is no variable \"bit\" here, only bits, files, out")
    );
    assert!(
        with("data = \"${files}\"", "data = [\"a ${files}\"]")
            .contains("${files} is of type array")
    );
    assert!(
        with("files = [\"a.txt\"], ", "").contains("here are text, files, sizes, and text, sizes")
    );
    assert!(
        with("sizes = [512] }", "sizes = [512], more = 1 }")
            .contains("every value sets the same variables")
    );
    assert!(
        with("[{ text", "[1, { text").contains("each.text: every value sets the same variables")
    );
    assert!(
        with(bits, "each.bits = [3, 2]\nrun = \"verify\"")
            .contains("unknown key `run`, expected each and step")
    );
    assert!(
        with("seeds = [0, 1]", "seeds = [0, 1]\nspare = 1")
            .contains("[vars] spare: nothing uses ${spare}")
    );
    assert!(
        with("-${tokens}-${seed}\"\n    scheme", "\"\n    scheme")
            .contains("writes to x/3-all, as step 2 does")
    );
    assert!(
        with("[\"b.txt\"]\n", "[\"${seed}.txt\"]\n")
            .contains("has the label of step 3, \"3 bits, all, 512\"")
    );
    let block = "[[step]]\n[[step.step]]\nrun = \"verify\"\nmodel = \"x\"";
    assert!(message(block, &[]).contains("step 1 (a block): the key \"each\" is missing"));
    assert!(
        message("[[step]]\neach = {}\n[[step.step]]", &[])
            .contains("step 1 (a block): it has no choice under each")
    );
    assert!(message("[[step]]\neach.a = [1]", &[]).contains("step 1 (a block): it has no step"));
    let set = |value: &str| message(MATRIX, &[("seeds".to_owned(), value.to_owned())]);
    assert!(set("3").contains("--set seeds: \"3\" is not TOML of type array, as [0, 1] is"));
}
