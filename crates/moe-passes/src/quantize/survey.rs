//! Measures what each bit width costs the output of each layer, in one sweep of some text over the
//! original model.
//!
//! One part of each expert at a time is rounded to the nearest and run next to the original, on the
//! tokens that choose the expert. The errors of experts are independent, so that their squares add
//! up.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use candle_core::{DType, Tensor};
use moe_forward::{Calibration, ExpertRun, Observer, UNCOUNTED, Wants, to_f32};
use moe_math::Compute;
use moe_math::product::product;
use moe_math::quantize::{self, round_to_nearest};
use moe_math::routing::Routing;
use moe_model::{Error, Expert, Ffn, Kind, Model, Result, Weight};

use super::failed::failed;
use super::matrices::grid;
use super::options::{QuantizeOptions, QuantizedPart};
use super::widths::{Errors, LayerWidths};
use crate::part::finite_values;

/// The approximate number of tokens that errors are measured on. Sums over a layer's experts need
/// few, and a quarter as many give the same choice.
const TOKENS: usize = 1024;

/// Observes a sweep over the original model.
pub(super) struct Survey {
    options: QuantizeOptions,
    target: f64,
    model: Model,
    compute: Compute,
    /// Whether each token is measured.
    counted: Vec<bool>,
    /// The number of tokens that reached the running layer before this block.
    first: usize,
    block: SurveyBlock,
    /// Errors, summed over tokens.
    errors: Errors,
    /// The chosen bit widths, set after the last layer.
    pub widths: BTreeMap<usize, LayerWidths>,
}

/// A block of tokens that go through a layer together.
#[derive(Default)]
struct SurveyBlock {
    /// `[tokens, hidden]`, in f32.
    x: Option<Tensor>,
    /// The tokens of the last `routed`, counted from the start of the block.
    part: std::ops::Range<usize>,
    /// The error of each token, Σ g² |Δf|², by part and bit width.
    errors: Vec<Vec<Vec<f64>>>,
}

impl SurveyBlock {
    /// The inputs of `tokens`, counted from the start of the block.
    fn inputs(&self, tokens: &[usize]) -> candle_core::Result<Tensor> {
        let x = self.x.as_ref().expect("a block's input comes first");
        let rows: Vec<u32> = tokens.iter().map(|token| *token as u32).collect();
        x.index_select(&Tensor::from_vec(rows, tokens.len(), x.device())?, 0)
    }
}

impl Survey {
    pub fn new(
        options: &QuantizeOptions,
        target: f64,
        model: &Model,
        compute: &Compute,
        sample: &Calibration,
    ) -> Self {
        let every = sample.group_of.len().div_ceil(TOKENS).max(1);
        let groups = sample.group_of.iter().enumerate();
        Self {
            options: options.clone(),
            target,
            model: model.clone(),
            compute: compute.clone(),
            counted: groups
                .map(|(token, group)| token.is_multiple_of(every) && *group != UNCOUNTED)
                .collect(),
            first: 0,
            block: SurveyBlock::default(),
            errors: BTreeMap::new(),
            widths: BTreeMap::new(),
        }
    }

    /// Adds the error from rounding `network` to those of `tokens` that are measured. Each token
    /// comes with the gate of the network's output.
    fn add(
        &mut self,
        layer: usize,
        network: &Expert,
        tokens: impl Iterator<Item = (usize, f32)>,
    ) -> Result<()> {
        let measured = tokens.filter(|(token, _)| self.counted[self.first + token]);
        let (tokens, gates): (Vec<usize>, Vec<f32>) = measured.unzip();
        if tokens.is_empty() {
            return Ok(());
        }
        let x = self.block.inputs(&tokens).map_err(|e| Self::numeric(layer, e))?;
        let rounding = Rounding::new(&self.options, network, &x, &self.compute)?;
        let profile = self.options.profile;
        for (part, errors) in profile.parts().iter().zip(&mut self.block.errors) {
            for (bits, errors) in profile.widths().iter().zip(errors) {
                let squares = rounding.squares(part, *bits)?;
                for ((token, gate), square) in tokens.iter().zip(&gates).zip(squares) {
                    errors[*token] += f64::from(*gate).powi(2) * f64::from(square);
                }
            }
        }
        Ok(())
    }

