//! Quantizes layer by layer, in a sweep or without one.

use std::collections::BTreeMap;
use std::sync::Arc;

use moe_checkpoint::Spill;
use moe_checkpoint::quantization::{Integers, Scheme};
use moe_forward::{Calibration, Converter, Inputs, LoadedRouter, Observer, UNCOUNTED};
use moe_math::Compute;
use moe_math::quantize::{self, Codes, Damping, round_to_nearest};
use moe_math::routing::Routing;
use moe_model::{Error, Expert, Ffn, Kind, Model, Moe, Result, Weight};

use super::encode::{Store, scale_dtype};
use super::options::{Method, Part, QuantizeOptions, Samples};
use super::samples::{Counts, ExpertSamples, Rule, Sampler};
use super::solve::{ExpertRecord, Solved, Solver, Task, failed};
use super::survey::Survey;
use super::{Made, Place};
use crate::calibrate::CalibrationOptions;
use crate::part::finite_values;
use crate::pass::{DecidedBy, DecidedLayer, Decider, Decisions, LayerRecord, Sources};

/// Quantizes each layer on what reaches it through the quantized ones before it.
pub(super) struct Quantizer {
    options: QuantizeOptions,
    model: Model,
    compute: Compute,
    spill: Option<Arc<Spill>>,
    /// Whether each token counts.
    counted: Vec<bool>,
    layers: BTreeMap<usize, DecidedLayer>,
    /// What chooses widths, where there are several.
    survey: Option<Survey>,
}

/// Rounds every matrix to nearest.
pub(super) fn rounded(options: &QuantizeOptions, sources: &Sources<'_>) -> Result<Decisions> {
    let store = Store(sources.spill.cloned());
    let mut layers = BTreeMap::new();
    for (index, moe) in sources.model.moes() {
        let quantized = rounded_layer(options, moe, options.schemes(None), &store)?;
        layers.insert(index, decided(quantized, options.record(index, moe, None)));
    }
    Ok(Decisions { by: DecidedBy::Weights, layers })
}

/// `moe` with every matrix rounded to nearest in its scheme (of gate, up and down).
fn rounded_layer(options: &QuantizeOptions, moe: &Moe, schemes: [Scheme; 3], store: &Store) -> Result<Moe> {
    options.quantized(moe, schemes, store, |place, matrix| {
        let weight = &network(moe, place).linears()[matrix].weight;
        let values = finite_values(weight)?;
        match schemes[matrix] {
            Scheme::Fp8(_) => Ok(Some(Made::Values(values))),
            Scheme::Integers(integers) => {
                let shape = [weight.shape()[0], weight.shape()[1]];
                let codes = round_to_nearest(&values, shape, &grid(options, integers, weight)?);
                codes.map(Made::Codes).map(Some).map_err(|e| failed(e).tensor(weight.name()))
            }
        }
    })
}

fn network(moe: &Moe, place: Place) -> &Expert {
    match (place, &moe.shared) {
        (Place::Routed(index), _) => &moe.experts[index],
        (Place::Shared, Some(shared)) => &shared.expert,
        (Place::Shared, None) => unreachable!("only a shared expert that is there is quantized"),
    }
}

/// The grids of codes of `weight`.
pub(super) fn grid(options: &QuantizeOptions, integers: Integers, weight: &Weight) -> Result<quantize::Scheme> {
    let scale_dtype = scale_dtype(weight, options.packing())?;
    Ok(quantize::Scheme { bits: integers.bits, symmetric: integers.symmetric, group: integers.group, scale_dtype })
}

fn decided(moe: Moe, record: LayerRecord) -> DecidedLayer {
    let clusters = (0..moe.experts.len()).map(|expert| vec![expert]).collect();
    DecidedLayer { ffn: Ffn::Moe(Box::new(moe)), record, clusters, saliency: Vec::new() }
}

impl Quantizer {
    pub fn new(options: &QuantizeOptions, sources: &Sources<'_>) -> Self {
        Self {
            options: options.clone(),
            model: sources.model.clone(),
            compute: sources.compute.clone(),
            spill: sources.spill.cloned(),
            counted: Vec::new(),
            layers: BTreeMap::new(),
            survey: None,
        }
    }

    /// What each expert of `moe` is calibrated on.
    fn samples(&self, moe: &Moe, inputs: &Inputs<'_>) -> Result<Vec<ExpertSamples>> {
        let hidden = self.model.hidden;
        let width = moe.experts[0].width();
        let rule = Rule {
            samples: self.options.samples(),
            least: (self.options.min_samples * hidden.max(width) as f64).ceil() as usize,
            gate_power: self.options.gate_power,
            hot_cap: self.options.hot_cap,
        };
        let router = LoadedRouter::load(&moe.router, &self.compute)?;
        let counted = |token: usize| self.counted[token];
        let mut sampler = Sampler::new(rule, moe.experts.len());
        let route = |block: usize| -> Result<Routing> {
            let routed = router.route(&inputs.get(block)?).map(|(_, routing)| routing);
            routed.map_err(|e| Error::new(Kind::Numeric, "cannot route").source(e).tensor(moe.router.weight.name()))
        };
        for block in 0..inputs.blocks().len() {
            sampler.routed(&route(block)?, counted);
        }
        if sampler.wants_more() {
            for (block, tokens) in inputs.blocks().iter().enumerate() {
                sampler.near(tokens.start, &route(block)?, router.rule().bias.as_deref(), counted);
            }
        }
        Ok(sampler.finish(counted))
    }

