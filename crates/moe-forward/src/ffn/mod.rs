//! Feed-forward blocks: one network for all tokens, or experts that run only on their own tokens.

mod capacity;
mod groups;
mod kept;
mod left_out;
mod mixture;
mod network;
mod parts;
mod running;

use candle_core::Tensor;
use moe_checkpoint::Result;
use moe_model::{Ffn, Moe};

pub(crate) use self::capacity::Capacity;
pub use self::network::{ExpertsOn, expert_output, experts_on, neuron_activations, router_scores};
pub(crate) use self::running::RunningLayer;

use self::mixture::Mixture;
use crate::context::Context;
use crate::observer::Observer;

/// Maximum size in bytes of the outputs that are kept for an observer of outputs without each
/// expert.
const KEPT_BYTES: usize = 512 << 20;

/// Runs `ffn` on `x`, `[tokens, hidden]`, which is normalized already. `first` is the index of its
/// first token in the batch.
pub(crate) fn forward(
    running: RunningLayer<'_>,
    ffn: &Ffn,
    x: &Tensor,
    first: usize,
    observer: &mut dyn Observer,
) -> Result<Tensor> {
    match ffn {
        Ffn::Dense(network) => running.dense(network, x),
        Ffn::Moe(moe) => mixture(running, moe, x, first, observer),
    }
}

fn mixture(
    running: RunningLayer<'_>,
    moe: &Moe,
    x: &Tensor,
    first: usize,
    observer: &mut dyn Observer,
) -> Result<Tensor> {
    let (tokens, hidden) = x.dims2().context(|| "a shape".into())?;
    let wants = observer.wants();
    let bytes_per_token = moe.router.top_k * hidden * running.loader.compute.dtype.size_in_bytes();
    let max_tokens = if wants.left_out { KEPT_BYTES / bytes_per_token } else { tokens };
    let mut parts = Vec::new();
    for start in (0..tokens).step_by(max_tokens.max(1)) {
        let count = max_tokens.max(1).min(tokens - start);
        let part = x.narrow(0, start, count).context(|| "a slice".into())?;
        let mixture = Mixture::route(running, moe, &part, wants.clone(), observer)?;
        parts.push(mixture.run(&(first + start..first + start + count), observer)?);
    }
    Tensor::cat(&parts, 0).context(|| format!("the experts' output in layer {}", running.index))
}
