//! Solves the experts of a layer together, on what reaches each.

use candle_core::{DType, Tensor};
use moe_forward::Inputs;
use moe_math::Compute;
use moe_math::product::product;
use moe_math::quantize::{self, Codes, Damping, Factor, Hessian, Problem, QuantizeError, energy, factorise};
use moe_model::{Error, Expert, Kind, Linear, Result};
use rayon::prelude::*;
use serde::Serialize;

use super::samples::{Counts, ExpertSamples};
use crate::part::finite_values;

/// Hessians of the experts that are solved together take at most this many bytes.
const HESSIAN_BYTES: usize = 1 << 30;
/// The layer's own Hessian is made of at most this multiple of its width in tokens.
const LAYER_TOKENS: usize = 8;

/// How codes are found.
pub(super) struct Solver<'a> {
    pub layer: usize,
    pub inputs: &'a Inputs<'a>,
    /// Whether each token counts.
    pub counted: &'a [bool],
    pub compute: &'a Compute,
    /// Of gate, up and down.
    pub options: [quantize::Options; 3],
    pub damping: Damping,
    pub act_order: bool,
    /// Tokens' worth of the layer in each Hessian, as a multiple of its width; 0 for none.
    pub shrinkage: f64,
    /// Tokens' worth of white noise of a column's mean energy in each Hessian, as a multiple of its width.
    pub ridge: f64,
}

/// A network and what it is calibrated on.
pub(super) struct Task<'a> {
    /// What messages call it.
    pub name: String,
    pub network: &'a Expert,
    pub samples: ExpertSamples,
}

/// Codes of a network's matrices.
pub(super) struct Solved {
    pub gate: Codes,
    pub up: Codes,
    pub down: Codes,
    pub record: ExpertRecord,
}

/// How an expert was quantized.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ExpertRecord {
    /// Tokens.
    #[serde(flatten)]
    pub counts: Counts,
    /// (Σ ρ)² / Σ ρ²: how many tokens of equal weight would say as much.
    pub effective: f64,
    /// The share of the mean diagonal that was added to the Hessians of gate and up, and of down.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub damping: Option<[f64; 2]>,
    /// √(Σ ρ |ΔW x|² / Σ ρ |W x|²) of gate and up together, and of down, over what it was calibrated on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<[f64; 2]>,
    /// What was done instead of GPTQ on its own tokens, if anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fallback: Option<String>,
}

/// A matrix's Hessian, factored.
struct Factored {
    factor: Factor<f32>,
    /// What was factored, without damping.
    hessian: Hessian<f32>,
    /// Effective tokens of its own.
    effective: f64,
}

/// What is said of a Hessian and what was solved with it.
struct Found {
    effective: f64,
    damping: f64,
    /// Whether the first damping failed.
    raised: bool,
    /// √(Σ ρ |ΔW x|² / Σ ρ |W x|²)
    error: f64,
}

/// Codes of gate and up.
type Pair = (Codes, Codes);

/// Codes of one matrix of each task, and Σ ρ |ΔW x|² of each.
type Matrices = (Vec<Codes>, Vec<f64>);