    /// σ(gate · x) of each row of `x`.
    fn shared_gates(&self, layer: usize, gate: &Weight, x: &Tensor) -> Result<Vec<f32>> {
        let gate = to_f32(gate, &self.compute)?;
        let logits = product(x, &gate).and_then(|logits| logits.flatten_all()?.to_vec1());
        let logits: Vec<f32> = logits.map_err(|e| Self::numeric(layer, e))?;
        Ok(logits.into_iter().map(|logit| 1.0 / (1.0 + (-logit).exp())).collect())
    }

    fn numeric(layer: usize, error: candle_core::Error) -> Error {
        Error::new(Kind::Numeric, format!("cannot measure what bit widths cost layer {layer}"))
            .source(error)
    }
}

impl Observer for Survey {
    fn wants(&self) -> Wants {
        Wants { experts: true, ..Wants::default() }
    }

    fn ffn_input(&mut self, layer: usize, x: &Tensor) -> Result<()> {
        let Ffn::Moe(moe) = &self.model.layers[layer].ffn else { return Ok(()) };
        let x = x.to_dtype(DType::F32).map_err(|e| Self::numeric(layer, e))?;
        let tokens = x.dim(0).map_err(|e| Self::numeric(layer, e))?;
        let profile = self.options.profile;
        let errors = vec![vec![vec![0.0; tokens]; profile.widths().len()]; profile.parts().len()];
        self.block = SurveyBlock { x: Some(x.clone()), part: 0..0, errors };
        let Some(shared) =
            moe.shared.clone().filter(|_| self.options.include.contains(&QuantizedPart::Shared))
        else {
            return Ok(());
        };
        let gates = match &shared.gate {
            Some(gate) => self.shared_gates(layer, gate, &x)?,
            None => vec![1.0; tokens],
        };
        self.add(layer, &shared.expert, gates.into_iter().enumerate())
    }

    fn routed(&mut self, _: usize, _: &Tensor, routing: &Routing) -> Result<()> {
        let start = self.block.part.end;
        self.block.part = start..start + routing.tokens();
        Ok(())
    }

    fn expert_ran(&mut self, layer: usize, run: &ExpertRun<'_>) -> Result<()> {
        let Ffn::Moe(moe) = &self.model.layers[layer].ffn else { return Ok(()) };
        let network = moe.experts[run.expert].clone();
        let start = self.block.part.start;
        let tokens =
            run.tokens.iter().zip(run.gates).map(|(token, gate)| (start + *token as usize, *gate));
        self.add(layer, &network, tokens)
    }

    fn layer_output(&mut self, layer: usize, hidden: &Tensor) -> Result<()> {
        let squares = row_squares(hidden).map_err(|e| Self::numeric(layer, e))?;
        let SurveyBlock { errors: found, .. } = std::mem::take(&mut self.block);
        let counted = &self.counted[self.first..self.first + squares.len()];
        self.first += squares.len();
        if found.is_empty() {
            return Ok(());
        }
        let sums = found.iter().map(|part| {
            part.iter().map(|errors| relative_sum(errors, &squares, counted)).collect()
        });
        let sums: Vec<Vec<f64>> = sums.collect();
        match self.errors.entry(layer) {
            Entry::Vacant(none) => {
                none.insert(sums);
            }
            Entry::Occupied(mut known) => {
                let both = known.get_mut().iter_mut().flatten().zip(sums.into_iter().flatten());
                both.for_each(|(known, more)| *known += more);
            }
        }
        Ok(())
    }

    fn layer_done(&mut self, layer: usize, layers: usize) -> Result<()> {
        self.first = 0;
        if layer + 1 == layers {
            let tokens = self.counted.iter().filter(|counted| **counted).count().max(1) as f64;
            self.errors.values_mut().flatten().flatten().for_each(|error| *error /= tokens);
            self.widths = self.options.measured(&self.model, self.target, &self.errors)?;
        }
        Ok(())
    }
}

/// |row|² of each row.
fn row_squares(rows: &Tensor) -> candle_core::Result<Vec<f32>> {
    rows.to_dtype(DType::F32)?.sqr()?.sum(1)?.to_vec1()
}

