//! Errors of the outputs of quantized experts against those of the originals.

use candle_core::{DType, Tensor};
use moe_math::combine::ExpertCombine;
use moe_math::meter::Work;
use moe_math::product::product;
use moe_math::quantize::Codes;
use moe_model::Result;
use rayon::prelude::*;

use super::super::gather::rows_of;
use super::super::samples::Routed;
use super::{Activations, ERROR_TOKENS, OUTPUTS, Solved, Solver, Task, activations};
use crate::part::finite_values;

impl Solver<'_> {
    /// Adds the outputs of `tasks` on `activations` to `mix`.
    pub(super) fn add_outputs(
        &self,
        tasks: &[Task<'_>],
        activations: Activations,
        solved: &[Solved],
        [width, hidden]: [usize; 2],
        mix: &mut ExpertCombine,
    ) -> Result<()> {
        for ((task, activations), solved) in tasks.iter().zip(activations).zip(solved) {
            let Some(Routed { route, .. }) = &task.routed else { continue };
            let add = || {
                let down = self.matrix(&solved.down, [hidden, width])?;
                let mut first = 0;
                for activations in activations {
                    let rows = first..first + activations.dim(0)?;
                    mix.add(
                        &product(&activations, &down)?,
                        &route.tokens[rows.clone()],
                        &route.gates[rows.clone()],
                    )?;
                    first = rows.end;
                }
                Ok(())
            };
            let work = Work::products(route.tokens.len(), width * hidden);
            self.compute.stage(OUTPUTS, work, add).map_err(|e| self.numeric(&task.name, e))?;
        }
        Ok(())
    }

    /// √(Σ ρ |Δy|² / Σ ρ |y|²) of each task's output y, over an even selection of its samples.
    pub(super) fn errors(
        &self,
        tasks: &[Task<'_>],
        quantized: &[[Tensor; 2]],
        downs: &[Codes],
        [width, hidden]: [usize; 2],
    ) -> Result<Vec<Option<f64>>> {
        let samples: Vec<_> = tasks.iter().map(|task| task.samples.some(ERROR_TOKENS)).collect();
        let mut rows: Vec<Vec<Tensor>> = tasks.iter().map(|_| Vec::new()).collect();
        self.each_block(|first, x| {
            for (rows, samples) in rows.iter_mut().zip(&samples) {
                rows.extend(rows_of(samples, first, x)?.map(|(rows, _)| rows));
            }
            Ok(())
        })?;
        let error = |(index, rows): (usize, &Vec<Tensor>)| -> Result<Option<f64>> {
            if rows.is_empty() {
                return Ok(None);
            }
            let [gate, up, down] =
                tasks[index].network.linears().map(|linear| finite_values(&linear.weight));
            let (gate, up, down) = (gate?, up?, down?);
            let outputs = || {
                let x = Tensor::cat(rows, 0)?;
                let matrix = |values: Vec<f32>, shape: [usize; 2]| {
                    Tensor::from_vec(values, &shape, x.device())?.to_dtype(x.dtype())
                };
                let original = [matrix(gate, [width, hidden])?, matrix(up, [width, hidden])?];
                let original =
                    product(&activations(&x, &original)?, &matrix(down, [hidden, width])?)?;
                let down = matrix(downs[index].dequantize(), [hidden, width])?;
                let quantized = product(&activations(&x, &quantized[index])?, &down)?;
                let squares = |t: &Tensor| t.to_dtype(DType::F32)?.sqr()?.sum(1)?.to_vec1::<f32>();
                Ok(squares(&(quantized - &original)?)?.into_iter().zip(squares(&original)?))
            };
            let tokens =
                outputs().map_err(|e: candle_core::Error| self.numeric(&tasks[index].name, e))?;
            let (mut lost, mut all) = (0.0, 0.0);
            for ((error, energy), weight) in tokens.zip(samples[index].weights.iter()) {
                lost += f64::from(*weight) * f64::from(error);
                all += f64::from(*weight) * f64::from(energy);
            }
            Ok((all > 0.0).then(|| (lost / all).sqrt()))
        };
        rows.par_iter().enumerate().map(error).collect()
    }
}
