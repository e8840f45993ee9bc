//! Tests distillation from checkpoint to checkpoint: exact results are exact, and measured ones agree
//! with other code.

mod exact;
mod made;
mod trained;

use std::path::Path;

use moe_checkpoint::Error;
use moe_passes::Pass;
use moe_passes::distill::DistilledLayer;
use moe_pipeline::{Quiet, Receipt, convert};
use serde::de::DeserializeOwned;

use crate::common::{golden, run_again};

fn run<P: Pass + DeserializeOwned>(
    input: &Path,
    output: &Path,
    toml: &str,
) -> Result<Receipt, Error> {
    let options: P = toml::from_str(toml).unwrap_or_else(|e| panic!("{toml}: {e}"));
    Ok(convert(&[&options], input, output, &run_again(), &Quiet)?.receipt)
}

/// Writes `sequences` of 16 ids each, below `vocab`, to a file. Returns options that name it and
/// train nothing.
fn ids(dir: &Path, sequences: usize, vocab: usize) -> String {
    let id = |at: usize| (at * at * 7 + 3 * at + at / 16) % vocab;
    let line = |s: usize| {
        format!("{{\"input_ids\": {:?}}}\n", (16 * s..16 * s + 16).map(id).collect::<Vec<_>>())
    };
    let path = dir.join("ids.jsonl");
    std::fs::write(&path, (0..sequences).map(line).collect::<String>()).unwrap();
    format!("data = [{:?}]\nsequence-length = 16\nsteps = 0\n", path.display().to_string())
}

/// Options that name texts of two domains.
fn texts(key: &str, what: &str) -> String {
    let paths = ["english", "code"]
        .map(|name| golden(&format!("text/{name}.{what}.txt")).display().to_string());
    format!("{key} = {paths:?}\n{key}-tokens = ")
}

/// Options for `tokens` of calibration text from each of two domains.
fn calibration(tokens: usize) -> String {
    format!("{}{tokens}\nsequence-length = 128\n", texts("data", "calibration"))
}

fn kl(receipt: &Receipt) -> f64 {
    receipt.held_out.as_ref().unwrap().result.all.against.as_ref().unwrap().kl
}

fn layers(receipt: &Receipt) -> Vec<DistilledLayer> {
    receipt.layers.iter().map(|layer| layer.details().unwrap()).collect()
}
