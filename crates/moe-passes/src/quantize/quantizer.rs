//! Quantizes layer by layer, with or without a sweep.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use candle_core::Tensor;
use moe_checkpoint::ScratchStore;
use moe_checkpoint::quantization::Scheme;
use moe_forward::{
    Calibration, Converted, Converter, ForwardWork, Inputs, LoadedRouter, Observer, Role, UNCOUNTED,
};
use moe_math::Compute;
use moe_math::meter::Work;
use moe_math::quantize::{self, Codes, Damping};
use moe_math::routing::Routing;
use moe_model::{Attention, Error, Expert, Ffn, Kind, Linear, Model, Moe, Result, Weight};

use super::attention::AttentionInputs;
use super::encode::Store;
use super::matrices::{MadeWeight, grid, quantized_attention};
use super::nearest::rounded_layer;
use super::options::{CalibrateOn, QuantizeOptions, QuantizedPart, SolverChoice};
use super::record::{QuantizedLayer, decided};
use super::samples::{Counts, ExpertSamples, Route, Routed, SampleRule, Sampler};
use super::solve::{self, ExpertRecord, Solved, Solver, Task};
use super::survey::Survey;
use crate::part::read_finite;
use crate::pass::{DecidedBy, DecidedLayer, LayerEdits, LayerPass, Sources, SweptText};
use crate::usage::usage;

/// If all outputs of a layer's experts take at most this many bytes, they are summed while experts
/// are solved; otherwise experts are run again.
const OUTPUT_BYTES: usize = 1 << 30;

/// Quantizes each layer on what the quantized layers before it give.
pub(super) struct Quantizer {
    options: QuantizeOptions,
    model: Model,
    compute: Compute,
    scratch: Option<Arc<ScratchStore>>,
    /// Whether each token counts.
    counted: Vec<bool>,
    layers: BTreeMap<usize, DecidedLayer>,
    /// The inputs of attention in the layer that is being converted.
    attention_inputs: AttentionInputs,
    attention: BTreeMap<usize, Attention>,
    /// The survey that chooses bit widths, where there are several.
    survey: Option<Survey>,
}

/// A layer whose experts are to be solved.
struct LayerToSolve<'a> {
    index: usize,
    moe: &'a Moe,
    /// The schemes of gate, up and down.
    schemes: [Scheme; 3],
    /// The inputs of its feed-forward block.
    inputs: &'a Inputs<'a>,
}

/// The matrices of a network as files hold them: gate, up and down.
struct PackedNetwork {
    weights: [Weight; 3],
    record: ExpertRecord,
}

impl Quantizer {
    pub fn new(options: &QuantizeOptions, sources: &Sources<'_>) -> Self {
        Self {
            options: options.clone(),
            model: sources.model.clone(),
            compute: sources.compute.clone(),
            scratch: sources.scratch.cloned(),
            counted: Vec::new(),
            layers: BTreeMap::new(),
            attention_inputs: AttentionInputs::default(),
            attention: BTreeMap::new(),
            survey: None,
        }
    }

    /// The tokens that each expert of `moe` is calibrated on and, where there is room for its
    /// outputs, the tokens that are routed to it.
    fn samples(
        &self,
        moe: &Moe,
        inputs: &Inputs<'_>,
    ) -> Result<Vec<(ExpertSamples, Option<Routed>)>> {
        let router = LoadedRouter::load(&moe.router, &self.compute)?;
        let counted = |token: usize| self.counted[token];
        let mut sampler = Sampler::new(self.rule(moe), moe.experts.len());
        let summed = if self.sums_outputs(inputs) { moe.experts.len() } else { 0 };
        let mut routes = vec![Route::default(); summed];
        for (block, tokens) in inputs.blocks().iter().enumerate() {
            let routing = routing(&router, moe, &inputs.get(block)?)?;
            sampler.routed(&routing, counted);
            extend_routes(&mut routes, tokens.start, &routing);
        }
        if sampler.wants_more() {
            for (block, tokens) in inputs.blocks().iter().enumerate() {
                let routing = routing(&router, moe, &inputs.get(block)?)?;
                sampler.near(tokens.start, &routing, router.rule().bias.as_deref(), counted);
            }
        }
        let mut routes = routes.into_iter();
        let samples = sampler.finish(counted).into_iter().map(|samples| {
            let routed = routes.next().map(|route| Routed::new(&samples, route));
            (samples, routed)
        });
        Ok(samples.collect())
    }

