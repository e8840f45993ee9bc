//! Gathers the inputs of experts from blocks of tokens, and sums their Hessians.

use std::ops::Range;

use candle_core::Tensor;
use moe_math::meter::Work;
use moe_math::quantize::HessianSum;
use moe_model::{Error, Kind, Result};
use rayon::prelude::*;

use super::failed::failed;
use super::samples::{Counts, ExpertSamples};
use super::solve::Solver;

/// The layer's own Hessian uses at most this multiple of its width in tokens.
const LAYER_TOKENS: usize = 8;
/// The name of the stage, as `--timings` prints it.
const HESSIANS: &str = "Hessians";

impl Solver<'_> {
    /// The Hessian of the whole layer's inputs, from an even selection of tokens.
    pub(super) fn layer_hessian(&self, hidden: usize) -> Result<HessianSum> {
        let all = (0..self.counted.len() as u32).filter(|token| self.counted[*token as usize]);
        let samples = ExpertSamples::evenly_weighed(all.collect(), Counts::default())
            .some(LAYER_TOKENS * hidden);
        Ok(self.hessians(&[&samples], hidden, 0.0, |x, _, _| Ok(x))?.remove(0))
    }

    /// For each of `samples`, Σ ρ x xᵀ, where x is what `of` makes of the inputs, at `flops` a
    /// token. `of` gets the inputs, the index of the samples, and which rows of them these are.
    pub(super) fn hessians(
        &self,
        samples: &[&ExpertSamples],
        size: usize,
        flops: f64,
        of: impl Fn(Tensor, usize, Range<usize>) -> Result<Tensor> + Sync,
    ) -> Result<Vec<HessianSum>> {
        let tokens: usize = samples.iter().map(|samples| samples.tokens.len()).sum();
        let work = Work::flops(tokens as f64 * (flops + self.flops_of_sums(size)));
        self.compute.stage(HESSIANS, work, || self.summed(samples, size, of))
    }

    fn summed(
        &self,
        samples: &[&ExpertSamples],
        size: usize,
        of: impl Fn(Tensor, usize, Range<usize>) -> Result<Tensor> + Sync,
    ) -> Result<Vec<HessianSum>> {
        let sums = samples.iter().map(|_| HessianSum::new(size, &self.compute.device));
        let mut sums = sums.collect::<Result<Vec<_>, _>>().map_err(failed)?;
        self.each_block(|first, x| {
            sums.par_iter_mut().enumerate().try_for_each(|(index, sum)| {
                let Some((x, rows)) = rows_of(samples[index], first, x)? else { return Ok(()) };
                let weights = &samples[index].weights[rows.clone()];
                let plain = weights.iter().all(|weight| *weight == 1.0);
                sum.add(&of(x, index, rows)?, (!plain).then_some(weights)).map_err(failed)
            })
        })?;
        Ok(sums)
    }

    /// The operations for one token in a Hessian. On a CPU only half of the matrix is computed.
    fn flops_of_sums(&self, size: usize) -> f64 {
        let whole = 2.0 * (size * size) as f64;
        if self.compute.device.is_cpu() { whole / 2.0 } else { whole }
    }

    /// Calls `visit` with the first token of each block, and the block's inputs.
    pub(super) fn each_block(
        &self,
        mut visit: impl FnMut(usize, &Tensor) -> Result<()>,
    ) -> Result<()> {
        for (block, tokens) in self.inputs.blocks().iter().enumerate() {
            visit(tokens.start, &self.inputs.get(block)?)?;
        }
        Ok(())
    }
}

/// The rows of `x`, whose first token is `first`, that `samples` has, and the range of samples that
/// they are.
pub(super) fn rows_of(
    samples: &ExpertSamples,
    first: usize,
    x: &Tensor,
) -> Result<Option<(Tensor, Range<usize>)>> {
    gathered(&samples.tokens, first, x)
        .map_err(|e| Error::new(Kind::Numeric, "cannot gather an expert's tokens").source(e))
}

/// The rows of `x` that are among `tokens`, ascending, and the range of `tokens` that they are.
fn gathered(
    tokens: &[u32],
    first: usize,
    x: &Tensor,
) -> candle_core::Result<Option<(Tensor, Range<usize>)>> {
    let end = first + x.dim(0)?;
    let from = tokens.partition_point(|token| (*token as usize) < first);
    let to = tokens.partition_point(|token| (*token as usize) < end);
    if from == to {
        return Ok(None);
    }
    let local: Vec<u32> = tokens[from..to].iter().map(|token| token - first as u32).collect();
    let rows = x.index_select(&Tensor::from_vec(local, to - from, x.device())?, 0)?;
    Ok(Some((rows, from..to)))
}
