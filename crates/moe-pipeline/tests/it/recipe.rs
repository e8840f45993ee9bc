//! A block runs for every combination of its choices, in order, for any number of blocks and
//! choices.

use std::path::PathBuf;

use moe_pipeline::Recipe;
use proptest::collection::vec;
use proptest::prelude::*;

/// A recipe of nested blocks, and the models of its steps.
fn nested(choices: &[Vec<u16>]) -> (String, Vec<String>) {
    let (mut text, mut models) = (String::new(), vec!["m".to_owned()]);
    for (depth, values) in choices.iter().enumerate() {
        text += &format!("[[{}step]]\neach.v{depth} = {values:?}\n", "step.".repeat(depth));
        models = models
            .iter()
            .flat_map(|model| values.iter().map(move |v| format!("{model}-{v}")))
            .collect();
    }
    let variables: String = (0..choices.len()).map(|depth| format!("-${{v{depth}}}")).collect();
    let inner = "step.".repeat(choices.len());
    (text + &format!("[[{inner}step]]\nrun = \"verify\"\nmodel = \"m{variables}\"\n"), models)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn blocks(choices in vec(vec(any::<u16>(), 1..5), 1..5)) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("blocks.toml");
        let (text, models) = nested(&choices);
        std::fs::write(&path, text).unwrap();
        let recipe = Recipe::read(&path, &[]).unwrap();
        let found: Vec<PathBuf> = recipe.steps.into_iter().map(|step| step.model).collect();
        prop_assert_eq!(found, models.into_iter().map(PathBuf::from).collect::<Vec<_>>());
    }
}