    /// The rule by which tokens are chosen for experts of `moe`.
    fn rule(&self, moe: &Moe) -> SampleRule {
        SampleRule {
            samples: self.options.calibrate_on(),
            least: self.options.least_tokens(self.model.hidden, moe.experts[0].width()),
            gate_power: self.options.gate_power,
            hot_cap: self.options.hot_cap,
        }
    }

    /// Whether there is room for the outputs of all experts on `inputs`.
    fn sums_outputs(&self, inputs: &Inputs<'_>) -> bool {
        inputs.in_memory() && inputs.tokens() * self.model.hidden * 4 <= OUTPUT_BYTES
    }

    /// The routed experts of `moe`, then the shared one if it is quantized. Each is packed as soon
    /// as it is solved. Also the summed outputs of the routed experts, where there is room for
    /// them.
    fn packed(&self, layer: &LayerToSolve<'_>) -> Result<(Vec<PackedNetwork>, Option<Tensor>)> {
        let LayerToSolve { moe, schemes, inputs, .. } = *layer;
        let solver = self.solver(layer)?;
        let samples =
            self.compute.stage("samples", Work::UNCOUNTED, || self.samples(moe, inputs))?;
        let tasks = samples.into_iter().enumerate().map(|(expert, (samples, routed))| Task {
            name: format!("expert {expert}"),
            network: &moe.experts[expert],
            samples,
            routed,
        });
        let pack = |network: &Expert, solved| self.pack(network, solved, schemes);
        let (mut packed, routed) = solver.run(&tasks.collect::<Vec<_>>(), pack)?;
        if let Some(shared) =
            moe.shared.as_ref().filter(|_| self.options.include.contains(&QuantizedPart::Shared))
        {
            let task = Task {
                name: "the shared expert".to_owned(),
                network: &shared.expert,
                samples: self.all_tokens(),
                routed: None,
            };
            packed.extend(Solver { shrinkage: 0.0, ..solver }.run(&[task], pack)?.0);
        }
        Ok((packed, routed))
    }

    /// The solver of `layer`, whose experts have one element type.
    fn solver<'l>(&'l self, layer: &LayerToSolve<'l>) -> Result<Solver<'l>> {
        let like = &layer.moe.experts[0].gate.weight;
        let [gate, up, down] = layer.schemes.map(|scheme| self.solving(scheme, like));
        let shrinks = self.options.calibrate_on() == CalibrateOn::PerExpert;
        Ok(Solver {
            layer: layer.index,
            inputs: layer.inputs,
            counted: &self.counted,
            compute: &self.compute,
            options: [gate?, up?, down?],
            damping: self.damping(),
            act_order: self.options.act_order,
            shrinkage: if shrinks { self.options.shrinkage } else { 0.0 },
            ridge: if shrinks { self.options.expert_damping } else { 0.0 },
        })
    }

    /// Packs the codes of `network`'s matrices, which are in `schemes`.
    fn pack(
        &self,
        network: &Expert,
        solved: Solved,
        schemes: [Scheme; 3],
    ) -> Result<PackedNetwork> {
        let [of_gate, of_up, of_down] = network.linears();
        let Solved { gate, up, down, record } = solved;
        let weights = self.compute.stage("packing", Work::UNCOUNTED, || {
            let gate = self.encoded(of_gate, schemes[0], gate)?;
            let up = self.encoded(of_up, schemes[1], up)?;
            Ok([gate, up, self.encoded(of_down, schemes[2], down)?])
        })?;
        Ok(PackedNetwork { weights, record })
    }

    /// The weight of `linear` as `codes` in `scheme`.
    fn encoded(&self, linear: &Linear, scheme: Scheme, codes: Codes) -> Result<Weight> {
        let store = Store(self.scratch.clone());
        let made = MadeWeight::Codes(codes);
        self.options.encoded(&linear.weight, scheme, &store, Some(&made))
    }

