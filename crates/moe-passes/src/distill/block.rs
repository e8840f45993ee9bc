//! Trains a dense network to give what the mixture gives, on the tokens that reach its layer.
//!
//! One layer is trained at a time, so that only its three matrices, their moments and a block of
//! tokens are held, whatever the depth.

mod learner;
mod network;
mod samples;

use std::ops::ControlFlow;

use candle_core::{Result as CandleResult, Var};
use moe_forward::to_f32;
use moe_math::meter::Work;
use moe_math::sampling;
use moe_model::{Error, Expert, Kind, Result, Weight};

use learner::Learner;
use samples::{BlockSamples, Stride};
pub(super) use samples::{GATHERED_BYTES, LOOKED_AT, LayerTrainingData};

use super::observe::{BlockPart, failed};
use super::record::{Look, Trained};
use super::training::Training;

/// How many times held-out tokens are evaluated, and after how many evaluations in a row without a
/// gain training ends.
const LOOKS: u64 = 20;
const PATIENCE: usize = 10;
/// The bytes of the graph and the gradients of a step on `tokens` tokens.
pub(super) fn step_bytes(tokens: u64, width: u64, hidden: u64) -> u64 {
    // Inputs, targets, error and angle; gate, up and their product; as much again for gradients,
    // and the terms that these are added up from.
    4 * tokens * (13 * hidden + 11 * width)
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
    training_data: &LayerTrainingData<'_>,
    network: &Expert,
    steps: u64,
    training: &Training,
) -> Result<Learned> {
    let energy = training_data.energy()?;
    if energy == 0.0 {
        // A mixture whose output is zero teaches nothing.
        return Ok(Learned { trained: Trained::default(), best: None });
    }
    let learner = training_data.learner(network, steps, training.relative_learning_rate)?;
    let mut run = TrainingRun::begin(training_data, learner, energy)?;
    run.take_steps(training.batch_tokens)?;
    Ok(run.learned())
}

/// The training of one layer's network, from its first step to its last.
struct TrainingRun<'a> {
    training_data: &'a LayerTrainingData<'a>,
    /// Σ ρ |y|² / Σ ρ
    energy: f64,
    /// The held-out tokens that are evaluated.
    test: Option<BlockSamples>,
    learner: Learner,
    /// Losses of the steps since the last evaluation.
    losses: Vec<f64>,
    best: Best,
    trained: Trained,
}

impl<'a> TrainingRun<'a> {
    /// A run before its first step. Refuses outputs that are not finite.
    fn begin(
        training_data: &'a LayerTrainingData<'a>,
        learner: Learner,
        energy: f64,
    ) -> Result<Self> {
        let test = training_data.test()?;
        let error = training_data.error(test.as_ref(), &learner.vars)?;
        if !(energy.is_finite() && error.is_finite()) {
            return Err(training_data.not_finite());
        }
        let looks = vec![Look { step: 0, error, loss: None }];
        let trained = Trained { looks, ..Trained::default() };
        let best = Best { error, step: 0, values: None };
        Ok(Self { training_data, energy, test, learner, losses: Vec::new(), best, trained })
    }

