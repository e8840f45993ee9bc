//! Trains a dense network to give what the mixture gives, on the tokens that reach its layer.
//!
//! One layer is trained at a time, so that only its three matrices, their moments and a block of
//! tokens are held, whatever the depth.

use candle_core::{DType, Device, Result as CandleResult, Tensor, Var};
use moe_forward::{Inputs, to_f32};
use moe_math::adamw::{AdamW, Moments, Step, clipping, cosine, square_norm};
use moe_math::meter::Work;
use moe_math::product::product;
use moe_math::{Compute, sampling, swiglu};
use moe_model::{Error, Expert, Kind, Result, Weight};

use super::observe::{BlockPart, Tokens, failed};
use super::record::{Look, Trained};
use super::training::Training;

/// The weight of 1 − cos in the loss; the relative squared error has weight 1.
const COSINE: f64 = 0.05;
/// Gradients are clipped to this global norm.
const CLIP: f64 = 1.0;
/// The share of the steps in which the learning rate rises.
const WARMUP: f64 = 0.05;
/// How many times held-out tokens are evaluated, and after how many evaluations in a row without a
/// gain training ends.
const LOOKS: u64 = 20;
const PATIENCE: usize = 10;
/// The limit on inputs and outputs that are gathered at a time.
pub(super) const GATHERED_BYTES: usize = 256 << 20;
/// The maximum number of held-out tokens that are evaluated, spread evenly over all of them.
pub(super) const LOOKED_AT: usize = 8192;

/// The bytes of the graph and the gradients of a step on `tokens` tokens.
pub(super) fn step_bytes(tokens: u64, width: u64, hidden: u64) -> u64 {
    // Inputs, targets, error and angle; gate, up and their product; as much again for gradients,
    // and the terms that these are added up from.
    4 * tokens * (13 * hidden + 11 * width)
}

/// Inputs of a layer, and its mixture's outputs for them.
pub(super) struct LayerTrainingData<'a> {
    pub index: usize,
    pub inputs: &'a Inputs<'a>,
    pub tokens: &'a Tokens,
    pub compute: &'a Compute,
    pub hidden: usize,
    pub seed: u64,
}

/// The result of training.
pub(super) struct Learned {
    pub trained: Trained,
    /// Gate, up and down that did best on held-out tokens; None where the network from before
    /// training did.
    pub best: Option<[Vec<f32>; 3]>,
}

/// Trains `network` for `steps`.
pub(super) fn train(
    lessons: &LayerTrainingData<'_>,
    network: &Expert,
    steps: u64,
    training: &Training,
) -> Result<Learned> {
    let fail = |e| failed(lessons.index, e);
    let energy = lessons.energy()?;
    if energy == 0.0 {
        // A mixture whose output is zero teaches nothing.
        return Ok(Learned { trained: Trained::default(), best: None });
    }
    let var = |weight: &Weight| Var::from_tensor(&to_f32(weight, lessons.compute)?).map_err(fail);
    let [gate, up, down] = network.linears().map(|linear| var(&linear.weight));
    let vars = [gate?, up?, down?];
    let mut learner = Learner::new(vars, steps, training.relative_learning_rate).map_err(fail)?;
    let test = lessons.test()?;
    let first = lessons.error(test.as_ref(), &learner.vars)?;
    if !(energy.is_finite() && first.is_finite()) {
        let what = format!(
            "what layer {} gives, or its dense network, is not finite on this text",
            lessons.index
        );
        return Err(Error::new(Kind::Numeric, what)
            .remedy("look for weights that are too large with moe-convert verify and eval; --steps 0 trains nothing"));
    }
    let mut best = Best { error: first, step: 0, values: None };
    let mut trained = Trained {
        looks: vec![Look { step: 0, error: best.error, loss: None }],
        ..Trained::default()
    };
    let every = steps.div_ceil(LOOKS);
    let mut random = sampling::generator(lessons.seed, lessons.index as u64);
    let mut losses = Vec::new();
    let rounds = lessons.rounds();
    let mut samples = None;
    'training: for round in (0..rounds).cycle() {
        if rounds > 1 || samples.is_none() {
            samples = lessons.gathered(BlockPart::Decide, round, rounds)?;
        }
        let Some(samples) = &samples else { continue };
        let rows = sampling::choose(samples.len(), samples.len(), &mut random);
        // Tokens that don't fill a whole batch are left out; the next order leaves out others.
        let batches = (rows.len() / training.batch_tokens).max(1);
        for rows in rows.chunks(training.batch_tokens).take(batches) {
            // A step is one pass forward and the work of two backward.
            let work = Work::products(3 * rows.len(), network.elements());
            let step = || learner.step(&samples.pick(rows)?, energy);
            let Some(loss) = lessons.compute.stage("steps", work, step).map_err(fail)? else {
                trained.diverged = Some(learner.taken + 1);
                break 'training;
            };
            losses.push(loss);
            if !learner.taken.is_multiple_of(every) && learner.taken < steps {
                continue;
            }
            let error = lessons.error(test.as_ref(), &learner.vars)?;
            let loss = losses.iter().sum::<f64>() / losses.len() as f64;
            losses.clear();
            trained.looks.push(Look { step: learner.taken, error, loss: Some(loss) });
            best.take(error, &learner).map_err(fail)?;
            let without_gain =
                trained.looks.iter().rev().take_while(|look| look.step > best.step).count();
            if learner.taken >= steps || without_gain >= PATIENCE {
                break 'training;
            }
        }
    }
    (trained.steps, trained.best) = (learner.taken, best.step);
    Ok(Learned { trained, best: best.values })
}

