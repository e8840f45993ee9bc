//! Solves the experts of a layer together, each on its samples.

mod errors;
mod factors;

use std::fmt;

use candle_core::Tensor;
use moe_forward::Inputs;
use moe_math::Compute;
use moe_math::combine::ExpertCombine;
use moe_math::meter::Work;
use moe_math::product::product;
use moe_math::quantize::{self, Codes, Damping, Factor, HessianSum, Problem};
use moe_math::swiglu;
use moe_model::{Error, Expert, Kind, Linear, Result};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::failed::failed;
use super::samples::{Counts, ExpertSamples, Routed};
use crate::batches::in_batches;
use crate::part::finite_values;

/// The approximate number of bytes in memory for Hessians and kept activations of the experts that
/// are solved together.
const BATCH_BYTES: usize = 96 << 20;
/// An expert's output is compared on about this many of its tokens.
const ERROR_TOKENS: usize = 64;

/// Names of stages, as `--timings` prints them.
const READING: &str = "weights";
const FACTORS: &str = "factors";
const CODES: &str = "codes";
const DEQUANTIZING: &str = "dequantized weights";
const ERRORS: &str = "output errors";
const OUTPUTS: &str = "experts' outputs";

/// The solver of a layer, with its options.
pub(super) struct Solver<'a> {
    pub layer: usize,
    pub inputs: &'a Inputs<'a>,
    /// Whether each token counts.
    pub counted: &'a [bool],
    pub compute: &'a Compute,
    /// Options of gate, up and down.
    pub options: [quantize::GptqOptions; 3],
    pub damping: Damping,
    pub act_order: bool,
    /// How many tokens' worth of the layer's Hessian is mixed into each Hessian, as a multiple of
    /// its width; 0 for none.
    pub shrinkage: f64,
    /// How many tokens' worth of white noise of a column's mean energy is added to each Hessian, as
    /// a multiple of its width.
    pub ridge: f64,
}

/// A network and the samples that it is calibrated on.
pub(super) struct Task<'a> {
    /// The name that messages use.
    pub name: String,
    pub network: &'a Expert,
    pub samples: ExpertSamples,
    /// The tokens that it is run on once it is quantized; None where its outputs aren't summed.
    pub routed: Option<Routed>,
}

impl Task<'_> {
    /// The shape of its gate and up: width and hidden size.
    fn shape(&self) -> [usize; 2] {
        [self.network.width(), self.network.gate.weight.shape()[1]]
    }

    /// The samples that its gate and up are run on.
    fn seen(&self) -> &ExpertSamples {
        self.routed.as_ref().map_or(&self.samples, |routed| &routed.with_samples)
    }
}

/// Codes of a network's matrices.
pub(super) struct Solved {
    pub gate: Codes,
    pub up: Codes,
    pub down: Codes,
    pub record: ExpertRecord,
}

/// The calibration of one expert.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ExpertRecord {
    /// Tokens.
    #[serde(flatten)]
    pub counts: Counts,
    /// Effective sample size, (Σ ρ)² / Σ ρ² over the weights ρ of the tokens.
    pub effective: f64,
    /// The share of the mean diagonal that was added to the Hessians of gate and up, and of down.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub damping: Option<[f64; 2]>,
    /// √(Σ ρ |Δy|² / Σ ρ |y|²) of its output y, over an even selection of what it was calibrated
    /// on; null in JSON where that overflows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[serde(deserialize_with = "moe_checkpoint::or_infinite")]
    pub error: Option<f64>,
    /// The fallback that was taken. None if GPTQ ran on the expert's own tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fallback: Option<Fallback>,
}

/// What was done if an expert's own tokens didn't suffice for GPTQ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Fallback {
    /// No token was its own.
    NoTokenOfItsOwn,
    /// Its Hessians needed more damping than was asked for to be factored.
    MoreDamping,
}

impl fmt::Display for Fallback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoTokenOfItsOwn => "no token of its own",
            Self::MoreDamping => "more damping",
        })
    }
}

/// A matrix's Hessian, factored.
struct Factored {
    factor: Factor<f32>,
    /// The effective number of its own tokens.
    effective: f64,
}

/// The data about the inputs of gate and up that all experts of a layer share; it is made once.
struct SharedInputs {
    /// The Hessian of the whole layer's inputs, where it is mixed into those of experts.
    layer: Option<HessianSum>,
    /// The one factored Hessian, where all experts have the same samples.
    factors: Option<Vec<Factored>>,
}

/// Codes of gate and up.
type Pair = (Codes, Codes);
/// Activations of each task, `[tokens, width]` in parts.
type Activations = Vec<Vec<Tensor>>;

