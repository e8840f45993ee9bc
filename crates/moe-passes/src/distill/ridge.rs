//! Fits a down projection to what the mixture gives: W with the least Σ ‖y − W h‖² + λ ‖W − W₀‖².
//!
//! MergeMoE (2510.14436) fits the down projections of merged experts in this way, without λ.

use std::ops::Range;

use candle_core::{DType, Device, Tensor};
use moe_checkpoint::ScratchStore;
use moe_forward::{Inputs, to_f32};
use moe_math::meter::Work;
use moe_math::product::product;
use moe_math::ridge::Ridge;
use moe_math::{Compute, swiglu};
use moe_model::{Expert, Result, Weight};

use super::observe::{BlockPart, Tokens, failed, rows_in_f32};
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

/// The fit of a dense network's down projection to what the mixture of its layer gives.
pub(super) struct DownProjectionFit<'a> {
    /// The index of the layer.
    pub index: usize,
    pub student: &'a Expert,
    /// The inputs and outputs of the original block.
    pub inputs: &'a Inputs<'a>,
    pub tokens: &'a Tokens,
    pub compute: &'a Compute,
    /// The store that keeps the fitted matrix: without the tokens it can't be made again.
    pub scratch: Option<&'a ScratchStore>,
}

/// Sums over the tokens that decide, and over those that are held out.
struct FitSums {
    deciding: Ridge,
    held_out: Ridge,
}

impl FitSums {
    fn new(width: usize, hidden: usize) -> candle_core::Result<Self> {
        let deciding = Ridge::new(width, hidden)?;
        Ok(Self { deciding, held_out: Ridge::new(width, hidden)? })
    }

    /// The relative error on held-out tokens of the solution for λ = `relative`.
    fn held_out_error(&self, relative: f64, start: &Tensor) -> candle_core::Result<f64> {
        self.held_out.relative_error(&self.deciding.solve(relative, start)?)
    }
}

impl DownProjectionFit<'_> {
    /// Fits the down projection. Held-out tokens choose λ, and nothing is fitted to them.
    pub fn fitted(&self) -> Result<Fitted> {
        let sums = self.sums()?;
        let start = to_f32(&self.student.down.weight, self.compute)?;
        let start = start.to_device(&Device::Cpu).and_then(|w| w.to_dtype(DType::F64));
        let start = start.map_err(|e| failed(self.index, e))?;
        let mut tried = self.tried(&sums, &start);
        let unfitted = sums.held_out.relative_error(&start);
        tried.push((None, unfitted.map_err(|e| failed(self.index, e))?));
        let best =
            tried.iter().copied().reduce(|best, other| if other.1 < best.1 { other } else { best });
        let lambda = best.and_then(|(lambda, _)| lambda);
        let down = match lambda {
            None => self.student.down.weight.clone(),
            Some(relative) => {
                let solved = sums.deciding.solve(relative, &start);
                let values = solved
                    .and_then(|w| w.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>())
                    .map_err(|e| failed(self.index, e))?;
                kept(&values, &self.student.down.weight, self.scratch)?
            }
        };
        Ok(Fitted { down, lambda, tried })
    }

    fn sums(&self) -> Result<FitSums> {
        let projections = GateAndUp {
            gate: to_f32(&self.student.gate.weight, self.compute)?,
            up: to_f32(&self.student.up.weight, self.compute)?,
        };
        let [hidden, width] = self.shape();
        let mut sums = FitSums::new(width, hidden).map_err(|e| failed(self.index, e))?;
        for (block, range) in self.inputs.blocks().iter().enumerate() {
            let x = self.inputs.get(block)?;
            let y = self.inputs.output(block)?.expect("the block was observed");
            let block = BlockOfTokens { range: range.clone(), x, y };
            self.add(&projections, &block, BlockPart::Decide, &mut sums.deciding)?;
            self.add(&projections, &block, BlockPart::HeldOut, &mut sums.held_out)?;
        }
        Ok(sums)
    }

    /// Adds the tokens of `block` that belong to `part` to `sums`.
    fn add(
        &self,
        projections: &GateAndUp,
        block: &BlockOfTokens,
        part: BlockPart,
        sums: &mut Ridge,
    ) -> Result<()> {
        let [hidden, width] = self.shape();
        let products = 2 * hidden * width + width * width + hidden * width;
        let (rows, weights) = self.tokens.of(part, block.range.clone());
        for (rows, weights) in rows.chunks(TOKEN_BLOCK).zip(weights.chunks(TOKEN_BLOCK)) {
            let work = Work::products(rows.len(), products);
            self.compute
                .stage("ridge sums", work, || projections.add(sums, block, rows, weights))
                .map_err(|e| failed(self.index, e))?;
        }
        Ok(())
    }

    /// The relative error on held-out tokens of each λ of the grid. With the least λ the sums may
    /// be singular where neurons are zero. That λ is skipped then.
    fn tried(&self, sums: &FitSums, start: &Tensor) -> Vec<(Option<f64>, f64)> {
        let [hidden, width] = self.shape().map(|size| size as f64);
        let flops = GRID.len() as f64 * width * width * (width / 3.0 + 4.0 * hidden);
        self.compute.stage("ridge", Work::flops(flops), || {
            let solved = GRID.into_iter().filter_map(|relative| {
                let error = sums.held_out_error(relative, start).ok()?;
                Some((Some(relative), error))
            });
            solved.collect()
        })
    }

    /// The hidden size and the width.
    fn shape(&self) -> [usize; 2] {
        [self.student.down.weight.shape()[0], self.student.width()]
    }
}

/// Consecutive tokens.
struct BlockOfTokens {
    range: Range<usize>,
    /// The inputs of the feed-forward block.
    x: Tensor,
    /// The outputs of the mixture for these inputs.
    y: Tensor,
}

/// The gate and up projections, which make samples of tokens.
struct GateAndUp {
    gate: Tensor,
    up: Tensor,
}

impl GateAndUp {
    /// Adds the tokens `rows` of `block`, each times √ of its weight.
    fn add(
        &self,
        sums: &mut Ridge,
        block: &BlockOfTokens,
        rows: &[u32],
        weights: &[f32],
    ) -> candle_core::Result<()> {
        let device = block.x.device();
        let chosen = Tensor::from_slice(rows, rows.len(), device)?;
        let weights = Tensor::from_slice(weights, (weights.len(), 1), device)?;
        let x = rows_in_f32(&block.x, &chosen)?;
        let h = swiglu(&product(&x, &self.gate)?, &product(&x, &self.up)?)?;
        let y = rows_in_f32(&block.y, &chosen)?;
        sums.add(&h.broadcast_mul(&weights)?, &y.broadcast_mul(&weights)?)
    }
}
