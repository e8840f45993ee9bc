//! Quantizes the projections of attention, on what all tokens give them.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Range;

use candle_core::{Device, Tensor};
use moe_math::quantize::{self, Codes, Damping, Factor, HessianSum, Problem, factorize_all};
use moe_model::{Attention, Linear, Result};

use super::failed::{failed, unsolved};
use crate::part::finite_values;

/// The Hessians of one layer's projections, by the first of [`Attention::linears`] that reads each
/// input.
#[derive(Default)]
pub(super) struct AttentionInputs(BTreeMap<usize, HessianSum>);

impl AttentionInputs {
    /// Adds the inputs of `linear` for `tokens`, of which those count that `counted` marks.
    pub fn add(
        &mut self,
        linear: usize,
        tokens: Range<usize>,
        x: &Tensor,
        counted: &[bool],
    ) -> Result<()> {
        let weights: Vec<f32> =
            counted[tokens].iter().map(|counts| f32::from(u8::from(*counts))).collect();
        let all = weights.iter().all(|weight| *weight == 1.0);
        let width = x.dim(1).unwrap_or(0);
        let sum = match self.0.entry(linear) {
            Entry::Occupied(sum) => sum.into_mut(),
            Entry::Vacant(none) => none.insert(HessianSum::new(width, x.device()).map_err(failed)?),
        };
        sum.add(x, (!all).then_some(&weights)).map_err(failed)
    }

    /// Codes of each projection of layer `index`'s `attention`.
    pub fn codes(
        self,
        index: usize,
        attention: &Attention,
        options: &quantize::GptqOptions,
        damping: &Damping,
        act_order: bool,
        device: &Device,
    ) -> Result<Vec<Codes>> {
        let mut factors = BTreeMap::new();
        for (input, sum) in self.0 {
            let factor =
                factorize_all(vec![sum], &[*damping], act_order).map_err(failed)?.remove(0);
            factors
                .insert(input, factor.map_err(|e| unsolved(index, "attention's projections", e))?);
        }
        let projections = attention.linears().into_iter().zip(attention.inputs());
        projections
            .map(|(linear, input)| codes_of(linear, &factors[&input], options, device))
            .collect()
    }
}

/// Codes of one projection, from the factor of its inputs.
fn codes_of(
    linear: &Linear,
    factor: &Factor<f32>,
    options: &quantize::GptqOptions,
    device: &Device,
) -> Result<Codes> {
    let weight = finite_values(&linear.weight)?;
    let shape = [linear.weight.shape()[0], linear.weight.shape()[1]];
    let problem = Problem { weight: &weight, factor };
    let mut solved = quantize::solve_on(&[problem], shape, options, device)
        .map_err(|e| failed(e).tensor(linear.weight.name()))?;
    Ok(solved.remove(0).codes)
}