    fn solved(
        &self,
        index: usize,
        moe: &Moe,
        schemes: [Scheme; 3],
        inputs: &Inputs<'_>,
    ) -> Result<(Vec<Solved>, Option<Solved>)> {
        let options = |scheme: Scheme| -> Result<quantize::Options> {
            let Scheme::Integers(integers) = scheme else { unreachable!("GPTQ is for integers") };
            let scheme = grid(&self.options, integers, &moe.experts[0].gate.weight)?;
            Ok(quantize::Options { scheme, clip_search: self.options.clip_search })
        };
        let shrinks = self.options.samples() == Samples::PerExpert;
        let solver = Solver {
            layer: index,
            inputs,
            counted: &self.counted,
            compute: &self.compute,
            options: [options(schemes[0])?, options(schemes[1])?, options(schemes[2])?],
            damping: Damping { start: self.options.damping, ..Damping::default() },
            act_order: self.options.act_order,
            shrinkage: if shrinks { self.options.shrinkage } else { 0.0 },
            ridge: if shrinks { self.options.ridge } else { 0.0 },
        };
        let samples = self.samples(moe, inputs)?;
        let task =
            |(expert, samples)| Task { name: format!("expert {expert}"), network: &moe.experts[expert], samples };
        let experts = solver.run(&samples.into_iter().enumerate().map(task).collect::<Vec<_>>())?;
        let shared = moe.shared.as_ref().filter(|_| self.options.include.contains(&Part::Shared));
        let shared = shared.map(|shared| -> Result<Solved> {
            let task =
                Task { name: "the shared expert".to_owned(), network: &shared.expert, samples: self.all_tokens() };
            let solver = Solver { shrinkage: 0.0, ..solver };
            Ok(solver.run(&[task])?.remove(0))
        });
        Ok((experts, shared.transpose()?))
    }

    /// Remembers what layer `index` becomes.
    fn keep(&mut self, index: usize, layer: DecidedLayer) -> Ffn {
        let ffn = layer.ffn.clone();
        self.layers.insert(index, layer);
        ffn
    }

    fn all_tokens(&self) -> ExpertSamples {
        let tokens: Vec<u32> = (0..self.counted.len() as u32).filter(|token| self.counted[*token as usize]).collect();
        let counts = Counts { routed: tokens.len(), used: tokens.len(), topped_up: 0 };
        ExpertSamples { weights: vec![1.0; tokens.len()], tokens, counts }
    }
}

impl Decider for Quantizer {
    fn text(&self) -> &CalibrationOptions {
        &self.options.calibration
    }

    fn begin(&mut self, calibration: &Calibration) {
        self.counted = calibration.group_of.iter().map(|group| *group != UNCOUNTED).collect();
    }

    fn survey(&mut self, sample: &Calibration) -> Option<&mut dyn Observer> {
        let target = self.options.target_bits?;
        Some(self.survey.insert(Survey::new(&self.options, target, &self.model, &self.compute, sample)))
    }

    fn finish(&mut self) -> Result<Decisions> {
        Ok(Decisions { by: DecidedBy::Sequence, layers: std::mem::take(&mut self.layers) })
    }
}

impl Observer for Quantizer {}

impl Converter for Quantizer {
    fn observes(&self) -> bool {
        false
    }

    fn convert(&mut self, index: usize, inputs: &Inputs<'_>) -> Result<Option<Ffn>> {
        let Ffn::Moe(moe) = &self.model.layers[index].ffn else { return Ok(None) };
        let widths = self.survey.as_ref().map(|survey| survey.widths[&index].clone());
        let (schemes, store) = (self.options.schemes(widths.as_ref()), Store(self.spill.clone()));
        let mut record = self.options.record(index, moe, widths);
        if self.options.method() == Method::Rtn {
            let layer = decided(rounded_layer(&self.options, moe, schemes, &store)?, record);
            return Ok(Some(self.keep(index, layer)));
        }
        let (experts, shared) = self.solved(index, moe, schemes, inputs)?;
        record.quantized = experts.iter().map(|solved| solved.record.clone()).collect::<Vec<ExpertRecord>>();
        let mut codes: Vec<[Option<Codes>; 3]> = experts
            .into_iter()
            .chain(shared)
            .map(|Solved { gate, up, down, .. }| [Some(gate), Some(up), Some(down)])
            .collect();
        let quantized = self.options.quantized(moe, schemes, &store, |place, matrix| {
            let network = match place {
                Place::Routed(index) => index,
                Place::Shared => moe.experts.len(),
            };
            Ok(codes[network][matrix].take().map(Made::Codes))
        })?;
        Ok(Some(self.keep(index, decided(quantized, record))))
    }
}