impl Learned {
    /// Little-endian bytes: the number of values of `trained`, these values in f64, and the
    /// matrices in f32.
    pub fn to_bytes(&self) -> Vec<u8> {
        let Trained { steps, best, diverged, looks } = &self.trained;
        let or_nan = |value: Option<f64>| value.unwrap_or(f64::NAN);
        let looks = looks.iter().flat_map(|look| [look.step as f64, look.error, or_nan(look.loss)]);
        let head = [*steps as f64, *best as f64, or_nan(diverged.map(|step| step as f64))];
        let numbers: Vec<f64> = head.into_iter().chain(looks).collect();
        let mut bytes = (numbers.len() as u64).to_le_bytes().to_vec();
        numbers.iter().for_each(|number| bytes.extend(number.to_le_bytes()));
        let values = self.best.iter().flatten().flatten();
        bytes.extend(values.flat_map(|value| value.to_le_bytes()));
        bytes
    }

    /// Reads those bytes, for a network whose matrices are shaped like those of `network`; None for
    /// any other bytes.
    pub fn of_bytes(bytes: &[u8], network: &Expert) -> Option<Self> {
        let (count, bytes) = bytes.split_first_chunk()?;
        let (numbers, values) = bytes
            .split_at_checked(usize::try_from(u64::from_le_bytes(*count)).ok()?.checked_mul(8)?)?;
        let numbers: Vec<f64> =
            numbers.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect();
        let ([steps, best, diverged], looks) = numbers.split_first_chunk()?;
        let some = |number: f64| (!number.is_nan()).then_some(number);
        let look = |[step, error, loss]: &[f64; 3]| Look {
            step: *step as u64,
            error: *error,
            loss: some(*loss),
        };
        let trained = Trained {
            steps: *steps as u64,
            best: *best as u64,
            diverged: some(*diverged).map(|step| step as u64),
            looks: looks.as_chunks().0.iter().map(look).collect(),
        };
        let mut values = values.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b));
        if values.len() == 0 {
            return Some(Self { trained, best: None });
        }
        let sizes = network.linears().map(|linear| linear.weight.elements());
        let matrices = sizes.map(|size| values.by_ref().take(size).collect::<Vec<f32>>());
        let whole = matrices.iter().zip(sizes).all(|(matrix, size)| matrix.len() == size)
            && values.len() == 0;
        whole.then_some(Self { trained, best: Some(matrices) })
    }
}

/// The best network so far.
struct Best {
    error: f64,
    step: u64,
    /// None for the network from before training.
    values: Option<[Vec<f32>; 3]>,
}

impl Best {
    fn take(&mut self, error: f64, learner: &Learner) -> CandleResult<()> {
        if error < self.error {
            let [gate, up, down] = learner.vars.each_ref().map(|var| var.flatten_all()?.to_vec1());
            *self = Self { error, step: learner.taken, values: Some([gate?, up?, down?]) };
        }
        Ok(())
    }
}

/// Inputs of a network, and the outputs that it is trained to give.
struct BlockSamples {
    /// `[n, hidden]`
    x: Tensor,
    /// `[n, hidden]`
    y: Tensor,
    weights: Vec<f32>,
}

impl BlockSamples {
    fn len(&self) -> usize {
        self.weights.len()
    }

    fn pick(&self, rows: &[usize]) -> CandleResult<Self> {
        let chosen: Vec<u32> = rows.iter().map(|row| *row as u32).collect();
        let chosen = Tensor::from_vec(chosen, rows.len(), self.x.device())?;
        let weights = rows.iter().map(|row| self.weights[*row]).collect();
        Ok(Self {
            x: self.x.index_select(&chosen, 0)?,
            y: self.y.index_select(&chosen, 0)?,
            weights,
        })
    }
}