    /// The options of GPTQ for `weight`, and for all weights of its element type, in `scheme`.
    fn solving(&self, scheme: Scheme, weight: &Weight) -> Result<quantize::GptqOptions> {
        let Scheme::Integers(integers) = scheme else { unreachable!("GPTQ is for integers") };
        let scheme = grid(&self.options, integers, weight)?;
        Ok(quantize::GptqOptions { scheme, clip_search: self.options.clip_search })
    }

    fn damping(&self) -> Damping {
        Damping { start: self.options.damping, ..Damping::default() }
    }

    /// Stores the edit of layer `index`.
    fn keep(&mut self, index: usize, layer: DecidedLayer) -> Ffn {
        let ffn = layer.ffn.clone();
        self.layers.insert(index, layer);
        ffn
    }

    fn all_tokens(&self) -> ExpertSamples {
        let tokens: Vec<u32> =
            (0..self.counted.len() as u32).filter(|token| self.counted[*token as usize]).collect();
        let counts = Counts { routed: tokens.len(), used: tokens.len(), topped_up: 0 };
        ExpertSamples::evenly_weighed(tokens, counts)
    }
}

/// The routing of `x` by `router`, that of `moe`.
fn routing(router: &LoadedRouter, moe: &Moe, x: &Tensor) -> Result<Routing> {
    let routed = router.route(x).map(|(_, routing)| routing);
    routed.map_err(|e| {
        Error::new(Kind::Numeric, "cannot route").source(e).tensor(moe.router.weight.name())
    })
}

/// Adds the tokens of `routing`, from `first` on, to the routes of the experts that they go to. No
/// routes are kept where experts' outputs aren't summed.
fn extend_routes(routes: &mut [Route], first: usize, routing: &Routing) {
    if routes.is_empty() {
        return;
    }
    let slots = routing.slots_by_expert();
    routes.iter_mut().zip(slots).for_each(|(route, slots)| route.extend(first, &slots, routing));
}

/// The mean number of `tokens` that are routed to an expert of `moe`.
fn mean_load(moe: &Moe, tokens: usize) -> usize {
    (tokens * moe.router.top_k / moe.experts.len().max(1)).min(tokens)
}

impl LayerPass for Quantizer {
    fn model_mut(&mut self) -> &mut Model {
        &mut self.model
    }

    fn flops(&self, tokens: usize, sequence: usize) -> f64 {
        let forward = ForwardWork::of(&self.model, tokens, sequence).total();
        if self.options.solver() == SolverChoice::Rtn {
            return forward;
        }
        let hidden = self.model.hidden as f64;
        let layers = self.model.moes().map(|(_, moe)| {
            let experts = moe.experts.len() as f64;
            let width = moe.experts[0].width() as f64;
            let hessians =
                (tokens * moe.router.top_k) as f64 * 2.0 * (hidden.powi(2) + width.powi(2));
            // A factor and its inverse for gate and up together, and one for down; every code
            // changes the columns after it.
            let factors = hidden.powi(3) + width.powi(3);
            let codes = 2.0 * width * hidden.powi(2) + hidden * width.powi(2);
            hessians + experts * (factors + codes)
        });
        forward + layers.sum::<f64>()
    }

    fn working_bytes(&self, text: SweptText) -> u64 {
        let hidden = self.model.hidden;
        // Where there is room, the experts' outputs are summed for all tokens.
        let summed = text.in_memory && text.tokens * hidden * 4 <= OUTPUT_BYTES;
        let sums = if summed { text.tokens * hidden * 4 } else { 0 };
        let layers = self.model.moes().map(|(_, moe)| {
            let width = moe.experts.iter().map(Expert::width).max().unwrap_or(0);
            let routed = mean_load(moe, text.tokens);
            let seen = if self.options.calibrate_on() == CalibrateOn::AllExperts {
                text.block
            } else {
                mean_load(moe, text.block)
            };
            solve::working_bytes(moe.experts.len(), [width, hidden], routed, seen) + sums as u64
        });
        layers.max().unwrap_or(0)
    }

    fn looks_ahead(&self) -> bool {
        self.options.target_bits.is_some()
    }

