//! Tests that `[defaults]` pass by the steps that have no use for them.

use crate::common::{Sandbox, step};

const DENSE: &str = "golden/models/dense";
const MOE: &str = "golden/models/moe";
const CODE: &str = "golden/text/code.calibration.txt";

/// [defaults] are for all steps of a command, so keys for reading text are ignored by steps without
/// text.
#[test]
fn defaults_of_text_pass_by_steps_without_text() {
    let sandbox = Sandbox::new();
    let keys = "data-tokens = 99\nsequence-length = 64\nheld-out-tokens = 99\n";
    let pruned = |more: &str| {
        step("prune", MOE, &format!("output = \"p\"\nexperts = 12\ncriterion = \"random\"\n{more}"))
    };
    sandbox.write("r.toml", format!("[defaults.prune]\n{keys}\n{}", pruned("")));
    sandbox.run("run r.toml --dry-run").succeeds();
    // A choice may leave a step without text.
    sandbox.write("r.toml", pruned(&format!("data = []\nheld-out = []\n{keys}")));
    sandbox.run("run r.toml --dry-run").succeeds();
    sandbox.write("r.toml", pruned(keys));
    sandbox.must_refuse("run r.toml --dry-run", 2, &["line 9", "`held-out-tokens`"]);
}

fn healed(model: &str, output: &str, more: &str) -> String {
    let data = format!("data = [{CODE:?}]\ntrain = [\"all\"]\nsteps = 1");
    step("heal", model, &format!("output = {output:?}\n{data}\n{more}"))
}

fn upcycled(target: &str, output: &str, more: &str) -> String {
    let keys = format!("output = {output:?}\nexperts = 4\ntop-k = 2\ntarget = {target:?}\n{more}");
    step("upcycle", DENSE, &keys)
}

/// Asserts that `defaults` run with a step that uses them and one that doesn't, and are refused
/// with the second alone, and with the step `own`, which has such a key of its own.
#[track_caller]
fn assert_passed_by(defaults: &str, uses: &str, idle: &str, own: &str) {
    let sandbox = Sandbox::new();
    sandbox.write("r.toml", format!("{defaults}{uses}{idle}"));
    sandbox.run("run r.toml --dry-run").succeeds();
    for refused in [format!("{defaults}{idle}"), format!("{defaults}{uses}{own}")] {
        sandbox.write("r.toml", &refused);
        sandbox.must_refuse("run r.toml --dry-run", 2, &["step ", "leave "]);
    }
}

/// A default that is useless only for a step's model is ignored in that step, but a key of the step
/// itself is refused. A default that is useless in all steps is refused.
#[test]
fn defaults_pass_by_models_without_use_for_them() {
    let (moe, dense) = (healed(MOE, "a", ""), healed(DENSE, "b", ""));
    let balance = "[defaults.heal]\nbalance = 0.5\n";
    assert_passed_by(balance, &moe, &dense, &healed(DENSE, "b", "z-loss = 0.1"));
    let capacity = "[defaults.heal]\ncapacity-factor = 2.0\nz-loss = 0.1\n";
    assert_passed_by(capacity, &moe, &dense, &healed(DENSE, "b", "balance = 0.5"));
    assert_passed_by(
        "[defaults.upcycle]\nshared-experts = 2\n",
        &upcycled("qwen2_moe", "a", ""),
        &upcycled("mixtral", "b", ""),
        &upcycled("mixtral", "b", "shared-fraction = 0.25\n"),
    );
}
