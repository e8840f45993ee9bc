//! Tests that lists outside of the program's sources have every pass of `moe_passes::PASSES`.

use std::fs;

use crate::common::passes::{SAMPLES, assert_has_every_pass};
use crate::common::root;

/// A check of the selftest for each pass. They are looked for in the wheel, whose selftest has all.
const CHECKS: [(&str, &str); 6] = [
    ("upcycle", "upcycle"),
    ("prune", "prune"),
    ("merge", "merge"),
    ("quantize", "quantize"),
    ("distill", "distill"),
    ("heal", "gradients"),
];

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

#[test]
fn every_pass_has_a_sample() {
    assert_has_every_pass("tests/it/common/passes.rs", SAMPLES.iter().map(|sample| sample.pass));
}

#[test]
fn scripts_for_root_run_every_pass() {
    let script = read("tests/root/lib.sh");
    let list = script.lines().find_map(|line| line.strip_prefix("passes=(")).unwrap();
    // A pass can be there with several options, such as quantize-gptq and quantize-rtn.
    let passes = list.trim_end_matches(')').split(' ').filter_map(|name| name.split('-').next());
    assert_has_every_pass("tests/root/lib.sh", passes);
}

#[test]
fn the_wheel_is_asked_for_a_check_of_every_pass() {
    assert_has_every_pass("tests/it/passes.rs", CHECKS.map(|(pass, _)| pass));
    let script = read(".ci/run");
    let list = script.lines().find_map(|line| line.strip_prefix("for kind in \"")).unwrap();
    let kinds: Vec<&str> = list.split('"').next().unwrap().split(' ').collect();
    for (pass, check) in CHECKS {
        assert!(kinds.contains(&check), "the wheel of .ci/run isn't asked for {check}, of {pass}");
    }
}

#[test]
fn recipes_to_fuzz_have_every_pass() {
    let seeds = fs::read_dir(root().join("fuzz/corpus/recipe")).unwrap();
    let text: String =
        seeds.map(|seed| fs::read_to_string(seed.unwrap().path()).unwrap()).collect();
    let passes = text.split("run = \"").skip(1).filter_map(|rest| rest.split('"').next());
    assert_has_every_pass("fuzz/corpus/recipe", passes);
}
