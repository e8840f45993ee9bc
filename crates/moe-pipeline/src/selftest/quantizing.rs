//! Compares quantized checkpoints with transformers (golden/quantize/checkpoints).

use moe_checkpoint::Result;
use moe_forward::{Batch, LmHead, Silent, Sweep};
use moe_math::Compute;
use moe_model::Model;

use super::goldens::Goldens;
use super::{Check, apart, check, numbers, numeric};

/// Each checkpoint, and the tokens that transformers ran it on.
const CHECKPOINTS: [(&str, &str); 3] = [
    ("qwen3_moe.w4", "families/qwen3_moe/both_names/tokens.json"),
    ("mixtral.w8", "families/mixtral/sliding/tokens.json"),
    ("qwen3_moe.fp8", "quantize/checkpoints/qwen3_moe.fp8/tokens.json"),
];

pub fn checks(goldens: &Goldens, compute: &Compute) -> Result<Vec<Check>> {
    CHECKPOINTS.iter().map(|(name, tokens)| logits(goldens, name, tokens, compute)).collect()
}

fn logits(goldens: &Goldens, name: &str, tokens: &str, compute: &Compute) -> Result<Check> {
    let folder = goldens.path("quantize/checkpoints").join(name);
    let (model, batch) = (Model::open(&folder)?, Batch::from_json(&goldens.path(tokens))?);
    let mut sweep = Sweep::new(&model, &batch, compute)?;
    sweep.run(&mut Silent)?;
    let logits = LmHead::load(&model, compute)?.logits(&sweep.hidden(0..batch.tokens())?)?;
    let logits = logits.flatten_all().map_err(|e| numeric("the logits of a quantized model", e))?;
    let reference =
        goldens.tensors(&format!("quantize/checkpoints/{name}/reference.safetensors"))?;
    let error = reference
        .get("logits_exact")
        .map(|expected| Ok(apart(&numbers(&logits)?, &numbers(expected)?)));
    Ok(check(format!("quantized {name}"), 1e-5, &[(error.transpose()?.unwrap_or(f64::NAN), 0)]))
}