impl LayerTrainingData<'_> {
    /// The tokens of `block` that belong to `part`, every `every`-th from `first` on; None where
    /// there are none.
    fn samples(
        &self,
        block: usize,
        part: BlockPart,
        first: usize,
        every: usize,
    ) -> Result<Option<BlockSamples>> {
        let (rows, roots) = self.tokens.of(part, self.inputs.blocks()[block].clone());
        let rows: Vec<u32> = rows.into_iter().skip(first).step_by(every).collect();
        let roots = roots.iter().skip(first).step_by(every);
        if rows.is_empty() {
            return Ok(None);
        }
        let (x, y) =
            (self.inputs.get(block)?, self.inputs.output(block)?.expect("the block was observed"));
        let pick = || {
            let chosen = Tensor::from_slice(&rows, rows.len(), x.device())?;
            let pick = |t: &Tensor| t.index_select(&chosen, 0)?.to_dtype(DType::F32);
            Ok(BlockSamples {
                x: pick(&x)?,
                y: pick(&y)?,
                weights: roots.map(|root| root * root).collect(),
            })
        };
        pick().map(Some).map_err(|e: candle_core::Error| failed(self.index, e))
    }

    /// The same for all blocks together: a batch from one block would hold one kind of text, and
    /// unlearn the others.
    fn gathered(
        &self,
        part: BlockPart,
        first: usize,
        every: usize,
    ) -> Result<Option<BlockSamples>> {
        let of_block = |block| self.samples(block, part, first, every).transpose();
        let parts: Vec<BlockSamples> =
            (0..self.inputs.blocks().len()).filter_map(of_block).collect::<Result<_>>()?;
        if parts.is_empty() {
            return Ok(None);
        }
        let together = |of: fn(&BlockSamples) -> &Tensor| {
            Tensor::cat(&parts.iter().map(of).collect::<Vec<_>>(), 0)
        };
        let all = || Ok((together(|samples| &samples.x)?, together(|samples| &samples.y)?));
        let (x, y) = all().map_err(|e: candle_core::Error| failed(self.index, e))?;
        Ok(Some(BlockSamples {
            x,
            y,
            weights: parts.into_iter().flat_map(|samples| samples.weights).collect(),
        }))
    }

    /// In how many rounds the tokens that decide are gathered.
    fn rounds(&self) -> usize {
        let width = self.hidden * 2 * size_of::<f32>();
        (self.tokens.count(BlockPart::Decide) * width).div_ceil(GATHERED_BYTES).max(1)
    }

    /// Σ ρ |y|² / Σ ρ over the tokens that decide.
    fn energy(&self) -> Result<f64> {
        let (mut sum, mut weight) = (0.0, 0.0);
        for block in 0..self.inputs.blocks().len() {
            let Some(samples) = self.samples(block, BlockPart::Decide, 0, 1)? else { continue };
            sum += weighted(&samples.y, &samples.weights).map_err(|e| failed(self.index, e))?;
            weight += samples.weights.iter().map(|w| f64::from(*w)).sum::<f64>();
        }
        Ok(if weight > 0.0 { sum / weight } else { 0.0 })
    }

    /// The held-out tokens that are evaluated. They are gathered once, as evaluations are frequent.
    fn test(&self) -> Result<Option<BlockSamples>> {
        self.gathered(
            BlockPart::HeldOut,
            0,
            self.tokens.count(BlockPart::HeldOut).div_ceil(LOOKED_AT).max(1),
        )
    }

    /// √(Σ ρ |y − y'|² / Σ ρ |y|²) over `test`.
    fn error(&self, test: Option<&BlockSamples>, network: &[Var; 3]) -> Result<f64> {
        let Some(BlockSamples { x, y, weights }) = test else { return Ok(0.0) };
        let network = network.each_ref().map(Var::as_detached_tensor);
        let error = || {
            let [error, all] =
                [weighted(&(output(x, &network)? - y)?, weights)?, weighted(y, weights)?];
            Ok(if all > 0.0 { (error / all).sqrt() } else { 0.0 })
        };
        error().map_err(|e: candle_core::Error| failed(self.index, e))
    }
}