/// The maximum number of bytes that solving the `experts` networks of `width` by `hidden` of a
/// layer holds. About `routed` tokens go to each, which sees `seen` tokens of a block.
pub(super) fn working_bytes(
    experts: usize,
    [width, hidden]: [usize; 2],
    routed: usize,
    seen: usize,
) -> u64 {
    let of_batch = 4 * (hidden.max(width).pow(2) + width * routed);
    let together = (BATCH_BYTES / of_batch.max(1)).clamp(1, experts.max(1));
    let (product, square) = (width * hidden, width.pow(2));
    // Three matrices, two of them dequantized; two Hessians, each with its factor; activations.
    let solving = 4 * (5 * product + hidden.pow(2) + 2 * square + width * routed);
    // Two dequantized matrices, and the Hessian that is summed; activations.
    let summing = 4 * (2 * product + hidden.pow(2) + square + width * routed);
    // Each thread runs one expert on a block: its inputs, gate, up and their product.
    let running = together.min(rayon::current_num_threads()) * 4 * seen * (hidden + 3 * width);
    (together * solving).max(together * summing + running) as u64
}

impl Solver<'_> {
    /// Solves all `tasks`, as many at a time as memory holds, and passes each to `done`. Returns
    /// the results of `done` and, where tasks say which tokens are routed to them, the sum of their
    /// outputs for all tokens.
    pub fn run<T>(
        &self,
        tasks: &[Task<'_>],
        mut done: impl FnMut(&Expert, Solved) -> Result<T>,
    ) -> Result<(Vec<T>, Option<Tensor>)> {
        let Some(first) = tasks.first() else { return Ok((Vec::new(), None)) };
        let inputs = self.shared_inputs(tasks, first)?;
        let mut combine =
            first.routed.as_ref().map(|_| self.combine(first.shape()[1])).transpose()?;
        let mut all = Vec::with_capacity(tasks.len());
        let take = |batch: &[Task<'_>], (solved, activations): (Vec<Solved>, _)| {
            if let Some(combine) = &mut combine {
                self.add_outputs(batch, activations, &solved, combine)?;
            }
            for (task, solved) in batch.iter().zip(solved) {
                all.push(done(task.network, solved)?);
            }
            self.compute.meter.at_expert(all.len().min(tasks.len() - 1), tasks.len());
            Ok(())
        };
        self.compute.meter.at_expert(0, tasks.len());
        let most = self.compute.batch_bytes(BATCH_BYTES);
        let solve = |batch: &[Task<'_>]| self.solved(batch, &inputs);
        in_batches(tasks, most, |task| self.bytes(task), solve, take)?;
        self.compute.meter.at_no_expert();
        let routed = combine.map(|combine| combine.finish(self.compute.dtype)).transpose();
        Ok((all, routed.map_err(|e| self.numeric("the outputs", e))?))
    }

    /// Returns the data that all `tasks` share; `first` is the first of them.
    fn shared_inputs(&self, tasks: &[Task<'_>], first: &Task<'_>) -> Result<SharedInputs> {
        let hidden = first.shape()[1];
        let layer = if self.shrinkage > 0.0 { Some(self.layer_hessian(hidden)?) } else { None };
        let mut inputs = SharedInputs { layer, factors: None };
        if tasks.iter().all(|task| task.samples.shares(&first.samples)) {
            inputs.factors = Some(self.inputs_factored(&tasks[..1], &inputs)?);
        }
        Ok(inputs)
    }

    /// The sum of experts' outputs for all tokens, of which none is there yet.
    fn combine(&self, hidden: usize) -> Result<ExpertCombine> {
        ExpertCombine::new(self.counted.len(), hidden, &self.compute.device)
            .map_err(|e| self.numeric("the outputs", e))
    }

    /// Bytes that `task` holds while its batch is solved.
    fn bytes(&self, task: &Task<'_>) -> usize {
        let [width, hidden] = task.shape();
        // On a device, copies are also ordered, damped, stacked and factored side by side.
        let copies = if self.compute.device.is_cpu() { 1 } else { 5 };
        let tokens = task.routed.as_ref().map_or(0, |routed| routed.route.tokens.len());
        4 * (copies * hidden.max(width).pow(2) + width * tokens)
    }

    /// Solves `tasks`, which share `inputs`.
    fn solved(
        &self,
        tasks: &[Task<'_>],
        inputs: &SharedInputs,
    ) -> Result<(Vec<Solved>, Activations)> {
        let shape = tasks[0].shape();
        match &inputs.factors {
            Some(factors) => self.batch(tasks, factors, shape),
            None => self.batch(tasks, &self.inputs_factored(tasks, inputs)?, shape),
        }
    }

    /// Codes of `tasks`, with a factor of gate and up for each, or one for all; and for each task
    /// the inputs of down for the tokens that are routed to it.
    fn batch(
        &self,
        tasks: &[Task<'_>],
        inputs: &[Factored],
        shape: [usize; 2],
    ) -> Result<(Vec<Solved>, Activations)> {
        let pairs = self.gates_and_ups(tasks, inputs, shape)?;
        let matrices = self.matrices(tasks, &pairs, shape)?;
        let (neurons, activations) = self.neurons_factored(tasks, &matrices, shape)?;
        let downs = self.weights(tasks, |network| &network.down)?;
        let downs = self.solve(
            downs.iter(),
            neurons.iter().map(|n| &n.factor),
            [shape[1], shape[0]],
            &self.options[2],
        )?;
        let errors = self
            .compute
            .stage(ERRORS, Work::UNCOUNTED, || self.errors(tasks, &matrices, &downs))?;
        let solved = tasks.iter().zip(pairs).zip(downs).zip(errors).zip(&neurons).enumerate();
        let solved = solved.map(|(index, ((((task, (gate, up)), down), error), neurons))| {
            let input = inputs.get(index).unwrap_or(&inputs[0]);
            let record = record(task, [input, neurons], error);
            Solved { gate, up, down, record }
        });
        Ok((solved.collect(), activations))
    }

    /// Codes of gate and up, the two matrices that read the layer's inputs.
    fn gates_and_ups(
        &self,
        tasks: &[Task<'_>],
        inputs: &[Factored],
        shape: [usize; 2],
    ) -> Result<Vec<Pair>> {
        let gates = self.weights(tasks, |network| &network.gate)?;
        let ups = self.weights(tasks, |network| &network.up)?;
        let factors =
            || (0..tasks.len()).map(|index| &inputs.get(index).unwrap_or(&inputs[0]).factor);
        let [gate, up, _] = &self.options;
        if gate == up {
            let both = gates.iter().chain(&ups);
            let mut of_gate = self.solve(both, factors().chain(factors()), shape, gate)?;
            let of_up = of_gate.split_off(tasks.len());
            return Ok(of_gate.into_iter().zip(of_up).collect());
        }
        let of_gate = self.solve(gates.iter(), factors(), shape, gate)?;
        let of_up = self.solve(ups.iter(), factors(), shape, up)?;
        Ok(of_gate.into_iter().zip(of_up).collect())
    }

    /// The values of `pairs`, dequantized.
    fn matrices(
        &self,
        tasks: &[Task<'_>],
        pairs: &[Pair],
        shape: [usize; 2],
    ) -> Result<Vec<[Tensor; 2]>> {
        self.compute.stage(DEQUANTIZING, Work::UNCOUNTED, || {
            let matrices = pairs.par_iter().zip(tasks).map(|((gate, up), task)| {
                let gate = self.matrix(gate, shape);
                gate.and_then(|gate| Ok([gate, self.matrix(up, shape)?]))
                    .map_err(|e| self.numeric(&task.name, e))
            });
            matrices.collect()
        })
    }

    /// The matrix that `codes` stand for.
    fn matrix(&self, codes: &Codes, shape: [usize; 2]) -> candle_core::Result<Tensor> {
        Tensor::from_vec(codes.dequantize(), &shape, &self.compute.device)?
            .to_dtype(self.compute.dtype)
    }

    pub(super) fn numeric(&self, what: &str, error: candle_core::Error) -> Error {
        Error::new(Kind::Numeric, format!("{what} of layer {}", self.layer)).source(error)
    }

    fn weights(
        &self,
        tasks: &[Task<'_>],
        of: impl Fn(&Expert) -> &Linear + Sync,
    ) -> Result<Vec<Vec<f32>>> {
        let bytes = tasks.iter().map(|task| of(task.network).weight.bytes()).sum();
        self.compute.stage(READING, Work::bytes(bytes), || {
            tasks.par_iter().map(|task| finite_values(&of(task.network).weight)).collect()
        })
    }

    fn solve<'w>(
        &self,
        weights: impl Iterator<Item = &'w Vec<f32>>,
        factors: impl Iterator<Item = &'w Factor<f32>>,
        shape: [usize; 2],
        options: &quantize::GptqOptions,
    ) -> Result<Vec<Codes>> {
        let problems: Vec<_> =
            weights.zip(factors).map(|(weight, factor)| Problem { weight, factor }).collect();
        // Each column takes the errors of all columns before it.
        let flops = problems.len() as f64 * (shape[0] * shape[1] * shape[1]) as f64;
        let solved = self.compute.stage(CODES, Work::flops(flops), || {
            quantize::solve_on(&problems, shape, options, &self.compute.device)
        });
        let solved = solved.map_err(failed)?;
        Ok(solved.into_iter().map(|solved| solved.codes).collect())
    }
}

/// silu(gate x) ∘ (up x), `[tokens, width]`.
fn activations(x: &Tensor, [gate, up]: &[Tensor; 2]) -> candle_core::Result<Tensor> {
    swiglu(&product(x, gate)?, &product(x, up)?)
}

fn record(task: &Task<'_>, [input, neurons]: [&Factored; 2], error: Option<f64>) -> ExpertRecord {
    let effective = input.effective;
    let raised = input.factor.attempts > 1 || neurons.factor.attempts > 1;
    let fallback = match (effective > 0.0, raised) {
        (false, _) => Some(Fallback::NoTokenOfItsOwn),
        (true, true) => Some(Fallback::MoreDamping),
        (true, false) => None,
    };
    let damping = Some([input.factor.damping, neurons.factor.damping]);
    ExpertRecord { counts: task.samples.counts, effective, damping, error, fallback }
}
