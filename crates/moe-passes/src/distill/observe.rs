//! Sums of what the experts of a layer do on text.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use moe_forward::{Calibration, ExpertRun, UNCOUNTED, group_factors};
use moe_math::Compute;
use moe_math::deferred_readback::DeferredReadback;
use moe_math::product::product;
use moe_math::routing::Routing;
use moe_model::{Error, Kind, Moe, Result};

/// One window in this many is held out: nothing is decided on it.
pub(super) const HELD_OUT_EVERY: usize = 8;
/// The maximum number of bytes for outputs of tokens that all experts run on.
const SAMPLE_BYTES: usize = 256 << 20;
/// The maximum number of tokens of a layer that all experts run on.
const SAMPLE_TOKENS: usize = 2048;

/// The weight of each token, and which tokens are held out.
#[derive(Clone)]
pub(super) struct Tokens {
    /// A weight for each token; 0 where it doesn't count.
    weights: Arc<[f32]>,
    held_out: Arc<[bool]>,
}

/// The purpose of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BlockPart {
    /// The token is there to decide on.
    Decide,
    /// The token is there to measure what was decided.
    HeldOut,
}

impl Tokens {
    pub fn new(text: &Calibration) -> Self {
        let factors = group_factors(&text.groups);
        let weights = text
            .group_of
            .iter()
            .map(|group| if *group == UNCOUNTED { 0.0 } else { factors[*group as usize] as f32 });
        let mut held_out = vec![false; text.group_of.len()];
        for span in text.batch.spans.iter().skip(HELD_OUT_EVERY - 1).step_by(HELD_OUT_EVERY) {
            held_out[span.clone()].fill(true);
        }
        Self { weights: weights.collect(), held_out: held_out.into() }
    }

    pub fn weight(&self, token: usize) -> f32 {
        self.weights[token]
    }

    fn decides(&self, token: usize) -> bool {
        self.weights[token] > 0.0 && !self.held_out[token]
    }

    /// Tokens that all `experts` experts of a layer run on: spread evenly over those that decide,
    /// as many as the memory limit allows.
    pub fn sampled(&self, hidden: usize, experts: usize) -> Arc<[usize]> {
        let most = (SAMPLE_BYTES / (4 * hidden * experts)).clamp(1, SAMPLE_TOKENS);
        let every = self.count(BlockPart::Decide).div_ceil(most).max(1);
        let chosen = (0..self.weights.len()).step_by(every).filter(|token| self.decides(*token));
        chosen.take(most).collect()
    }

    /// The tokens of `range` that belong to `part`, as positions in it, and √ of their weights.
    pub fn of(&self, part: BlockPart, range: std::ops::Range<usize>) -> (Vec<u32>, Vec<f32>) {
        let first = range.start;
        let wanted = range.filter(|t| {
            self.weights[*t] > 0.0 && self.held_out[*t] == (part == BlockPart::HeldOut)
        });
        wanted.map(|token| ((token - first) as u32, self.weights[token].sqrt())).unzip()
    }

    /// The part that results are measured on: held-out tokens; without any, all that decide.
    pub fn measured(&self) -> BlockPart {
        if self.count(BlockPart::HeldOut) > 0 { BlockPart::HeldOut } else { BlockPart::Decide }
    }

    /// The number of tokens that belong to `part`.
    pub fn count(&self, part: BlockPart) -> usize {
        self.of(part, 0..self.weights.len()).0.len()
    }
}

/// Sums over the tokens that decide, each times its weight. X is the set of tokens that were routed
/// to an expert, g the gate that is applied, f the expert's output, h its neurons, s its score by
/// the router.
#[derive(Debug, Clone, Default)]
pub(super) struct LayerSums {
    /// Σ 1 over all tokens
    pub tokens: f64,
    /// Σ σ(gate · x) of the shared expert over all tokens
    pub shared_gate: f64,
    /// Sums of each expert.
    pub experts: Vec<ExpertSums>,
    /// Outputs of all experts on some tokens, f32 `[tokens, hidden]` in parts; empty unless asked
    /// for.
    pub sampled: Vec<Vec<Tensor>>,
}

#[derive(Debug, Clone, Default)]
pub(super) struct ExpertSums {
    /// Σ 1 over X
    pub tokens: f64,
    /// Σ g over X
    pub gates: f64,
    /// Σ s over X
    pub scores: f64,
    /// Σ g ‖f‖ over X
    pub gated_norms: f64,
    /// Σ ‖f‖² over X
    pub square_norms: f64,
    /// Σ (g h)² over X, by neuron
    pub energies: Vec<f64>,
}