/// Σ ρ |row|²
fn weighted(rows: &Tensor, weights: &[f32]) -> CandleResult<f64> {
    let squares: Vec<f32> = rows.sqr()?.sum(1)?.to_vec1()?;
    let sum = |squares: &[f64]| {
        squares.iter().zip(weights).map(|(square, weight)| square * f64::from(*weight)).sum()
    };
    if squares.iter().all(|square| square.is_finite()) {
        return Ok(sum(&squares.into_iter().map(f64::from).collect::<Vec<_>>()));
    }
    // Values that are finite in f32 may have squares that aren't.
    let rows = rows.to_device(&Device::Cpu)?.to_dtype(DType::F64)?;
    Ok(sum(&rows.sqr()?.sum(1)?.to_vec1::<f64>()?))
}

/// down(silu(gate x) ∘ (up x))
fn output(x: &Tensor, [gate, up, down]: &[Tensor; 3]) -> CandleResult<Tensor> {
    product(&swiglu(&product(x, gate)?, &product(x, up)?)?, down)
}

/// A network that is being trained.
struct Learner {
    vars: [Var; 3],
    moments: Vec<Moments>,
    steps: u64,
    /// The rate of each matrix.
    learning_rates: [f64; 3],
    /// The number of steps taken.
    taken: u64,
}

impl Learner {
    /// The rate of each matrix is `learning_rate` times the root mean square of its elements, so
    /// that it means the same for large weights and small ones.
    fn new(vars: [Var; 3], steps: u64, learning_rate: f64) -> CandleResult<Self> {
        let moments = vars.iter().map(Moments::new).collect::<CandleResult<_>>()?;
        let size = |var: &Var| Ok((square_norm(var)? / var.elem_count() as f64).sqrt());
        let sizes = vars.iter().map(size).collect::<CandleResult<Vec<f64>>>()?;
        let learning_rates = std::array::from_fn(|matrix| learning_rate * sizes[matrix]);
        Ok(Self { vars, moments, steps, learning_rates, taken: 0 })
    }

    /// One step on `samples`. Returns the loss, or None where the loss or its gradient isn't
    /// finite; then nothing changed.
    fn step(&mut self, samples: &BlockSamples, energy: f64) -> CandleResult<Option<f64>> {
        let network = self.vars.each_ref().map(|var| var.as_tensor().clone());
        let loss = loss(&output(&samples.x, &network)?, samples, energy)?;
        let gradients = loss.backward()?;
        let of = |var: &Var| {
            gradients.get(var).ok_or_else(|| candle_core::Error::msg("a matrix without a gradient"))
        };
        let gradients = self.vars.iter().map(of).collect::<CandleResult<Vec<_>>>()?;
        let norm = gradients.iter().map(|g| square_norm(g)).sum::<CandleResult<f64>>()?.sqrt();
        let loss = f64::from(loss.to_scalar::<f32>()?);
        if !loss.is_finite() || !norm.is_finite() {
            return Ok(None);
        }
        let warmup = (self.steps as f64 * WARMUP).ceil() as u64;
        // A schedule that rises from 0 would waste its first step.
        let rate =
            cosine(self.taken + u64::from(warmup > 0), warmup, self.steps + u64::from(warmup > 0));
        self.taken += 1;
        let matrices =
            self.vars.iter().zip(gradients).zip(&mut self.moments).zip(self.learning_rates);
        for (((var, gradient), moments), learning_rate) in matrices {
            let step = Step {
                number: self.taken,
                learning_rate: learning_rate * rate,
                weight_decay: 0.0,
                scale: clipping(norm, Some(CLIP)),
            };
            AdamW::default().step(var, gradient, moments, &step)?;
        }
        Ok(Some(loss))
    }
}

/// Σ ρ (|y − y'|² / E|y|² + 0.05 (1 − cos(y, y'))) / Σ ρ, E|y|² being `energy`.
fn loss(found: &Tensor, samples: &BlockSamples, energy: f64) -> CandleResult<Tensor> {
    let BlockSamples { y, weights, .. } = samples;
    let sum: f32 = weights.iter().sum();
    let weights: Vec<f32> = weights.iter().map(|weight| weight / sum).collect();
    let weights = Tensor::from_vec(weights, (samples.len(), 1), y.device())?;
    let square = |t: &Tensor| t.sqr()?.sum_keepdim(1);
    let error = (square(&(found - y)?)? / energy)?;
    // A token whose output is zero has no direction.
    let norms = ((square(found)? * square(y)?)? + 1e-12 * energy * energy)?.sqrt()?;
    let turned = (1.0 - ((found * y)?.sum_keepdim(1)? / norms)?)?;
    ((error + (turned * COSINE)?)? * weights)?.sum_all()
}

#[cfg(test)]
mod tests;