/// The sum of `errors` over the tokens that count, each by the square norm of the state that leaves
/// the layer.
fn relative_sum(errors: &[f64], squares: &[f32], counted: &[bool]) -> f64 {
    let tokens = errors.iter().zip(squares).zip(counted).filter(|(_, counted)| **counted);
    tokens.map(|((error, square), _)| error / f64::from(square.max(f32::MIN_POSITIVE))).sum()
}

/// An expert whose matrices are rounded one part at a time, and its intermediate results for some
/// tokens.
struct Rounding<'a> {
    options: &'a QuantizeOptions,
    network: &'a Expert,
    compute: &'a Compute,
    /// Values of gate, up and down before rounding.
    values: [Vec<f32>; 3],
    plain: [Tensor; 3],
    x: &'a Tensor,
    /// silu(gate x)
    gated: Tensor,
    /// up x
    up: Tensor,
    output: Tensor,
}

impl<'a> Rounding<'a> {
    fn new(
        options: &'a QuantizeOptions,
        network: &'a Expert,
        x: &'a Tensor,
        compute: &'a Compute,
    ) -> Result<Self> {
        let [gate, up, down] = network.linears().map(|linear| finite_values(&linear.weight));
        let values = [gate?, up?, down?];
        let [gate, up, down] =
            [0, 1, 2].map(|matrix| Self::tensor(network, matrix, values[matrix].clone(), compute));
        let plain = [gate?, up?, down?];
        let [gated, up, output] = Self::run(&plain, x).map_err(|e| failed_to_run(network, e))?;
        Ok(Self { options, network, compute, values, plain, x, gated, up, output })
    }

    /// silu(gate x), up x and the output of the network on `x`.
    fn run([gate, up, down]: &[Tensor; 3], x: &Tensor) -> candle_core::Result<[Tensor; 3]> {
        let gated = product(x, gate)?.silu()?;
        let up = product(x, up)?;
        let output = product(&(&gated * &up)?, down)?;
        Ok([gated, up, output])
    }

    fn tensor(
        network: &Expert,
        matrix: usize,
        values: Vec<f32>,
        compute: &Compute,
    ) -> Result<Tensor> {
        let weight = &network.linears()[matrix].weight;
        let tensor = Tensor::from_vec(values, weight.shape(), &compute.device);
        tensor.map_err(|e| Error::new(Kind::Numeric, "cannot load").source(e).tensor(weight.name()))
    }

    /// |Δf|² of each token with the matrices of `part` rounded to `bits`. Intermediate results that
    /// these don't change aren't computed again.
    fn squares(&self, part: &[usize], bits: u32) -> Result<Vec<f32>> {
        let [gate, up, down] = [0, 1, 2]
            .map(|matrix| part.contains(&matrix).then(|| self.rounded(matrix, bits)).transpose());
        self.squared_changes([gate?, up?, down?]).map_err(|e| failed_to_run(self.network, e))
    }

    /// |Δf|² of each token with the matrices that are given instead of the network's own.
    fn squared_changes(
        &self,
        [gate, up, down]: [Option<Tensor>; 3],
    ) -> candle_core::Result<Vec<f32>> {
        let gated = gate.map_or(Ok(self.gated.clone()), |gate| product(self.x, &gate)?.silu())?;
        let up = up.map_or(Ok(self.up.clone()), |up| product(self.x, &up))?;
        let output = product(&(gated * up)?, down.as_ref().unwrap_or(&self.plain[2]))?;
        (output - &self.output)?.sqr()?.sum(1)?.to_vec1()
    }

    fn rounded(&self, matrix: usize, bits: u32) -> Result<Tensor> {
        let weight = &self.network.linears()[matrix].weight;
        let shape = [weight.shape()[0], weight.shape()[1]];
        let scheme: quantize::GridScheme = grid(self.options, self.options.of_bits(bits), weight)?;
        let codes = round_to_nearest(&self.values[matrix], shape, &scheme)
            .map_err(|e| failed(e).tensor(weight.name()))?;
        Self::tensor(self.network, matrix, codes.dequantize(), self.compute)
    }
}

fn failed_to_run(network: &Expert, error: candle_core::Error) -> Error {
    Error::new(Kind::Numeric, "cannot run an expert")
        .source(error)
        .tensor(network.down.weight.name())
}

#[cfg(test)]
mod tests {
    use moe_forward::{Batch, Group, LoadedRouter, Storage, Sweep, expert_output};

    use super::*;
    use crate::pass::Sources;
    use crate::quantize::nearest::rounded;

