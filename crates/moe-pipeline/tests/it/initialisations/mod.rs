//! Tests initialisations of experts: their weights, and their promises about the function.

mod neurons;
mod refused;
mod several_models;
mod shards;

use std::path::Path;

use moe_forward::{Batch, Silent, logit_difference};
use moe_math::Compute;
use moe_model::{Expert, Ffn, Kind, Model, Moe};
use moe_passes::{Pass, PlannedModel, Sources, UpcycleOptions};

use crate::common::{golden, values};

fn try_plan(toml: &str, dense: &Model, others: &[Model]) -> moe_checkpoint::Result<PlannedModel> {
    let options: UpcycleOptions = toml::from_str(toml).unwrap_or_else(|e| panic!("{toml}: {e}"));
    let others_differ = others.iter().any(|other| other.config_file != dense.config_file);
    let compute = Compute::cpu();
    let plan = options.plan(&Sources { others, others_differ, ..Sources::new(dense, &compute) })?;
    Ok(plan.planned)
}

fn plan(toml: &str, dense: &Model) -> PlannedModel {
    try_plan(toml, dense, &[]).unwrap_or_else(|e| panic!("{toml}: {e}"))
}

fn dense() -> Model {
    Model::open(&golden("models/dense")).unwrap()
}

fn network(model: &Model, layer: usize) -> &Expert {
    match &model.layers[layer].ffn {
        Ffn::Dense(ffn) => ffn,
        Ffn::Moe(_) => panic!("layer {layer} has experts"),
    }
}

fn mixture(plan: &PlannedModel, layer: usize) -> &Moe {
    plan.model.layers[layer].ffn.moe().expect("a layer with experts")
}

/// Neuron `n` of an expert: its gate row, up row and down column.
fn neuron(expert: &Expert, n: usize) -> [Vec<f32>; 3] {
    neurons(expert).swap_remove(n)
}

/// All neurons of an expert.
fn neurons(expert: &Expert) -> Vec<[Vec<f32>; 3]> {
    let (width, hidden) = (expert.width(), expert.gate.weight.shape()[1]);
    let [gate, up, down] =
        [&expert.gate, &expert.up, &expert.down].map(|linear| values(&linear.weight));
    let row = |matrix: &[f32], n: usize| matrix[n * hidden..(n + 1) * hidden].to_vec();
    let column = |n: usize| down.iter().skip(n).step_by(width).copied().collect();
    (0..width).map(|n| [row(&gate, n), row(&up, n), column(n)]).collect()
}

/// Largest |Δlogit| over the largest logit of the dense model, for the planned model as loaders
/// would see it.
fn relative_difference(dense: &Model, plan: &PlannedModel, tokens: &Path) -> f64 {
    let moe = plan.model.declare().unwrap().reread().unwrap();
    let batch = Batch::from_json(tokens).unwrap();
    let d = logit_difference(dense, &moe, &batch, &Compute::cpu(), &mut Silent).unwrap();
    d.max_logit_difference / d.max_logit.max(1.0)
}

fn plan_error(toml: &str, dense: &Model) -> String {
    let error = try_plan(toml, dense, &[])
        .and_then(|plan| plan.model.declare())
        .expect_err("it must be refused");
    assert!(matches!(error.kind(), Kind::Usage | Kind::Unsupported), "{error}");
    error.to_string()
}
