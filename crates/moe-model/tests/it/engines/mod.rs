//! Tests which engine takes which quantized experts: every rule with a model that breaks it. Shapes
//! are made up; no weight has bytes.

mod mixed;
mod models;
mod schemes;
mod transformers;

use moe_model::{Answer, Model, Verdict};

const WIDE: [usize; 2] = [2048, 768];

fn verdict(model: &Model, engine: &str) -> Verdict {
    let found = model.engines().into_iter().find(|verdict| verdict.engine.starts_with(engine));
    found.unwrap_or_else(|| panic!("nothing is said of {engine}"))
}

/// Each engine's answer, and what it must say.
fn expect(model: &Model, engine: &str, answer: Answer, what: &str) {
    let found = verdict(model, engine);
    assert_eq!(found.answer, answer, "{found}");
    assert!(found.to_string().contains(what), "{found}: without {what:?}");
}
