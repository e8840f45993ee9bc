//! Hessians of what experts see, factored.

use std::ops::Range;
use std::sync::Mutex;

use candle_core::Tensor;
use moe_math::meter::Work;
use moe_math::quantize::{Damping, HessianSum, QuantizeError, factorize_all};
use moe_model::Result;
use rayon::prelude::*;

use super::super::failed::{failed, unsolved};
use super::super::samples::Routed;
use super::{Activations, FACTORS, Factored, SharedInputs, Solver, Task, activations};

impl Solver<'_> {
    /// The factored Hessians of the inputs of gate and up.
    pub(super) fn inputs_factored(
        &self,
        tasks: &[Task<'_>],
        shared: &SharedInputs,
    ) -> Result<Vec<Factored>> {
        let hidden = tasks[0].shape()[1];
        let own: Vec<_> = tasks.iter().map(|task| &task.samples).collect();
        let hessians = self.hessians(&own, hidden, 0.0, |x, _, _| Ok(x))?;
        self.factored(tasks, hessians, "gate_proj", |hessian| match &shared.layer {
            Some(layer) => hessian.shrink(layer, self.shrinkage * hidden as f64),
            None => Ok(()),
        })
    }

    /// The factored Hessians of the inputs of down, which come from the quantized gates and ups,
    /// `matrices`; and these inputs for the tokens that are routed to each task.
    pub(super) fn neurons_factored(
        &self,
        tasks: &[Task<'_>],
        matrices: &[[Tensor; 2]],
        [width, hidden]: [usize; 2],
    ) -> Result<(Vec<Factored>, Activations)> {
        let kept: Vec<_> = tasks.iter().map(|_| Mutex::new(Vec::new())).collect();
        let samples: Vec<_> = tasks.iter().map(Task::seen).collect();
        let flops = (4 * width * hidden) as f64;
        let hessians = self.hessians(&samples, width, flops, |x, index, seen| {
            neurons(&tasks[index], &x, &matrices[index], &seen, &kept[index])
                .map_err(|e| self.numeric(&tasks[index].name, e))
        })?;
        let kept = kept.into_iter().map(|kept| kept.into_inner().expect("no thread panicked"));
        let kept = kept.collect();
        // Neurons of one expert have nothing to do with those of another, so that the layer's
        // Hessian isn't mixed in here.
        Ok((self.factored(tasks, hessians, "down_proj", |_| Ok(()))?, kept))
    }

    fn factored(
        &self,
        tasks: &[Task<'_>],
        mut hessians: Vec<HessianSum>,
        what: &str,
        shrink: impl Fn(&mut HessianSum) -> Result<(), QuantizeError> + Send + Sync,
    ) -> Result<Vec<Factored>> {
        let flops: f64 = hessians.iter().map(|hessian| (hessian.size() as f64).powi(3) / 3.0).sum();
        self.compute.stage(FACTORS, Work::flops(flops), || {
            let effective: Vec<f64> = hessians.iter().map(HessianSum::effective_tokens).collect();
            hessians.par_iter_mut().try_for_each(shrink).map_err(failed)?;
            let damping: Vec<Damping> =
                hessians.iter().map(|hessian| self.damping_of(hessian)).collect();
            let factors = factorize_all(hessians, &damping, self.act_order).map_err(failed)?;
            let factored =
                |((factor, effective), task): ((Result<_, _>, f64), &Task<'_>)| match factor {
                    Ok(factor) => Ok(Factored { factor, effective }),
                    Err(error) => {
                        Err(unsolved(self.layer, &format!("{what} of {}", task.name), error))
                    }
                };
            factors.into_iter().zip(effective).zip(tasks).map(factored).collect()
        })
    }

    /// White noise in a mean over tokens is damping, and the fewer tokens, the more.
    fn damping_of(&self, hessian: &HessianSum) -> Damping {
        let tokens = hessian.effective_tokens().max(1.0);
        let start = (self.damping.start + self.ridge * hessian.size() as f64 / tokens)
            .min(self.damping.max);
        Damping { start, ..self.damping }
    }
}

/// The inputs of down for the samples `seen`, whose inputs are `x`. Those of tokens that are routed
/// to the task are added to `kept`.
fn neurons(
    task: &Task<'_>,
    x: &Tensor,
    gate_and_up: &[Tensor; 2],
    seen: &Range<usize>,
    kept: &Mutex<Vec<Tensor>>,
) -> candle_core::Result<Tensor> {
    let activations = activations(x, gate_and_up)?;
    if let Some(routed) = &task.routed {
        let of_routed = routed_rows(routed, &activations, seen)?;
        kept.lock().expect("no thread panics with it").extend(of_routed);
    }
    Ok(activations)
}

/// The rows of `activations`, those of the samples `seen`, whose tokens are routed to the expert;
/// None where none is.
fn routed_rows(
    routed: &Routed,
    activations: &Tensor,
    seen: &Range<usize>,
) -> candle_core::Result<Option<Tensor>> {
    match routed.rows_in(seen) {
        None => Ok(Some(activations.clone())),
        Some(rows) if rows.is_empty() => Ok(None),
        Some(rows) => {
            let rows = Tensor::from_slice(&rows, rows.len(), activations.device())?;
            activations.index_select(&rows, 0).map(Some)
        }
    }
}
