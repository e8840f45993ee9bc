//! Errors of the outputs of quantized experts against those of the originals.

use candle_core::{DType, Tensor};
use moe_math::combine::ExpertCombine;
use moe_math::meter::Work;
use moe_math::product::product;
use moe_math::quantize::Codes;
use moe_model::Result;
use rayon::prelude::*;

use super::super::gather::rows_of;
use super::super::samples::Route;
use super::{Activations, ERROR_TOKENS, OUTPUTS, Solved, Solver, Task, activations};
use crate::part::finite_values;

impl Solver<'_> {
    /// Adds the outputs of `tasks` on `activations` to `combine`.
    pub(super) fn add_outputs(
        &self,
        tasks: &[Task<'_>],
        activations: Activations,
        solved: &[Solved],
        combine: &mut ExpertCombine,
    ) -> Result<()> {
        for ((task, activations), solved) in tasks.iter().zip(activations).zip(solved) {
            let Some(routed) = &task.routed else { continue };
            let [width, hidden] = task.shape();
            let work = Work::products(routed.route.tokens.len(), width * hidden);
            let added = self.compute.stage(OUTPUTS, work, || {
                let down = self.matrix(&solved.down, [hidden, width])?;
                add_output(&routed.route, activations, &down, combine)
            });
            added.map_err(|e| self.numeric(&task.name, e))?;
        }
        Ok(())
    }

    /// √(Σ ρ |Δy|² / Σ ρ |y|²) of each task's output y, over an even selection of its samples.
    pub(super) fn errors(
        &self,
        tasks: &[Task<'_>],
        quantized: &[[Tensor; 2]],
        downs: &[Codes],
    ) -> Result<Vec<Option<f64>>> {
        let samples: Vec<_> = tasks.iter().map(|task| task.samples.some(ERROR_TOKENS)).collect();
        let mut rows: Vec<Vec<Tensor>> = tasks.iter().map(|_| Vec::new()).collect();
        self.each_block(|first, x| {
            for (rows, samples) in rows.iter_mut().zip(&samples) {
                rows.extend(rows_of(samples, first, x)?.map(|(rows, _)| rows));
            }
            Ok(())
        })?;
        let errors = rows.par_iter().enumerate().map(|(index, rows)| {
            if rows.is_empty() {
                return Ok(None);
            }
            let matrices = (&quantized[index], &downs[index]);
            let squares = self.squares(&tasks[index], rows, matrices)?;
            Ok(relative(&squares, &samples[index].weights))
        });
        errors.collect()
    }

    /// The squares |Δy|² and |y|² of `task`'s output y on each of the inputs `rows`. It is quantized
    /// to gate and up, whose values are given, and to the codes of down.
    fn squares(
        &self,
        task: &Task<'_>,
        rows: &[Tensor],
        quantized: (&[Tensor; 2], &Codes),
    ) -> Result<[Vec<f32>; 2]> {
        let original = task.network.linears().map(|linear| finite_values(&linear.weight));
        let [original_gate, original_up, original_down] = original;
        let values = [original_gate?, original_up?, original_down?];
        let squares =
            Tensor::cat(rows, 0).and_then(|x| squares_on(&x, task.shape(), values, quantized));
        squares.map_err(|e| self.numeric(&task.name, e))
    }
}

/// The squares |Δy|² and |y|² of a network of this shape and the values `original` on the inputs
/// `x`.
fn squares_on(
    x: &Tensor,
    [width, hidden]: [usize; 2],
    original: [Vec<f32>; 3],
    (gate_and_up, down): (&[Tensor; 2], &Codes),
) -> candle_core::Result<[Vec<f32>; 2]> {
    let [gate, up, original_down] = original;
    let original = [matrix_like(x, gate, [width, hidden])?, matrix_like(x, up, [width, hidden])?];
    let original_down = matrix_like(x, original_down, [hidden, width])?;
    let original = product(&activations(x, &original)?, &original_down)?;
    let down = matrix_like(x, down.dequantize(), [hidden, width])?;
    let quantized = product(&activations(x, gate_and_up)?, &down)?;
    Ok([row_squares(&(quantized - &original)?)?, row_squares(&original)?])
}

/// A matrix on the device and in the element type of `x`.
fn matrix_like(x: &Tensor, values: Vec<f32>, shape: [usize; 2]) -> candle_core::Result<Tensor> {
    Tensor::from_vec(values, &shape, x.device())?.to_dtype(x.dtype())
}

/// |row|² of each row.
fn row_squares(rows: &Tensor) -> candle_core::Result<Vec<f32>> {
    rows.to_dtype(DType::F32)?.sqr()?.sum(1)?.to_vec1()
}

/// Adds to `combine` what `down` makes of the `activations` of the tokens of `route`, in parts.
fn add_output(
    route: &Route,
    activations: Vec<Tensor>,
    down: &Tensor,
    combine: &mut ExpertCombine,
) -> candle_core::Result<()> {
    let mut first = 0;
    for activations in activations {
        let rows = first..first + activations.dim(0)?;
        let output = product(&activations, down)?;
        combine.add(&output, &route.tokens[rows.clone()], &route.gates[rows.clone()])?;
        first = rows.end;
    }
    Ok(())
}

/// √(Σ ρ error / Σ ρ energy) for the weights ρ; None where the energy is zero.
fn relative([errors, energies]: &[Vec<f32>; 2], weights: &[f32]) -> Option<f64> {
    let (mut lost, mut all) = (0.0, 0.0);
    for ((error, energy), weight) in errors.iter().zip(energies).zip(weights) {
        lost += f64::from(*weight) * f64::from(*error);
        all += f64::from(*weight) * f64::from(*energy);
    }
    (all > 0.0).then(|| (lost / all).sqrt())
}
