//! Fits a down projection to what the mixture gives: W with the least Σ ‖y − W h‖² + λ ‖W − W₀‖².
//!
//! MergeMoE (2510.14436) fits the down projections of merged experts in this way, without λ.

use candle_core::{DType, Device, Tensor};
use moe_checkpoint::ScratchStore;
use moe_forward::{Inputs, to_f32};
use moe_math::meter::Work;
use moe_math::product::product;
use moe_math::ridge::Ridge;
use moe_math::{Compute, swiglu};
use moe_model::{Expert, Result, Weight};

use super::observe::{BlockPart, Tokens, failed};
use super::weights::kept;

/// λ as multiples of the mean diagonal of Σ h hᵀ.
const GRID: [f64; 7] = [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0];
/// The number of tokens whose neurons are held at a time.
const TOKEN_BLOCK: usize = 4096;

/// The result of a fit.
pub(super) struct Fitted {
    /// `[hidden, width]`
    pub down: Weight,
    /// The multiple of the mean diagonal that did best on held-out tokens; None where W₀ itself
    /// did.
    pub lambda: Option<f64>,
    /// The relative error on held-out tokens of each λ that was tried; the last one is that of W₀.
    pub tried: Vec<(Option<f64>, f64)>,
}

/// Fits the down projection of `student` in layer `index`. `inputs` hold what reaches the original
/// block and what it gives. Held-out tokens choose λ, and nothing is fitted to them.
///
/// The matrix is kept: without the tokens it can't be made again.
pub(super) fn fit(
    index: usize,
    student: &Expert,
    inputs: &Inputs<'_>,
    tokens: &Tokens,
    compute: &Compute,
    spill: Option<&ScratchStore>,
) -> Result<Fitted> {
    let fail = |e| failed(index, e);
    let of_layer = GateAndUp {
        gate: to_f32(&student.gate.weight, compute)?,
        up: to_f32(&student.up.weight, compute)?,
    };
    let [hidden, width] = [student.down.weight.shape()[0], student.width()];
    let new = || Ridge::new(width, hidden).map_err(fail);
    let (mut deciding, mut held_out) = (new()?, new()?);
    for (block, range) in inputs.blocks().iter().enumerate() {
        let x = inputs.get(block)?;
        let y = inputs.output(block)?.expect("the block was observed");
        for (part, sums) in
            [(BlockPart::Decide, &mut deciding), (BlockPart::HeldOut, &mut held_out)]
        {
            let (rows, weights) = tokens.of(part, range.clone());
            for (rows, weights) in rows.chunks(TOKEN_BLOCK).zip(weights.chunks(TOKEN_BLOCK)) {
                let products = 2 * hidden * width + width * width + hidden * width;
                let add = || of_layer.add(sums, &x, &y, rows, weights);
                compute
                    .stage("ridge sums", Work::products(rows.len(), products), add)
                    .map_err(fail)?;
            }
        }
    }
    let start = to_f32(&student.down.weight, compute)?;
    let start = start.to_device(&Device::Cpu).and_then(|w| w.to_dtype(DType::F64)).map_err(fail)?;
    let solve = |relative: f64| -> candle_core::Result<(Option<f64>, f64)> {
        Ok((Some(relative), held_out.relative_error(&deciding.solve(relative, &start)?)?))
    };
    // With the least λ the sums may be singular where neurons are zero. That λ is skipped then.
    let n = width as f64;
    let work = Work::flops(GRID.len() as f64 * n * n * (n / 3.0 + 4.0 * hidden as f64));
    let all = || GRID.into_iter().filter_map(|relative| solve(relative).ok()).collect();
    let mut tried: Vec<_> = compute.stage("ridge", work, all);
    tried.push((None, held_out.relative_error(&start).map_err(fail)?));
    let best =
        tried.iter().copied().reduce(|best, other| if other.1 < best.1 { other } else { best });
    let lambda = best.and_then(|(lambda, _)| lambda);
    let down = match lambda {
        None => student.down.weight.clone(),
        Some(relative) => {
            let solved = deciding.solve(relative, &start);
            let values = solved
                .and_then(|w| w.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>())
                .map_err(fail)?;
            kept(&values, &student.down.weight, spill)?
        }
    };
    Ok(Fitted { down, lambda, tried })
}

/// The gate and up projections, which make samples of tokens.
struct GateAndUp {
    gate: Tensor,
    up: Tensor,
}

impl GateAndUp {
    /// Adds the tokens `rows` of inputs `x` and outputs `y`, each times √ of its weight.
    fn add(
        &self,
        sums: &mut Ridge,
        x: &Tensor,
        y: &Tensor,
        rows: &[u32],
        weights: &[f32],
    ) -> candle_core::Result<()> {
        let chosen = Tensor::from_slice(rows, rows.len(), x.device())?;
        let weights = Tensor::from_slice(weights, (weights.len(), 1), x.device())?;
        let pick = |t: &Tensor| t.index_select(&chosen, 0)?.to_dtype(DType::F32);
        let x = pick(x)?;
        let h = swiglu(&product(&x, &self.gate)?, &product(&x, &self.up)?)?;
        sums.add(&h.broadcast_mul(&weights)?, &pick(y)?.broadcast_mul(&weights)?)
    }
}