    /// Keeps the input of the feed-forward block of the first layer.
    #[derive(Default)]
    struct Inputs(Option<Tensor>);

    impl Observer for Inputs {
        fn ffn_input(&mut self, layer: usize, x: &Tensor) -> Result<()> {
            if layer == 0 {
                self.0 = Some(x.clone());
            }
            Ok(())
        }
    }

    /// For the first layer, compares with the experts of a model that was rounded to the nearest as
    /// a whole, run by the forward pass next to the original's. Tokens come in blocks, and some
    /// don't count.
    #[test]
    fn a_width_costs_what_rounding_the_whole_layer_does() {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/models/moe");
        let (model, compute) = (Model::open(&dir).unwrap(), Compute::cpu());
        let ids: Vec<Vec<u32>> =
            (0..4).map(|s| (0..24).map(|t| (577 * s + 91 * t) % 2048).collect()).collect();
        let batch = Batch::new(ids.iter().map(Vec::as_slice));
        let counts = |token: usize| !token.is_multiple_of(5);
        let group_of = (0..96).map(|token| if counts(token) { 0 } else { UNCOUNTED }).collect();
        let group = Group { label: "text".to_owned(), half: 0, weight: None, tokens: 96 };
        let sample = Calibration { batch: batch.clone(), groups: vec![group], group_of };
        let options = |scheme: serde_json::Value| -> QuantizeOptions {
            serde_json::from_value(scheme).unwrap()
        };
        let mixed = options(serde_json::json!({ "target-bits": 5.5, "group-size": 32 }));
        let mut survey = Survey::new(&mixed, 5.5, &model, &compute, &sample);
        let storage = Storage { block_tokens: Some(24), ..Storage::default() };
        Sweep::stored(&model, &batch, &compute, &storage).unwrap().run(&mut survey).unwrap();

        let mut inputs = Inputs::default();
        let mut sweep = Sweep::new(&model, &batch, &compute).unwrap();
        sweep.layer(0, &mut inputs).unwrap();
        let (x, leaving) =
            (inputs.0.unwrap(), sweep.hidden(0..96).unwrap().to_vec2::<f32>().unwrap());
        let norms: Vec<f64> =
            leaving.iter().map(|h| h.iter().map(|h| f64::from(*h).powi(2)).sum()).collect();
        let moe = model.layers[0].ffn.moe().unwrap();
        let (_, routing) = LoadedRouter::load(&moe.router, &compute).unwrap().route(&x).unwrap();
        for (width, scheme) in ["w4a16", "w8a16"].into_iter().enumerate() {
            let uniform =
                options(serde_json::json!({ "scheme": scheme, "solver": "rtn", "group-size": 32 }));
            let scratch =
                std::sync::Arc::new(moe_checkpoint::ScratchStore::new(&std::env::temp_dir()));
            let sources = Sources { scratch: Some(&scratch), ..Sources::new(&model, &compute) };
            let decisions = rounded(&uniform, &sources).unwrap();
            let rounded = decisions.layers[&0].ffn.moe().unwrap();
            let mut wanted = 0.0;
            for (index, (expert, rounded)) in moe.experts.iter().zip(&rounded.experts).enumerate() {
                let of =
                    |expert| expert_output(expert, &x, &compute).unwrap().to_vec2::<f32>().unwrap();
                for (token, (f, q)) in of(expert).iter().zip(of(rounded)).enumerate() {
                    let slots = token * routing.top_k..(token + 1) * routing.top_k;
                    let Some(slot) =
                        slots.into_iter().find(|slot| routing.selected[*slot] == index as u32)
                    else {
                        continue;
                    };
                    if counts(token) {
                        let square: f64 =
                            f.iter().zip(q).map(|(f, q)| f64::from(f - q).powi(2)).sum();
                        wanted += f64::from(routing.weights[slot]).powi(2) * square / norms[token];
                    }
                }
            }
            let found = survey.errors[&0][0][width];
            let wanted = wanted / (0..96).filter(|token| counts(*token)).count() as f64;
            assert!((found - wanted).abs() < 2e-3 * wanted, "{scheme}: {found} {wanted}");
        }
        assert!(
            survey.widths.values().map(|widths| widths.bits[0]).filter(|bits| *bits == 8).count()
                == 1
        );
    }
}
