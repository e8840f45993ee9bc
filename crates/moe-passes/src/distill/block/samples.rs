//! Inputs of a layer and its mixture's outputs, gathered to train and to evaluate on.

use candle_core::{DType, Device, Result as CandleResult, Tensor, Var};
use moe_forward::Inputs;
use moe_math::Compute;
use moe_model::Result;

use super::network::output;
use crate::distill::observe::{BlockPart, Tokens, failed, rows_in_f32};

/// The limit on inputs and outputs that are gathered at a time.
pub(crate) const GATHERED_BYTES: usize = 256 << 20;
/// The maximum number of held-out tokens that are evaluated, spread evenly over all of them.
pub(crate) const LOOKED_AT: usize = 8192;

/// Inputs of a layer, and its mixture's outputs for them.
pub(crate) struct LayerTrainingData<'a> {
    pub index: usize,
    pub inputs: &'a Inputs<'a>,
    pub tokens: &'a Tokens,
    pub compute: &'a Compute,
    pub hidden: usize,
    pub seed: u64,
}

/// Inputs of a network, and the outputs that it is trained to give.
pub(super) struct BlockSamples {
    /// `[n, hidden]`
    pub x: Tensor,
    /// `[n, hidden]`
    pub y: Tensor,
    pub weights: Vec<f32>,
}

/// A selection of tokens: every `every`-th, from `first` on.
#[derive(Clone, Copy)]
pub(super) struct Stride {
    pub first: usize,
    pub every: usize,
}

impl Stride {
    /// The selection of all tokens.
    const ALL: Self = Self { first: 0, every: 1 };
}

impl BlockSamples {
    pub fn len(&self) -> usize {
        self.weights.len()
    }

    pub fn pick(&self, rows: &[usize]) -> CandleResult<Self> {
        let chosen: Vec<u32> = rows.iter().map(|row| *row as u32).collect();
        let chosen = Tensor::from_vec(chosen, rows.len(), self.x.device())?;
        let weights = rows.iter().map(|row| self.weights[*row]).collect();
        Ok(Self {
            x: self.x.index_select(&chosen, 0)?,
            y: self.y.index_select(&chosen, 0)?,
            weights,
        })
    }

    /// The rows `rows` of `x` and `y`.
    fn of_rows(x: &Tensor, y: &Tensor, rows: &[u32], weights: Vec<f32>) -> CandleResult<Self> {
        let chosen = Tensor::from_slice(rows, rows.len(), x.device())?;
        Ok(Self { x: rows_in_f32(x, &chosen)?, y: rows_in_f32(y, &chosen)?, weights })
    }

    /// √(Σ ρ |y − y'|² / Σ ρ |y|²), y' being the outputs of `network`.
    fn relative_error(&self, network: &[Tensor; 3]) -> CandleResult<f64> {
        let Self { x, y, weights } = self;
        let error = weighted(&(output(x, network)? - y)?, weights)?;
        let all = weighted(y, weights)?;
        Ok(if all > 0.0 { (error / all).sqrt() } else { 0.0 })
    }

    /// The samples of all `parts`, one after the other.
    fn joined(parts: Vec<Self>) -> CandleResult<Self> {
        let x = Tensor::cat(&parts.iter().map(|samples| &samples.x).collect::<Vec<_>>(), 0)?;
        let y = Tensor::cat(&parts.iter().map(|samples| &samples.y).collect::<Vec<_>>(), 0)?;
        Ok(Self { x, y, weights: parts.into_iter().flat_map(|samples| samples.weights).collect() })
    }
}

impl LayerTrainingData<'_> {
    /// The tokens of `block` that belong to `part`, those that `stride` selects; None where there
    /// are none.
    fn samples(
        &self,
        block: usize,
        part: BlockPart,
        stride: Stride,
    ) -> Result<Option<BlockSamples>> {
        let (rows, roots) = self.tokens.of(part, self.inputs.blocks()[block].clone());
        let rows: Vec<u32> = rows.into_iter().skip(stride.first).step_by(stride.every).collect();
        let roots = roots.iter().skip(stride.first).step_by(stride.every);
        if rows.is_empty() {
            return Ok(None);
        }
        let x = self.inputs.get(block)?;
        let y = self.inputs.output(block)?.expect("the block was observed");
        let weights = roots.map(|root| root * root).collect();
        let samples = BlockSamples::of_rows(&x, &y, &rows, weights);
        samples.map(Some).map_err(|e| failed(self.index, e))
    }

    /// The same for all blocks together: a batch from one block would hold one kind of text, and
    /// unlearn the others.
    pub(super) fn gathered(&self, part: BlockPart, stride: Stride) -> Result<Option<BlockSamples>> {
        let parts: Vec<BlockSamples> = (0..self.inputs.blocks().len())
            .filter_map(|block| self.samples(block, part, stride).transpose())
            .collect::<Result<_>>()?;
        if parts.is_empty() {
            return Ok(None);
        }
        let joined = BlockSamples::joined(parts);
        joined.map(Some).map_err(|e: candle_core::Error| failed(self.index, e))
    }

    /// In how many rounds the tokens that decide are gathered.
    pub(super) fn rounds(&self) -> usize {
        let width = self.hidden * 2 * size_of::<f32>();
        (self.tokens.count(BlockPart::Decide) * width).div_ceil(GATHERED_BYTES).max(1)
    }

    /// Σ ρ |y|² / Σ ρ over the tokens that decide.
    pub(super) fn energy(&self) -> Result<f64> {
        let (mut sum, mut weight) = (0.0, 0.0);
        for block in 0..self.inputs.blocks().len() {
            let Some(samples) = self.samples(block, BlockPart::Decide, Stride::ALL)? else {
                continue;
            };
            sum += weighted(&samples.y, &samples.weights).map_err(|e| failed(self.index, e))?;
            weight += samples.weights.iter().map(|w| f64::from(*w)).sum::<f64>();
        }
        Ok(if weight > 0.0 { sum / weight } else { 0.0 })
    }

    /// The held-out tokens that are evaluated. They are gathered once, as evaluations are frequent.
    pub(super) fn test(&self) -> Result<Option<BlockSamples>> {
        let every = self.tokens.count(BlockPart::HeldOut).div_ceil(LOOKED_AT).max(1);
        self.gathered(BlockPart::HeldOut, Stride { first: 0, every })
    }

    /// √(Σ ρ |y − y'|² / Σ ρ |y|²) over `test`.
    pub(super) fn error(&self, test: Option<&BlockSamples>, network: &[Var; 3]) -> Result<f64> {
        let Some(test) = test else { return Ok(0.0) };
        let network = network.each_ref().map(Var::as_detached_tensor);
        test.relative_error(&network).map_err(|e| failed(self.index, e))
    }
}

/// Σ ρ |row|²
fn weighted(rows: &Tensor, weights: &[f32]) -> CandleResult<f64> {
    let squares: Vec<f32> = rows.sqr()?.sum(1)?.to_vec1()?;
    if squares.iter().all(|square| square.is_finite()) {
        let squares: Vec<f64> = squares.into_iter().map(f64::from).collect();
        return Ok(weighted_sum(&squares, weights));
    }
    // Values that are finite in f32 may have squares that aren't.
    let rows = rows.to_device(&Device::Cpu)?.to_dtype(DType::F64)?;
    Ok(weighted_sum(&rows.sqr()?.sum(1)?.to_vec1()?, weights))
}

fn weighted_sum(values: &[f64], weights: &[f32]) -> f64 {
    values.iter().zip(weights).map(|(value, weight)| value * f64::from(*weight)).sum()
}