/// Collects sums of a layer while it runs.
pub(super) struct LayerObserver {
    tokens: Tokens,
    /// Tokens that all experts run on.
    sampled: Arc<[usize]>,
    sums: LayerSums,
    shared_gate: Option<Tensor>,
    /// The token range of the last `routed`.
    routed: std::ops::Range<usize>,
    /// The number of tokens that have reached the block.
    arrived: usize,
    /// Scores of the last `routed`, `[tokens, experts]`.
    scores: Vec<f32>,
    /// Σ (g h)² and ‖f‖² that are still on the device.
    parts: DeferredReadback<ObservedRows>,
}

/// Tokens that an expert ran on.
struct ObservedRows {
    expert: usize,
    weights: Vec<f32>,
    gates: Vec<f32>,
}

impl ObservedRows {
    /// Σ (g h)² by neuron, then ‖f‖² of each row. These are the rows `chosen` of `run`.
    fn energies_and_norms(
        &self,
        run: &ExpertRun<'_>,
        chosen: &[u32],
    ) -> candle_core::Result<Tensor> {
        let roots = self.weights.iter().map(|weight| weight.sqrt());
        let weighed: Vec<f32> = roots.zip(&self.gates).map(|(root, gate)| root * gate).collect();
        let device = run.output.device();
        let chosen = Tensor::from_slice(chosen, chosen.len(), device)?;
        let weighed = Tensor::from_slice(&weighed, (weighed.len(), 1), device)?;
        let energies =
            rows_in_f32(run.activations, &chosen)?.broadcast_mul(&weighed)?.sqr()?.sum(0)?;
        Tensor::cat(&[energies, rows_in_f32(run.output, &chosen)?.sqr()?.sum(1)?], 0)
    }
}

impl LayerObserver {
    /// An observer for a layer whose mixture is `moe`; all experts run on the tokens `sampled`.
    pub fn new(
        moe: &Moe,
        tokens: &Tokens,
        sampled: Arc<[usize]>,
        compute: &Compute,
    ) -> Result<Self> {
        let energies = vec![0.0; moe.experts[0].width()];
        let experts = vec![ExpertSums { energies, ..ExpertSums::default() }; moe.experts.len()];
        let outputs = vec![Vec::new(); moe.experts.len()];
        let gate = moe.shared.as_ref().and_then(|shared| shared.gate.as_ref());
        Ok(Self {
            tokens: tokens.clone(),
            sums: LayerSums { experts, sampled: outputs, ..LayerSums::default() },
            sampled,
            shared_gate: gate.map(|gate| moe_forward::to_f32(gate, compute)).transpose()?,
            routed: 0..0,
            arrived: 0,
            scores: Vec::new(),
            parts: DeferredReadback::default(),
        })
    }

    /// All sums of layer `index`.
    pub fn finish(mut self, index: usize) -> Result<LayerSums> {
        self.read_back(index)?;
        Ok(self.sums)
    }

    fn read_back(&mut self, index: usize) -> Result<()> {
        for (part, found) in self.parts.take().map_err(|e| failed(index, e))? {
            let sums = &mut self.sums.experts[part.expert];
            let (energies, squares) = found.split_at(sums.energies.len());
            sums.energies
                .iter_mut()
                .zip(energies)
                .for_each(|(sum, energy)| *sum += f64::from(*energy));
            for ((weight, gate), square) in part.weights.into_iter().zip(part.gates).zip(squares) {
                sums.square_norms += f64::from(weight) * f64::from(*square);
                sums.gated_norms += f64::from(weight) * f64::from(gate) * f64::from(*square).sqrt();
            }
        }
        Ok(())
    }

    /// Takes the inputs of the block.
    pub fn input(&mut self, layer: usize, x: &Tensor) -> Result<()> {
        let tokens = x.dim(0).map_err(|e| failed(layer, e))?;
        let here = self.arrived..self.arrived + tokens;
        self.arrived = here.end;
        let Some(gate) = &self.shared_gate else { return Ok(()) };
        let logits = gate_logits(x, gate).map_err(|e| failed(layer, e))?;
        for (token, gate) in here.zip(logits).filter(|(token, _)| self.tokens.decides(*token)) {
            self.sums.shared_gate +=
                f64::from(self.tokens.weight(token)) / (1.0 + f64::from(-gate).exp());
        }
        Ok(())
    }

