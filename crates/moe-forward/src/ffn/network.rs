//! Runs single networks, experts and routers.

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

/// Name of the stage of running experts, for timings.
pub(super) const EXPERTS: &str = "experts";

/// Returns the activations of the neurons of `network` on `x`, `[tokens, hidden]`: silu(gate x) ∘
/// (up x), `[tokens, width]`.
///
/// # Errors
/// Errors of reading and of the device.
pub fn neuron_activations(network: &Expert, x: &Tensor, compute: &Compute) -> Result<Tensor> {
    let loaded = Loader::new(compute).expert(network)?;
    loaded.activations(x).context(|| format!("activations after {}", network.gate.weight.name()))
}

/// The outputs of all experts of a mixture on the same tokens.
pub struct ExpertsOn {
    /// The output of each expert, `[tokens, hidden]`, before any gate.
    pub outputs: Vec<Tensor>,
    logits: Tensor,
    router: LoadedRouter,
}

impl ExpertsOn {
    /// Routes the tokens as if the `masked` experts didn't exist.
    ///
    /// # Errors
    /// Errors of the device.
    pub fn routed(&self, masked: &[bool]) -> CandleResult<Routing> {
        route_masked(&self.logits, self.router.rule(), Some(masked))
    }
}

/// Runs all experts of `moe` on `x`, `[tokens, hidden]`.
///
/// # Errors
/// Errors of reading and of the device.
pub fn experts_on(moe: &Moe, x: &Tensor, compute: &Compute) -> Result<ExpertsOn> {
    let experts = moe.experts.iter();
    let outputs = experts.map(|expert| expert_output(expert, x, compute)).collect::<Result<_>>()?;
    let router = LoadedRouter::load(&moe.router, compute)?;
    let (logits, _) =
        router.route(x).context(|| format!("the logits of {}", moe.router.weight.name()))?;
    Ok(ExpertsOn { outputs, logits, router })
}

/// Runs `network` on `x`, `[tokens, hidden]`.
///
/// # Errors
/// Errors of reading and of the device.
pub fn expert_output(network: &Expert, x: &Tensor, compute: &Compute) -> Result<Tensor> {
    output_of(Loader::new(compute), network, x)
}

/// As [`expert_output`], with weights that `loader` loads.
pub(super) fn output_of(loader: Loader<'_>, network: &Expert, x: &Tensor) -> Result<Tensor> {
    let loaded = loader.expert(network)?;
    let work = Work::products(x.dims()[0], network.elements());
    loader
        .compute
        .stage(EXPERTS, work, || in_blocks(x, |x| loaded.forward(x)))
        .context(|| format!("the expert of {}", network.down.weight.name()))
}

/// Returns the scores by which tokens `x`, `[tokens, hidden]`, rank the experts of `moe`: logits
/// or, with an expert correction bias, scores plus bias; `[tokens, experts]`, row by row.
///
/// # Errors
/// Errors of reading and of the device.
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
