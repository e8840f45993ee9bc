//! Feed-forward blocks: one network for all tokens, or experts that run on their own tokens only.

use candle_core::{D, DType, Tensor};
use moe_checkpoint::Result;
use moe_math::Compute;
use moe_math::product::product;
use moe_math::routing::Routing;
use moe_model::{Expert, Ffn, Moe};

use crate::context::Context;
use crate::loader::Loader;
use crate::router::LoadedRouter;
use crate::sweep::Observer;

/// A block's activations are computed for this many tokens at a time.
const TOKEN_BLOCK: usize = 4096;
/// Experts' outputs of at most this many bytes wait for being summed.
const COMBINE_BYTES: usize = 512 << 20;

/// Runs the block of layer `index` on `x`, `[tokens, hidden]`, already normalised.
pub(crate) fn forward(
    loader: Loader<'_>,
    index: usize,
    ffn: &Ffn,
    x: &Tensor,
    observer: &mut dyn Observer,
) -> Result<Tensor> {
    match ffn {
        Ffn::Dense(expert) => {
            let expert = loader.expert(expert)?;
            in_blocks(x, |x| expert.forward(x)).context(|| format!("the feed-forward block of layer {index}"))
        }
        Ffn::Moe(moe) => {
            let (tokens, hidden) = x.dims2().context(|| "a shape".into())?;
            let bytes_per_token = moe.router.top_k * hidden * loader.compute.dtype.size_in_bytes();
            let block = (COMBINE_BYTES / bytes_per_token).max(1);
            let mut parts = Vec::new();
            for start in (0..tokens).step_by(block) {
                let part = x.narrow(0, start, block.min(tokens - start)).context(|| "a slice".into())?;
                parts.push(mixture(loader, index, moe, &part, observer)?);
            }
            Tensor::cat(&parts, 0).context(|| format!("the experts' output in layer {index}"))
        }
    }
}

/// What the neurons of `network` do on `x`, `[tokens, hidden]`: silu(gate x) ∘ (up x), `[tokens, width]`.
///
/// # Errors
/// What reading and the device return.
pub fn neuron_activations(network: &Expert, x: &Tensor, compute: &Compute) -> Result<Tensor> {
    let loaded = Loader { compute, shared: None }.expert(network)?;
    loaded.activations(x).context(|| format!("activations behind {}", network.gate.weight.name()))
}

fn in_blocks(x: &Tensor, f: impl Fn(&Tensor) -> candle_core::Result<Tensor>) -> candle_core::Result<Tensor> {
    let tokens = x.dim(0)?;
    let blocks =
        (0..tokens).step_by(TOKEN_BLOCK).map(|start| f(&x.narrow(0, start, TOKEN_BLOCK.min(tokens - start))?));
    Tensor::cat(&blocks.collect::<candle_core::Result<Vec<_>>>()?, 0)
}

fn mixture(loader: Loader<'_>, index: usize, moe: &Moe, x: &Tensor, observer: &mut dyn Observer) -> Result<Tensor> {
    let router = LoadedRouter::load_with(&moe.router, loader)?;
    let (logits, routing) = router.route(x).context(|| format!("the routing of layer {index}"))?;
    observer.routed(index, &logits, &routing);
    // Outputs in the order of experts, and where the output for each (token, choice) has come to lie.
    let mut outputs = Vec::new();
    let mut place = vec![0u32; routing.selected.len()];
    let mut filled = 0;
    for (expert, slots) in groups(moe, &routing) {
        let loaded = loader.expert(expert)?;
        let tokens = unique_tokens(&slots, routing.top_k);
        for slot in slots {
            let token = slot / routing.top_k as u32;
            place[slot as usize] = filled + tokens.binary_search(&token).expect("every slot's token is there") as u32;
        }
        filled += tokens.len() as u32;
        let run = || {
            let count = tokens.len();
            let tokens = Tensor::from_vec(tokens, count, x.device())?;
            in_blocks(&x.index_select(&tokens, 0)?, |x| loaded.forward(x))
        };
        outputs.push(run().context(|| format!("the expert of {} in layer {index}", expert.down.weight.name()))?);
    }
    let routed = combine(&outputs, place, &routing).context(|| format!("the experts' output in layer {index}"))?;
    let Some(shared) = &moe.shared else { return Ok(routed) };
    let expert = loader.expert(&shared.expert)?;
    let gate = shared.gate.as_ref().map(|gate| loader.matrix(gate)).transpose()?;
    let add = || {
        let out = in_blocks(x, |x| expert.forward(x))?;
        match &gate {
            Some(gate) => routed + out.broadcast_mul(&candle_nn::ops::sigmoid(&product(x, gate)?)?)?,
            None => routed + out,
        }
    };
    add().context(|| format!("the shared expert of layer {index}"))
}

/// Experts that have tokens, each with its positions in `routing.selected`. Neighbours that are made of the same
/// bytes, as in a plain upcycling before it is written, are one.
fn groups<'m>(moe: &'m Moe, routing: &Routing) -> Vec<(&'m Expert, Vec<u32>)> {
    let mut groups: Vec<(&Expert, Vec<u32>)> = Vec::new();
    for (expert, slots) in moe.experts.iter().zip(routing.slots_by_expert()).filter(|(_, slots)| !slots.is_empty()) {
        match groups.last_mut() {
            Some((last, all)) if last.same_source(expert) => all.extend(slots),
            _ => groups.push((expert, slots)),
        }
    }
    groups
}

/// The tokens of `slots`, ascending, each once: experts of the same bytes give a token that chose both one output.
fn unique_tokens(slots: &[u32], top_k: usize) -> Vec<u32> {
    let mut tokens: Vec<u32> = slots.iter().map(|slot| slot / top_k as u32).collect();
    tokens.sort_unstable();
    tokens.dedup();
    tokens
}

/// Σ over a token's choices of weight × output; gives `[tokens, hidden]`.
fn combine(outputs: &[Tensor], place: Vec<u32>, routing: &Routing) -> candle_core::Result<Tensor> {
    let outputs = Tensor::cat(outputs, 0)?;
    let (tokens, k) = (routing.tokens(), routing.top_k);
    let place = Tensor::from_vec(place, tokens * k, outputs.device())?;
    let weights = Tensor::from_slice(&routing.weights, (tokens, k, 1), outputs.device())?;
    let dtype = outputs.dtype();
    let by_token = outputs.index_select(&place, 0)?.reshape((tokens, k, ()))?.to_dtype(DType::F32)?;
    by_token.broadcast_mul(&weights)?.sum(D::Minus2)?.to_dtype(dtype)
}
