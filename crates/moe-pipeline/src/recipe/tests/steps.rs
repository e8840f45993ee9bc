//! Steps, their variables and defaults.

use std::path::Path;

use super::{RECIPE, Recipe, message, options};

#[test]
fn variables_are_replaced_and_overridden() {
    let of = |overrides: &[(String, String)]| {
        Recipe::parse(RECIPE, overrides, "x").unwrap().steps[1].model.clone()
    };
    assert_eq!(of(&[]), Path::new("target/x/moe"));
    assert_eq!(of(&[("out".into(), "/y".into())]), Path::new("/y/moe"));
    assert!(message(RECIPE, &[("outt".into(), "/y".into())]).contains("its variables are: out"));
}

#[test]
fn defaults_fill_in_what_a_step_leaves_out() {
    let text = format!("{RECIPE}\n[defaults.upcycle]\ntop-k = 4\nseed = 7");
    let options = options(&Recipe::parse(&text, &[], "x").unwrap().steps[0]);
    assert_eq!((&options["top-k"], &options["seed"]), (&2.into(), &7.into()));
}

#[test]
fn merging_is_a_step() {
    let text = "[[step]]\nrun = \"merge\"\nmodel = \"moe\"\noutput = \"x\"\nexperts = 12\nalgorithm = \"hc-smoe\"\nall-experts-every = 4\ndata = [\"t\"]";
    let options = options(&Recipe::parse(text, &[], "x").unwrap().steps[0]);
    assert_eq!((&options["all-experts-every"], &options["experts"]), (&4.into(), &12.into()));
    assert!(
        message(&format!("{text}\ncap = 3"), &[]).contains("step 1 (merge): unknown field `cap`")
    );
}
