//! Lets several passes decide in one sweep.

use moe_checkpoint::Result;
use moe_forward::Sweep;
use moe_model::Model;

use super::Deciding;
use crate::context::RunContext;
use crate::progress::Unit;

/// Lets several passes decide in one sweep: each converts the layer that the one before it made, on
/// tokens that have gone through the earlier layers as all passes up to it made them. Each is given
/// with its source; only the first one's layers must be more than planned.
///
/// Every pass sees what it would see in its own sweep over the result of the one before it, so that
/// the outcome is the same.
///
/// # Errors
/// Errors of sweeps.
pub(crate) fn decide_together(
    parts: &mut [(&Model, &mut Deciding)],
    name: &str,
    run: &RunContext<'_>,
) -> Result<()> {
    for (source, deciding) in parts.iter_mut() {
        deciding.begin(source, run)?;
    }
    let tokens = parts.iter().map(|(_, deciding)| deciding.text.batch.tokens()).sum();
    let Some(source) = parts.first().map(|(source, _)| *source) else { return Ok(()) };
    let storage = run.storage(source, tokens)?;
    let mut sweeps = Vec::new();
    for (source, deciding) in parts {
        let Deciding { sweep, text, .. } = &mut **deciding;
        let states = Sweep::stored(source, &text.batch, run.compute(), &storage)?;
        sweeps.push((states, &mut sweep.pass));
    }
    let stage = format!("{name} on {tokens} tokens");
    run.progress.stage(&stage, source.layers.len() as u64, Unit::Layers { tokens });
    for (index, layer) in source.layers.iter().enumerate() {
        let mut layer = layer.clone();
        for (states, pass) in &mut sweeps {
            pass.model_mut().layers[index] = layer.clone();
            layer = states.convert(index, &layer, pass.as_mut())?.applied_to(layer);
        }
        run.progress.advance(1);
    }
    Ok(())
}