    /// Takes the routing of the next tokens.
    pub fn routed(&mut self, routing: &Routing) {
        let start = self.routed.end;
        self.routed = start..start + routing.tokens();
        self.scores.clone_from(&routing.scores);
        let deciding = self.routed.clone().filter(|token| self.tokens.decides(*token));
        self.sums.tokens += deciding.map(|token| f64::from(self.tokens.weight(token))).sum::<f64>();
    }

    /// Takes the output of an expert for tokens of the last [`Self::routed`].
    pub fn ran(&mut self, layer: usize, run: &ExpertRun<'_>) -> Result<()> {
        let (chosen, rows) = self.add_choices(run);
        if chosen.is_empty() {
            return Ok(());
        }
        let found = rows.energies_and_norms(run, &chosen).map_err(|e| failed(layer, e))?;
        self.parts.push(rows, found);
        // On a CPU the values are already there, so deferring gains nothing.
        if run.output.device().is_cpu() { self.read_back(layer) } else { Ok(()) }
    }

    /// Adds the tokens of `run` that decide to the sums that need no output. Returns which rows of
    /// `run` they are, with their weights and gates.
    fn add_choices(&mut self, run: &ExpertRun<'_>) -> (Vec<u32>, ObservedRows) {
        let first = self.routed.start;
        let experts = self.sums.experts.len();
        let sums = &mut self.sums.experts[run.expert];
        let mut chosen = Vec::with_capacity(run.tokens.len());
        let mut rows = ObservedRows { expert: run.expert, weights: Vec::new(), gates: Vec::new() };
        for (row, (token, gate)) in run.tokens.iter().zip(run.gates).enumerate() {
            let token = *token as usize;
            if !self.tokens.decides(first + token) {
                continue;
            }
            let weight = self.tokens.weights[first + token];
            sums.tokens += f64::from(weight);
            sums.gates += f64::from(weight) * f64::from(*gate);
            sums.scores += f64::from(weight) * f64::from(self.scores[token * experts + run.expert]);
            chosen.push(row as u32);
            rows.weights.push(weight);
            rows.gates.push(*gate);
        }
        (chosen, rows)
    }

    /// Tokens of the text that all experts run on.
    pub fn sampled(&self) -> Arc<[usize]> {
        self.sampled.clone()
    }

    /// Takes an expert's output for some of these tokens.
    pub fn sampled_output(&mut self, layer: usize, expert: usize, output: &Tensor) -> Result<()> {
        let output =
            output.to_dtype(DType::F32).and_then(|o| o.to_device(&Device::Cpu)?.flatten_all());
        self.sums.sampled[expert].push(output.map_err(|e| failed(layer, e))?);
        Ok(())
    }
}

impl LayerSums {
    /// E\[g\] of each expert over all tokens, with g = 0 where it isn't selected.
    pub fn mean_gates(&self) -> Vec<f64> {
        self.experts
            .iter()
            .map(|expert| expert.gates / self.tokens.max(f64::MIN_POSITIVE))
            .collect()
    }

    /// E σ(gate · x) of the shared expert.
    pub fn mean_shared_gate(&self) -> f64 {
        self.shared_gate / self.tokens.max(f64::MIN_POSITIVE)
    }

    /// E⟨fᵢ, fⱼ⟩ over the sampled tokens, `[experts, experts]`. Every sampled token has weight 1.
    pub fn output_products(&self, layer: usize) -> Result<Vec<f64>> {
        self.sampled_products().map_err(|e| failed(layer, e))
    }

    fn sampled_products(&self) -> candle_core::Result<Vec<f64>> {
        let rows = self
            .sampled
            .iter()
            .map(|parts| Tensor::cat(parts, 0))
            .collect::<candle_core::Result<Vec<_>>>()?;
        let outputs = Tensor::stack(&rows, 0)?;
        outputs.matmul(&outputs.t()?)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1()
    }
}

/// gate · x of each row of `x`.
fn gate_logits(x: &Tensor, gate: &Tensor) -> candle_core::Result<Vec<f32>> {
    product(&x.to_dtype(DType::F32)?, gate)?.flatten_all()?.to_vec1()
}

/// The rows `chosen` of `t`, in f32.
pub(super) fn rows_in_f32(t: &Tensor, chosen: &Tensor) -> candle_core::Result<Tensor> {
    t.index_select(chosen, 0)?.to_dtype(DType::F32)
}

pub(super) fn failed(layer: usize, error: candle_core::Error) -> Error {
    Error::new(Kind::Numeric, format!("cannot distill layer {layer}")).source(error)
}
