//! Several passes that decide in one sweep.

use moe_checkpoint::Result;
use moe_forward::Sweep;
use moe_model::Model;

use super::Deciding;
use crate::context::RunContext;
use crate::progress::Unit;

/// Lets several decide in one sweep: what one makes of a layer is what the next converts, on tokens
/// that have gone through what all up to it made of the layers before. Each is given with what it
/// converts, of which only the first one's layers must be more than planned.
///
/// Every one sees what it would see in a sweep of its own over the result of the one before it:
/// what comes of it is the same.
///
/// # Errors
/// What sweeps return.
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
    run.progress.stage(
        &format!("{name} on {tokens} tokens"),
        source.layers.len() as u64,
        Unit::Layers { tokens },
    );
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
