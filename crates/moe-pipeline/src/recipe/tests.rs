//! Tests on recipes given as text.

mod blocks;
mod mistakes;
mod spare;
mod spelling;
mod steps;
mod values;

use super::{Recipe, Step, StepKind};

const RECIPE: &str = r#"
    [vars]
    out = "target/x"
    [[step]]
    run = "upcycle"
    model = "dense"
    output = "${out}/moe"
    experts = 8
    top-k = 2
    [[step]]
    run = "verify"
    model = "${out}/moe"
"#;

fn message(text: &str, overrides: &[(String, String)]) -> String {
    Recipe::parse(text, overrides, "x").unwrap_err().to_string()
}

/// The options of the only pass of `step`.
fn options(step: &Step) -> serde_json::Value {
    let StepKind::Convert { passes, .. } = &step.kind else { panic!("no pass: {step:?}") };
    let [pass] = passes.as_slice() else { panic!("several passes: {step:?}") };
    pass.options()
}
