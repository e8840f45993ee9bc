//! A network whose matrices AdamW changes, and the loss that they are changed by.

use candle_core::{Result as CandleResult, Tensor, Var};
use moe_math::adamw::{AdamW, AdamWStep, Moments, clipping, cosine, square_norm};

use super::network::output;
use super::samples::BlockSamples;

/// The weight of 1 − cos in the loss; the relative squared error has weight 1.
const COSINE: f64 = 0.05;
/// Gradients are clipped to this global norm.
const CLIP: f64 = 1.0;
/// The share of the steps in which the learning rate rises.
const WARMUP: f64 = 0.05;

/// A network that is being trained.
pub(super) struct Learner {
    pub vars: [Var; 3],
    moments: Vec<Moments>,
    /// The number of steps to take.
    pub steps: u64,
    /// The rate of each matrix.
    learning_rates: [f64; 3],
    /// The number of steps taken.
    pub taken: u64,
}

impl Learner {
    /// The rate of each matrix is `learning_rate` times the root mean square of its elements, so
    /// that it means the same for large weights and small ones.
    pub fn new(vars: [Var; 3], steps: u64, learning_rate: f64) -> CandleResult<Self> {
        let moments = vars.iter().map(Moments::new).collect::<CandleResult<_>>()?;
        let sizes = vars.iter().map(root_mean_square).collect::<CandleResult<Vec<f64>>>()?;
        let learning_rates = std::array::from_fn(|matrix| learning_rate * sizes[matrix]);
        Ok(Self { vars, moments, steps, learning_rates, taken: 0 })
    }

    /// Elements of the matrices.
    pub fn elements(&self) -> usize {
        self.vars.iter().map(|var| var.elem_count()).sum()
    }

    /// One step on `samples`. Returns the loss, or None where the loss or its gradient isn't
    /// finite; then nothing changed.
    pub fn step(&mut self, samples: &BlockSamples, energy: f64) -> CandleResult<Option<f64>> {
        let network = self.vars.each_ref().map(|var| var.as_tensor().clone());
        let loss = loss(&output(&samples.x, &network)?, samples, energy)?;
        let gradients = self.gradients(&loss)?;
        let norm = gradients.iter().map(square_norm).sum::<CandleResult<f64>>()?.sqrt();
        let loss = f64::from(loss.to_scalar::<f32>()?);
        if !loss.is_finite() || !norm.is_finite() {
            return Ok(None);
        }
        let rate = self.rate();
        self.taken += 1;
        let matrices =
            self.vars.iter().zip(&gradients).zip(&mut self.moments).zip(self.learning_rates);
        for (((var, gradient), moments), learning_rate) in matrices {
            let step = AdamWStep {
                number: self.taken,
                learning_rate: learning_rate * rate,
                weight_decay: 0.0,
                scale: clipping(norm, Some(CLIP)),
            };
            AdamW::default().step(var, gradient, moments, &step)?;
        }
        Ok(Some(loss))
    }

    /// The gradient of `loss` with respect to each matrix.
    fn gradients(&self, loss: &Tensor) -> CandleResult<Vec<Tensor>> {
        let mut gradients = loss.backward()?;
        let all = self.vars.iter().map(|var| {
            let gradient = gradients.remove(var);
            gradient.ok_or_else(|| candle_core::Error::msg("a matrix without a gradient"))
        });
        all.collect()
    }

    /// The factor on the learning rates in the next step.
    fn rate(&self) -> f64 {
        let warmup = (self.steps as f64 * WARMUP).ceil() as u64;
        // A schedule that rises from 0 would waste its first step.
        let skipped = u64::from(warmup > 0);
        cosine(self.taken + skipped, warmup, self.steps + skipped)
    }
}

fn root_mean_square(var: &Var) -> CandleResult<f64> {
    Ok((square_norm(var)? / var.elem_count() as f64).sqrt())
}

/// |row|² of each row, `[rows, 1]`.
fn row_squares(t: &Tensor) -> CandleResult<Tensor> {
    t.sqr()?.sum_keepdim(1)
}

/// Σ ρ (|y − y'|² / E|y|² + 0.05 (1 − cos(y, y'))) / Σ ρ, E|y|² being `energy`.
pub(super) fn loss(found: &Tensor, samples: &BlockSamples, energy: f64) -> CandleResult<Tensor> {
    let BlockSamples { y, weights, .. } = samples;
    let sum: f32 = weights.iter().sum();
    let weights: Vec<f32> = weights.iter().map(|weight| weight / sum).collect();
    let weights = Tensor::from_vec(weights, (samples.len(), 1), y.device())?;
    let error = (row_squares(&(found - y)?)? / energy)?;
    // A token whose output is zero has no direction.
    let norms = ((row_squares(found)? * row_squares(y)?)? + 1e-12 * energy * energy)?.sqrt()?;
    let turned = (1.0 - ((found * y)?.sum_keepdim(1)? / norms)?)?;
    ((error + (turned * COSINE)?)? * weights)?.sum_all()
}