    fn check_text(&self, text: &Calibration, pool: Option<&Calibration>) -> Result<()> {
        let tokens = text.counted() + pool.map_or(0, Calibration::counted);
        let least = self.options.least_of(&self.model);
        // Rounding to the nearest uses text for bit widths alone, and calibrates nothing.
        let tops_up =
            self.options.solver() == SolverChoice::Gptq && self.options.calibrate_on().tops_up();
        if !tops_up || tokens >= least as u64 {
            return Ok(());
        }
        let what = format!(
            "{tokens} tokens are fewer than the {least} that every expert is to be calibrated on"
        );
        let options = ["--data", "--top-up-below", "--calibrate-on"];
        let remedy = "give more --data, lower --top-up-below, or give --calibrate-on routed";
        Err(usage(&options, what, remedy))
    }

    fn begin(&mut self, calibration: &Calibration) {
        self.counted = calibration.group_of.iter().map(|group| *group != UNCOUNTED).collect();
    }

    fn survey(&mut self, sample: &Calibration) -> Option<&mut dyn Observer> {
        let target = self.options.target_bits?;
        Some(self.survey.insert(Survey::new(
            &self.options,
            target,
            &self.model,
            &self.compute,
            sample,
        )))
    }

    fn finish(&mut self) -> Result<LayerEdits> {
        let (layers, attention) =
            (std::mem::take(&mut self.layers), std::mem::take(&mut self.attention));
        Ok(LayerEdits { by: DecidedBy::Sequence, layers, attention })
    }
}

impl Observer for Quantizer {}

impl Converter for Quantizer {
    fn role(&self) -> Role {
        Role::ConvertsUnseen
    }

    fn converts_attention(&self) -> bool {
        self.options.include.contains(&QuantizedPart::Attention)
    }

    fn attention_input(
        &mut self,
        _: usize,
        linear: usize,
        tokens: Range<usize>,
        x: &Tensor,
    ) -> Result<()> {
        let Self { attention_inputs, counted, compute, .. } = self;
        compute.stage("attention's Hessians", Work::UNCOUNTED, || {
            attention_inputs.add(linear, tokens, x, counted)
        })
    }

    fn convert_attention(&mut self, index: usize) -> Result<Option<Attention>> {
        let inputs = std::mem::take(&mut self.attention_inputs);
        let attention = &self.model.layers[index].attention;
        let solving = self.solving(self.options.encoding(), &attention.output().weight)?;
        let damping = self.damping();
        let act_order = self.options.act_order;
        let codes = self.compute.stage("attention's codes", Work::UNCOUNTED, || {
            inputs.codes(index, attention, &solving, &damping, act_order, &self.compute.device)
        })?;
        let mut codes = codes.into_iter().map(MadeWeight::Codes);
        let store = Store(self.scratch.clone());
        let quantized = quantized_attention(attention, |weight| {
            self.options.encoded(weight, self.options.encoding(), &store, codes.next().as_ref())
        })?;
        self.attention.insert(index, quantized.clone());
        Ok(Some(quantized))
    }

    fn convert(&mut self, index: usize, inputs: &Inputs<'_>) -> Result<Option<Converted>> {
        let Ffn::Moe(moe) = &self.model.layers[index].ffn else { return Ok(None) };
        let widths = self.survey.as_ref().map(|survey| survey.widths[&index].clone());
        let schemes = self.options.schemes(widths.as_ref());
        let store = Store(self.scratch.clone());
        let mut details = QuantizedLayer { bit_widths: widths, ..QuantizedLayer::default() };
        if self.options.solver() == SolverChoice::Rtn {
            let record = self.options.record(index, moe, details);
            let layer = decided(rounded_layer(&self.options, moe, schemes, &store)?, record);
            return Ok(Some(self.keep(index, layer).into()));
        }
        // The block hasn't run yet: a router that isn't finite would give Hessians that aren't, and
        // the error would name an expert.
        moe.router.weights().try_for_each(|weight| read_finite(weight).map(drop))?;
        let (packed, routed) = self.packed(&LayerToSolve { index, moe, schemes, inputs })?;
        details.experts =
            packed[..moe.experts.len()].iter().map(|packed| packed.record.clone()).collect();
        let quantized = self
            .options
            .quantized(moe, |network, matrix, _| Ok(packed[network].weights[matrix].clone()))?;
        let record = self.options.record(index, moe, details);
        Ok(Some(Converted { ffn: self.keep(index, decided(quantized, record)), routed }))
    }
}

#[cfg(test)]
mod tests;