impl Solver<'_> {
    /// Codes of all `tasks`, as many together as memory holds.
    pub fn run(&self, tasks: &[Task<'_>]) -> Result<Vec<Solved>> {
        let Some(first) = tasks.first() else { return Ok(Vec::new()) };
        let [width, hidden] = [first.network.width(), first.network.gate.weight.shape()[1]];
        let layer = if self.shrinkage > 0.0 { Some(self.layer_hessian(hidden)?) } else { None };
        let together = HESSIAN_BYTES / (4 * hidden.max(width).pow(2)).max(1);
        let mut solved = Vec::with_capacity(tasks.len());
        for batch in tasks.chunks(together.max(1)) {
            solved.extend(self.batch(batch, layer.as_ref(), [width, hidden])?);
        }
        Ok(solved)
    }

    fn batch(&self, tasks: &[Task<'_>], layer: Option<&Hessian<f32>>, shape: [usize; 2]) -> Result<Vec<Solved>> {
        let (codes, first) = self.gates_and_ups(tasks, layer, shape)?;
        let (downs, second) = self.downs(tasks, &codes, shape)?;
        let solved = tasks.iter().zip(codes).zip(downs).zip(first.into_iter().zip(second));
        let solved = solved.map(|(((task, (gate, up)), down), found)| {
            let record = record(task, [found.0, found.1]);
            Solved { gate, up, down, record }
        });
        Ok(solved.collect())
    }

    /// Codes of the two matrices that see the layer's inputs.
    fn gates_and_ups(
        &self,
        tasks: &[Task<'_>],
        layer: Option<&Hessian<f32>>,
        shape: [usize; 2],
    ) -> Result<(Vec<Pair>, Vec<Found>)> {
        let own: Vec<_> = tasks.iter().map(|task| &task.samples).collect();
        let hessians = self.hessians(&own, shape[1], |x, _| Ok(x))?;
        let factored = self.factored(tasks, hessians, "gate_proj", |hessian| match layer {
            Some(layer) => hessian.shrink(layer, self.shrinkage * shape[1] as f64),
            None => Ok(()),
        })?;
        let gates = self.weights(tasks, |network| &network.gate)?;
        let ups = self.weights(tasks, |network| &network.up)?;
        let factors = || factored.iter().map(|input| &input.factor);
        let [gate, up, _] = &self.options;
        let ((codes, mut lost), (of_up, ups_lost)) = match gate == up {
            true => {
                let both = factors().chain(factors());
                let (mut codes, mut lost) = self.solve(gates.iter().chain(&ups), both, shape, gate)?;
                let of_up = (codes.split_off(tasks.len()), lost.split_off(tasks.len()));
                ((codes, lost), of_up)
            }
            false => (self.solve(gates.iter(), factors(), shape, gate)?, self.solve(ups.iter(), factors(), shape, up)?),
        };
        lost.iter_mut().zip(ups_lost).for_each(|(lost, of_up)| *lost += of_up);
        let found = found(&factored, &[&gates, &ups], lost)?;
        Ok((codes.into_iter().zip(of_up).collect(), found))
    }

    /// Codes of the matrix that sees what the quantized two make of them.
    fn downs(&self, tasks: &[Task<'_>], codes: &[Pair], shape: [usize; 2]) -> Result<(Vec<Codes>, Vec<Found>)> {
        let [width, hidden] = shape;
        let matrix = |codes: &Codes| Tensor::from_vec(codes.dequantize(), &shape, &self.compute.device);
        let matrices = codes.iter().map(|(gate, up)| Ok((matrix(gate)?, matrix(up)?)));
        let matrices = matrices.collect::<candle_core::Result<Vec<_>>>();
        let matrices = matrices.map_err(|e| self.numeric("the dequantized experts", e))?;
        let own: Vec<_> = tasks.iter().map(|task| &task.samples).collect();
        let hessians = self.hessians(&own, width, |x, index| {
            let (gate, up) = &matrices[index];
            let activations = || product(&x, gate)?.silu()? * product(&x, up)?;
            activations().map_err(|e| self.numeric(&tasks[index].name, e))
        })?;
        // The neurons of one expert mean nothing to another: what a layer has in common ends here.
        let factored = self.factored(tasks, hessians, "down_proj", |_| Ok(()))?;
        let downs = self.weights(tasks, |network| &network.down)?;
        let (codes, lost) =
            self.solve(downs.iter(), factored.iter().map(|n| &n.factor), [hidden, width], &self.options[2])?;
        let found = found(&factored, &[&downs], lost)?;
        Ok((codes, found))
    }

    /// The Hessian of the whole layer's inputs, of an even selection of tokens.
    fn layer_hessian(&self, hidden: usize) -> Result<Hessian<f32>> {
        let samples = self.evenly(LAYER_TOKENS * hidden);
        Ok(self.hessians(&[&samples], hidden, |x, _| Ok(x))?.remove(0))
    }

    /// About `most` of the layer's tokens, evenly spread.
    fn evenly(&self, most: usize) -> ExpertSamples {
        let tokens: Vec<u32> = (0..self.counted.len() as u32).filter(|token| self.counted[*token as usize]).collect();
        let every = tokens.len().div_ceil(most).max(1);
        let chosen: Vec<u32> = tokens.into_iter().step_by(every).collect();
        ExpertSamples { weights: vec![1.0; chosen.len()], tokens: chosen, counts: Counts::default() }
    }

    /// Σ ρ x xᵀ over what `of` makes of the inputs of each of `samples`.
    fn hessians(
        &self,
        samples: &[&ExpertSamples],
        size: usize,
        of: impl Fn(Tensor, usize) -> Result<Tensor> + Sync,
    ) -> Result<Vec<Hessian<f32>>> {
        let mut hessians: Vec<_> = samples.iter().map(|_| Hessian::new(size)).collect();
        self.each_block(|first, x| {
            let add = |(index, hessian): (usize, &mut Hessian<f32>)| -> Result<()> {
                let Some((rows, weights)) = rows_of(samples[index], first, x)? else { return Ok(()) };
                let plain = weights.iter().all(|weight| *weight == 1.0);
                let inputs = values(&of(rows, index)?)?;
                hessian.add(&inputs, (!plain).then_some(weights)).map_err(failed)
            };
            hessians.par_iter_mut().enumerate().try_for_each(add)
        })?;
        Ok(hessians)
    }

    /// Shows `visit` the inputs of the layer block by block, in f32, and the first token of each.
    fn each_block(&self, mut visit: impl FnMut(usize, &Tensor) -> Result<()>) -> Result<()> {
        for (block, tokens) in self.inputs.blocks().iter().enumerate() {
            let x = self.inputs.get(block)?.to_dtype(DType::F32).map_err(|e| self.numeric("the inputs", e))?;
            visit(tokens.start, &x)?;
        }
        Ok(())
    }

    fn factored(
        &self,
        tasks: &[Task<'_>],
        hessians: Vec<Hessian<f32>>,
        what: &str,
        shrink: impl Fn(&mut Hessian<f32>) -> Result<(), QuantizeError> + Sync,
    ) -> Result<Vec<Factored>> {
        let factored = |(mut hessian, task): (Hessian<f32>, &Task<'_>)| {
            let effective = hessian.effective_tokens();
            let factor = shrink(&mut hessian).and_then(|()| {
                // White noise in a mean over tokens is damping: the fewer tokens, the more of it.
                let tokens = hessian.effective_tokens().max(1.0);
                let start = (self.damping.start + self.ridge * hessian.size as f64 / tokens).min(self.damping.most);
                factorise(&hessian, &Damping { start, ..self.damping }, self.act_order)
            });
            match factor {
                Ok(factor) => Ok(Factored { factor, hessian, effective }),
                Err(error) => Err(self.unsolved(&task.name, what, error)),
            }
        };
        hessians.into_par_iter().zip(tasks).map(factored).collect()
    }

    fn unsolved(&self, name: &str, what: &str, error: QuantizeError) -> Error {
        let remedy = match error {
            QuantizeError::Singular { .. } => "give more --data, a greater --damping or --shrinkage, or --method rtn",
            _ => "find out with eval which weights or tokens make it so",
        };
        let message = format!("the Hessian of what reaches {what} of {name} can't be solved in layer {}", self.layer);
        Error::new(Kind::Numeric, message).source(error).remedy(remedy)
    }

    fn numeric(&self, what: &str, error: candle_core::Error) -> Error {
        Error::new(Kind::Numeric, format!("{what} of layer {}", self.layer)).source(error)
    }

    fn weights(&self, tasks: &[Task<'_>], of: impl Fn(&Expert) -> &Linear) -> Result<Vec<Vec<f32>>> {
        tasks.iter().map(|task| finite_values(&of(task.network).weight)).collect()
    }

    fn solve<'w>(
        &self,
        weights: impl Iterator<Item = &'w Vec<f32>>,
        factors: impl Iterator<Item = &'w Factor<f32>>,
        shape: [usize; 2],
        options: &quantize::Options,
    ) -> Result<Matrices> {
        let problems: Vec<_> = weights.zip(factors).map(|(weight, factor)| Problem { weight, factor }).collect();
        let solved = quantize::solve(&problems, shape, options).map_err(failed)?;
        Ok(solved.into_iter().map(|solved| (solved.codes, solved.error)).unzip())
    }
}

/// What is said of each task's Hessian and of the `matrices` that were solved with it, of which `lost` is Σ ρ |ΔW x|².
fn found(factored: &[Factored], matrices: &[&Vec<Vec<f32>>], lost: Vec<f64>) -> Result<Vec<Found>> {
    let of_task = |(index, lost): (usize, f64)| {
        let Factored { factor, hessian, effective } = &factored[index];
        let all: f64 =
            matrices.iter().map(|weights| energy(&weights[index], hessian)).sum::<Result<_, _>>().map_err(failed)?;
        let error = if all > 0.0 { (lost.max(0.0) / all).sqrt() } else { 0.0 };
        Ok(Found { effective: *effective, damping: factor.damping, raised: factor.attempts > 1, error })
    };
    lost.into_par_iter().enumerate().map(of_task).collect()
}

/// The rows of `x`, whose first token is `first`, that `samples` has, and their weights.
fn rows_of<'s>(samples: &'s ExpertSamples, first: usize, x: &Tensor) -> Result<Option<(Tensor, &'s [f32])>> {
    let rows = || -> candle_core::Result<_> {
        let end = first + x.dim(0)?;
        let from = samples.tokens.partition_point(|token| (*token as usize) < first);
        let to = samples.tokens.partition_point(|token| (*token as usize) < end);
        if from == to {
            return Ok(None);
        }
        let local: Vec<u32> = samples.tokens[from..to].iter().map(|token| token - first as u32).collect();
        let rows = x.index_select(&Tensor::from_vec(local, to - from, x.device())?, 0)?;
        Ok(Some((rows, &samples.weights[from..to])))
    };
    rows().map_err(|e| Error::new(Kind::Numeric, "cannot gather an expert's tokens").source(e))
}

fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    let values = || tensor.flatten_all()?.to_vec1();
    values().map_err(|e: candle_core::Error| Error::new(Kind::Numeric, "cannot read a tensor's values").source(e))
}

fn record(task: &Task<'_>, found: [Found; 2]) -> ExpertRecord {
    let effective = found[0].effective;
    let fallback = match (effective > 0.0, found.iter().any(|f| f.raised)) {
        (false, _) => Some("no token of its own".to_owned()),
        (true, true) => Some("more damping".to_owned()),
        (true, false) => None,
    };
    ExpertRecord {
        counts: task.samples.counts,
        effective,
        damping: Some([found[0].damping, found[1].damping]),
        error: (effective > 0.0).then_some([found[0].error, found[1].error]),
        fallback,
    }
}

pub(super) fn failed(error: QuantizeError) -> Error {
    Error::new(Kind::Numeric, "cannot quantize").source(error)
}
