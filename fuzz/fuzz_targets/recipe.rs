//! A recipe, expanded into its steps, the same ones each time.
#![no_main]

use libfuzzer_sys::fuzz_target;
use moe_fuzz::{accepted, write};
use moe_pipeline::Recipe;

fuzz_target!(|text: &[u8]| {
    let path = write("recipe.toml", text);
    let Some(recipe) = accepted(Recipe::read(&path, &[])) else { return };
    assert!(!recipe.steps.is_empty());
    let again = Recipe::read(&path, &[]).expect("it was understood before");
    assert_eq!(format!("{:?}", recipe.steps), format!("{:?}", again.steps));
});