    /// Takes steps on batches of `batch_tokens` in random order until training ends.
    fn take_steps(&mut self, batch_tokens: usize) -> Result<()> {
        let training_data = self.training_data;
        let mut random = sampling::generator(training_data.seed, training_data.index as u64);
        let rounds = training_data.rounds();
        let mut samples = None;
        for round in (0..rounds).cycle() {
            if rounds > 1 || samples.is_none() {
                samples = training_data
                    .gathered(BlockPart::Decide, Stride { first: round, every: rounds })?;
            }
            let Some(samples) = &samples else { continue };
            let rows = sampling::choose(samples.len(), samples.len(), &mut random);
            // Tokens that don't fill a whole batch are left out; the next order leaves out others.
            let batches = (rows.len() / batch_tokens).max(1);
            for rows in rows.chunks(batch_tokens).take(batches) {
                if self.step(samples, rows)?.is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Takes one step on the tokens `rows` of `samples`, and evaluates the network where it is time
    /// to. Breaks where training ends: all steps are taken, one diverged, or none gains any more.
    fn step(&mut self, samples: &BlockSamples, rows: &[usize]) -> Result<ControlFlow<()>> {
        // A step is one pass forward and the work of two backward.
        let work = Work::products(3 * rows.len(), self.learner.elements());
        let loss = self
            .training_data
            .compute
            .stage("steps", work, || self.learner.step(&samples.pick(rows)?, self.energy));
        let Some(loss) = loss.map_err(|e| failed(self.training_data.index, e))? else {
            self.trained.diverged = Some(self.learner.taken + 1);
            return Ok(ControlFlow::Break(()));
        };
        self.losses.push(loss);
        let is_last = self.learner.taken >= self.learner.steps;
        if !is_last && !self.learner.taken.is_multiple_of(self.learner.steps.div_ceil(LOOKS)) {
            return Ok(ControlFlow::Continue(()));
        }
        self.evaluate()?;
        if is_last || self.without_gain() >= PATIENCE {
            return Ok(ControlFlow::Break(()));
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Looks at held-out tokens, and keeps the network if it is the best so far.
    fn evaluate(&mut self) -> Result<()> {
        let error = self.training_data.error(self.test.as_ref(), &self.learner.vars)?;
        let loss = self.losses.iter().sum::<f64>() / self.losses.len() as f64;
        self.losses.clear();
        self.trained.looks.push(Look { step: self.learner.taken, error, loss: Some(loss) });
        self.best.take(error, &self.learner).map_err(|e| failed(self.training_data.index, e))
    }

    /// The number of evaluations since the best one.
    fn without_gain(&self) -> usize {
        self.trained.looks.iter().rev().take_while(|look| look.step > self.best.step).count()
    }

    fn learned(self) -> Learned {
        let (steps, best) = (self.learner.taken, self.best.step);
        Learned { trained: Trained { steps, best, ..self.trained }, best: self.best.values }
    }
}

impl LayerTrainingData<'_> {
    /// A learner that starts at the matrices of `network`.
    fn learner(&self, network: &Expert, steps: u64, learning_rate: f64) -> Result<Learner> {
        let [gate, up, down] = network.linears().map(|linear| self.variable(&linear.weight));
        let vars = [gate?, up?, down?];
        Learner::new(vars, steps, learning_rate).map_err(|e| failed(self.index, e))
    }

    fn variable(&self, weight: &Weight) -> Result<Var> {
        let values = to_f32(weight, self.compute)?;
        Var::from_tensor(&values).map_err(|e| failed(self.index, e))
    }

    /// The error where the mixture's outputs or the network's are not finite before any step.
    fn not_finite(&self) -> Error {
        let index = self.index;
        let what =
            format!("what layer {index} gives, or its dense network, is not finite on this text");
        Error::new(Kind::Numeric, what)
            .remedy("look for weights that are too large with moe-convert verify and eval; --steps 0 trains nothing")
    }
}

impl Learned {
    /// Little-endian bytes: the number of values of `trained`, these values in f64, and the
    /// matrices in f32.
    pub fn to_bytes(&self) -> Vec<u8> {
        let Trained { steps, best, diverged, looks } = &self.trained;
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
        let size = usize::try_from(u64::from_le_bytes(*count)).ok()?.checked_mul(8)?;
        let (numbers, values) = bytes.split_at_checked(size)?;
        let trained = trained_of(numbers)?;
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

/// The number that [`Learned::to_bytes`] writes for `value`: NaN stands for None.
fn or_nan(value: Option<f64>) -> f64 {
    value.unwrap_or(f64::NAN)
}

/// The value that [`or_nan`] wrote as `number`.
fn unless_nan(number: f64) -> Option<f64> {
    (!number.is_nan()).then_some(number)
}

/// Reads `trained` from the `numbers` of [`Learned::to_bytes`].
fn trained_of(numbers: &[u8]) -> Option<Trained> {
    let numbers: Vec<f64> = numbers.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect();
    let ([steps, best, diverged], looks) = numbers.split_first_chunk()?;
    let looks = looks.as_chunks().0.iter().map(|[step, error, loss]| Look {
        step: *step as u64,
        error: *error,
        loss: unless_nan(*loss),
    });
    Some(Trained {
        steps: *steps as u64,
        best: *best as u64,
        diverged: unless_nan(*diverged).map(|step| step as u64),
        looks: looks.collect(),
    })
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

#[cfg(test)]
mod tests;
