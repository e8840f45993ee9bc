//! Networks, experts and routers by themselves.

use candle_core::{Result as CandleResult, Tensor};
use moe_checkpoint::Result;
use moe_math::Compute;
use moe_math::meter::Work;
use moe_math::routing::{Routing, route_masked};
use moe_model::{Expert, Moe};

use super::parts::in_blocks;
use crate::context::Context;
use crate::loader::Loader;
use crate::router::LoadedRouter;

/// The stage of running experts.
pub(super) const EXPERTS: &str = "experts";

/// What the neurons of `network` do on `x`, `[tokens, hidden]`: silu(gate x) ∘ (up x), `[tokens,
/// width]`.
///
/// # Errors
/// What reading and the device return.
pub fn neuron_activations(network: &Expert, x: &Tensor, compute: &Compute) -> Result<Tensor> {
    let loaded = Loader::new(compute).expert(network)?;
    loaded.activations(x).context(|| format!("activations behind {}", network.gate.weight.name()))
}

/// A mixture whose experts all ran on the same tokens.
pub struct ExpertsOn {
    /// The output of each expert, `[tokens, hidden]`, before any gate.
    pub outputs: Vec<Tensor>,
    logits: Tensor,
    router: LoadedRouter,
}

impl ExpertsOn {
    /// Where tokens go when the `masked` experts are not there.
    ///
    /// # Errors
    /// What the device returns.
    pub fn routed(&self, masked: &[bool]) -> CandleResult<Routing> {
        route_masked(&self.logits, self.router.rule(), Some(masked))
    }
}

/// Runs all experts of `moe` on `x`, `[tokens, hidden]`.
///
/// # Errors
/// What reading and the device return.
pub fn experts_on(moe: &Moe, x: &Tensor, compute: &Compute) -> Result<ExpertsOn> {
    let experts = moe.experts.iter();
    let outputs = experts.map(|expert| expert_output(expert, x, compute)).collect::<Result<_>>()?;
    let router = LoadedRouter::load(&moe.router, compute)?;
    let (logits, _) =
        router.route(x).context(|| format!("the logits of {}", moe.router.weight.name()))?;
    Ok(ExpertsOn { outputs, logits, router })
}

/// What `network` gives for `x`, `[tokens, hidden]`.
///
/// # Errors
/// What reading and the device return.
pub fn expert_output(network: &Expert, x: &Tensor, compute: &Compute) -> Result<Tensor> {
    output_of(Loader::new(compute), network, x)
}

/// What `network` gives for `x`, with weights that `loader` loads.
pub(super) fn output_of(loader: Loader<'_>, network: &Expert, x: &Tensor) -> Result<Tensor> {
    let loaded = loader.expert(network)?;
    let work = Work::products(x.dims()[0], network.elements());
    loader
        .compute
        .stage(EXPERTS, work, || in_blocks(x, |x| loaded.forward(x)))
        .context(|| format!("the expert of {}", network.down.weight.name()))
}

/// What tokens `x`, `[tokens, hidden]`, rank the experts of `moe` by: logits or, with an expert
/// correction bias, scores plus bias; `[tokens, experts]`, row by row.
///
/// # Errors
/// What reading and the device return.
pub fn router_scores(moe: &Moe, x: &Tensor, compute: &Compute) -> Result<Vec<f32>> {
    let router = LoadedRouter::load(&moe.router, compute)?;
    choice_scores(&router, x).context(|| format!("the scores of {}", moe.router.weight.name()))
}

fn choice_scores(router: &LoadedRouter, x: &Tensor) -> CandleResult<Vec<f32>> {
    let (logits, mut routing) = router.route(x)?;
    let Some(bias) = &router.rule().bias else { return logits.flatten_all()?.to_vec1() };
    for row in routing.scores.chunks_exact_mut(bias.len()) {
        row.iter_mut().zip(bias).for_each(|(score, bias)| *score += bias);
    }
    Ok(routing.scores)
}
