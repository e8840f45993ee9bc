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

/// Mistakes in the blocks of [`MATRIX`]: what is replaced there, by what, and what is said of it.
const MISTAKES: [(&str, &str, &str); 14] = [
    ("[3, 2]", "[3, 5]", "step 2.1.1 (quantize; bits 5, text all, tokens 512, seed 0): "),
    (BITS, "each.bits = []", "step 2 (a block): each.bits: give at least one value"),
    (BITS, "each.bits = 3", "each.bits: give a list"),
    (BITS, "each.bits = [3, 2]\neach.nits = [1]", "each.nits: no step of the block uses ${nits}"),
    (BITS, "each.out = [1]", "each.out: there is a variable \"out\" already"),
    ("w${bits}a16", "w${bit}a16", "there is no variable \"bit\" here, only bits, files, out"),
    ("data = \"${files}\"", "data = [\"a ${files}\"]", "${files} is of type array"),
    ("files = [\"a.txt\"], ", "", "here are text, files, sizes, and text, sizes"),
    ("sizes = [512] }", "sizes = [512], more = 1 }", "every value sets the same variables"),
    ("[{ text", "[1, { text", "each.text: every value sets the same variables"),
    (BITS, "each.bits = [3, 2]\nrun = \"verify\"", "unknown key `run`, expected each and step"),
    ("seeds = [0, 1]", "seeds = [0, 1]\nspare = 1", "[vars] spare: nothing uses ${spare}"),
    ("-${tokens}-${seed}\"\n    scheme", "\"\n    scheme", "writes to x/3-all, as step 2 does"),
    ("[\"b.txt\"]\n", "[\"${seed}.txt\"]\n", "has the label of step 3, \"3 bits, all, 512\""),
];

const BITS: &str = "each.bits = [3, 2]";

#[test]
fn mistakes_in_blocks_are_named() {
    for (from, to, said) in MISTAKES {
        assert!(MATRIX.contains(from), "{from}");
        let found = message(&MATRIX.replace(from, to), &[]);
        assert!(found.contains(said), "{from} as {to}: {found}");
    }
}

#[test]
fn blocks_without_steps_or_choices_are_refused() {
    let block = "[[step]]\n[[step.step]]\nrun = \"verify\"\nmodel = \"x\"";
    assert!(message(block, &[]).contains("step 1 (a block): the key \"each\" is missing"));
    assert!(
        message("[[step]]\neach = {}\n[[step.step]]", &[])
            .contains("step 1 (a block): it has no choice under each")
    );
    assert!(message("[[step]]\neach.a = [1]", &[]).contains("step 1 (a block): it has no step"));
}

#[test]
fn variables_keep_their_type() {
    let set = |value: &str| message(MATRIX, &[("seeds".to_owned(), value.to_owned())]);
    assert!(set("3").contains("--set seeds: \"3\" is not TOML of type array, as [0, 1] is"));
}
