//! Decides layer by layer: in a sweep over text, or from sums that were observed before.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::Tensor;
use moe_forward::{
    Calibration, Converted, Converter, ExpertRun, ForwardWork, Group, Inputs, LeftOut, Observer,
    ObserverOptions, StatisticsObserver, Wants,
};
use moe_math::Compute;
use moe_math::routing::Routing;
use moe_math::statistics::{CalibrationSums, Quantity};
use moe_model::{Error, Ffn, Kind, Model, Moe, Result};

use super::budget::{padded, sums_of};
use super::guard::super_experts;
use super::{LayerTrust, LayerView, Method, Needs, ReduceOptions, Size, check_saliency};
use crate::output_error::OutputError;
use crate::pass::{
    DecidedBy, DecidedLayer, LayerEdits, LayerPass, LayerStatistics, Sources, SweptText,
};
use crate::usage::usage;

/// Decides from statistics, or from weights alone where the method needs none.
pub(super) fn decide_now(
    method: &dyn Method,
    options: &ReduceOptions,
    size: &Size,
    sources: &Sources<'_>,
) -> Result<LayerEdits> {
    let model = sources.model;
    let compute = sources.compute;
    let statistics = sources.statistics.filter(|_| method.needs().sums);
    let protected = match statistics {
        Some(statistics) if !options.no_super_expert_guard => {
            super_experts(&largest_outputs(model, statistics)?)
        }
        _ => BTreeMap::new(),
    };
    let groups = statistics.map_or(&[] as &[Group], |statistics| statistics.groups());
    let seed = options.calibration.seed;
    let setting = Setting { method, size, protected: &protected, groups, seed, compute };
    let layers = setting.decided_from(model, statistics)?;
    let by = if statistics.is_some() { DecidedBy::OriginalStatistics } else { DecidedBy::Weights };
    let mut decisions = LayerEdits { by, layers, attention: BTreeMap::new() };
    options.decide_mtp(model, size, compute, &mut decisions)?;
    Ok(decisions)
}

/// The parameters of deciding the layers of a model.
struct Setting<'a> {
    method: &'a dyn Method,
    size: &'a Size,
    /// Super experts, by layer.
    protected: &'a BTreeMap<usize, Vec<usize>>,
    groups: &'a [Group],
    seed: u64,
    compute: &'a Compute,
}

impl Setting<'_> {
    /// Decides each mixture of `model` from the sums of `statistics`, where there are any.
    fn decided_from(
        &self,
        model: &Model,
        statistics: Option<&dyn LayerStatistics>,
    ) -> Result<BTreeMap<usize, DecidedLayer>> {
        let layers = model.moes().map(|(index, moe)| {
            let sums = match statistics {
                Some(statistics) => sums_of(statistics, index)?,
                None => Vec::new(),
            };
            if statistics.is_some() && self.method.needs().left_out {
                check_left_out(index, &sums)?;
            }
            Ok((index, self.decided(index, moe, &sums, &[])?))
        });
        layers.collect()
    }

    /// Decides layer `index`, whose mixture is `moe`.
    fn decided(
        &self,
        index: usize,
        moe: &Moe,
        sums: &[CalibrationSums],
        inputs: &[Tensor],
    ) -> Result<DecidedLayer> {
        let Self { size, groups, seed, compute, .. } = *self;
        let protected = self.protected.get(&index).map_or(&[] as &[usize], Vec::as_slice);
        let view = LayerView {
            index,
            moe,
            count: size.counts[&index],
            protected,
            groups,
            sums,
            inputs,
            seed,
            compute,
        };
        let reduced = self.method.reduce(&view)?;
        check_saliency(index, moe, &reduced.saliency)?;
        let trust = (!sums.is_empty()).then(|| LayerTrust::new(&reduced, &view));
        Ok(padded(reduced.decided(index, moe, trust), moe, size.after))
    }
}

/// Refuses statistics that were observed without leaving experts out, for methods that rank by
/// that.
fn check_left_out(index: usize, sums: &[CalibrationSums]) -> Result<()> {
    let seen =
        |quantity| sums.iter().any(|sums| sums.get(quantity).iter().any(|value| *value > 0.0));
    if seen(Quantity::OutputSquareNorms) || !seen(Quantity::SeenTokens) {
        return Ok(());
    }
    Err(usage(
        &["--stats"],
        format!("these statistics of layer {index} don't say what leaving an expert out does"),
        "observe again without --no-left-out, or give --data",
    ))
}

fn largest_outputs(
    model: &Model,
    statistics: &dyn LayerStatistics,
) -> Result<BTreeMap<usize, Vec<f64>>> {
    let layers = model.moes();
    layers.map(|(index, _)| Ok((index, largest(&sums_of(statistics, index)?)))).collect()
}

fn largest(sums: &[CalibrationSums]) -> Vec<f64> {
    CalibrationSums::pooled(sums.iter().map(|sums| (sums, 1.0))).get(Quantity::Largest).to_vec()
}

/// Decides each layer on what the converted layers before it give.
pub(super) struct ExpertReducer {
    method: Arc<dyn Method>,
    options: ReduceOptions,
    size: Size,
    model: Model,
    compute: Compute,
    groups: Vec<Group>,
    /// The observer of the sweep.
    observer: Option<StatisticsObserver>,
    /// The observer of a sweep over the original model, which comes first.
    survey: Option<SuperExpertSurvey>,
    /// The inputs of counted tokens in the running layer, where the method needs them.
    inputs: Vec<Tensor>,
    /// The number of tokens that have reached that layer, counted or not.
    arrived: usize,
    /// Σ ‖y − y'‖² and Σ ‖y‖² of each layer.
    errors: BTreeMap<usize, OutputError>,
    layers: BTreeMap<usize, DecidedLayer>,
}

impl ExpertReducer {
    pub fn new(
        method: Arc<dyn Method>,
        options: &ReduceOptions,
        size: Size,
        sources: &Sources<'_>,
    ) -> Self {
        Self {
            method,
            options: options.clone(),
            size,
            model: sources.model.clone(),
            compute: sources.compute.clone(),
            groups: Vec::new(),
            observer: None,
            survey: None,
            inputs: Vec::new(),
            arrived: 0,
            errors: BTreeMap::new(),
            layers: BTreeMap::new(),
        }
    }

    fn observer_of(
        &self,
        text: &Calibration,
        left_out: bool,
        sample_every: usize,
    ) -> StatisticsObserver {
        let groups = text.groups.len();
        let group_of = text.group_of.clone();
        StatisticsObserver::new(
            &self.model,
            ObserverOptions { groups, group_of, left_out, sample_every },
        )
    }

    /// The super experts of layer `index`, by what the survey found in all layers and by `sums` of
    /// this layer.
    fn protected(&self, index: usize, sums: &[CalibrationSums]) -> BTreeMap<usize, Vec<usize>> {
        let Some(survey) = &self.survey else { return BTreeMap::new() };
        let mut found = survey.largest.clone();
        let here = found.entry(index).or_default().iter_mut();
        here.zip(largest(sums)).for_each(|(surveyed, seen)| *surveyed = surveyed.max(seen));
        super_experts(&found)
    }

    fn observer(&mut self) -> &mut StatisticsObserver {
        self.observer.as_mut().expect("a sweep begins first")
    }
}

impl LayerPass for ExpertReducer {
    fn model_mut(&mut self) -> &mut Model {
        &mut self.model
    }

    fn flops(&self, tokens: usize, sequence: usize) -> f64 {
        let forward = ForwardWork::of(&self.model, tokens, sequence);
        let top_k = self.model.moes().next().map_or(1, |(_, moe)| moe.router.top_k);
        let all_experts = match self.method.needs().sample_every {
            0 => 0.0,
            every => self.size.before as f64 / (top_k as f64 * every as f64),
        };
        // Each block is observed, then run again after it was converted.
        forward.attention + forward.networks * (2.0 + all_experts)
    }

    fn working_bytes(&self, text: SweptText) -> u64 {
        let tokens = text.tokens;
        let hidden = self.model.hidden;
        let Needs { sample_every, inputs, .. } = self.method.needs();
        let inputs = if inputs { tokens * hidden * 4 } else { 0 };
        // For each expert and group of tokens, the sum of outputs on sampled tokens.
        let outputs = if sample_every > 0 {
            8 * self.size.before * hidden * self.groups.len().max(2)
        } else {
            0
        };
        (inputs + outputs) as u64 + self.method.working_bytes(&self.model, self.size.before, tokens)
    }

    fn looks_ahead(&self) -> bool {
        !self.options.no_super_expert_guard
    }

    fn begin(&mut self, calibration: &Calibration) {
        let Needs { left_out, sample_every, .. } = self.method.needs();
        self.observer = Some(self.observer_of(calibration, left_out, sample_every));
        self.groups.clone_from(&calibration.groups);
    }

    fn survey(&mut self, sample: &Calibration) -> Option<&mut dyn Observer> {
        if self.options.no_super_expert_guard {
            return None;
        }
        let observer = self.observer_of(sample, false, 0);
        Some(self.survey.insert(SuperExpertSurvey { observer, largest: BTreeMap::new() }))
    }

    fn finish(&mut self) -> Result<LayerEdits> {
        let mut layers = std::mem::take(&mut self.layers);
        for (index, error) in &self.errors {
            let Some(layer) = layers.get_mut(index) else { continue };
            layer.record.change_details(|trust: &mut LayerTrust| {
                trust.output_error = Some(error.relative().unwrap_or(0.0));
            });
        }
        let mut decisions =
            LayerEdits { by: DecidedBy::Sequence, layers, attention: BTreeMap::new() };
        self.options.decide_mtp(&self.model, &self.size, &self.compute, &mut decisions)?;
        Ok(decisions)
    }
}

impl Converter for ExpertReducer {
    fn convert(&mut self, index: usize, _: &Inputs<'_>) -> Result<Option<Converted>> {
        let Some(sums) = self.observer().take()? else { return Ok(None) };
        let inputs = std::mem::take(&mut self.inputs);
        self.arrived = 0;
        let Ffn::Moe(moe) = &self.model.layers[index].ffn else { return Ok(None) };
        let protected = self.protected(index, &sums);
        let setting = Setting {
            method: self.method.as_ref(),
            size: &self.size,
            protected: &protected,
            groups: &self.groups,
            seed: self.options.calibration.seed,
            compute: &self.compute,
        };
        let layer = setting.decided(index, moe, &sums, &inputs)?;
        let ffn = layer.ffn.clone();
        self.layers.insert(index, layer);
        Ok(Some(ffn.into()))
    }

    fn converted(&mut self, index: usize, original: &Tensor, converted: &Tensor) -> Result<()> {
        let error = self.errors.entry(index).or_default();
        error.add(original, converted).map_err(|e| {
            Error::new(Kind::Numeric, format!("cannot compare the outputs of layer {index}"))
                .source(e)
        })
    }
}

impl Observer for ExpertReducer {
    fn wants(&self) -> Wants {
        // The costs are asked for before the sweep begins.
        let left_out = self.method.needs().left_out;
        let planned = Wants { experts: true, left_out, ..Wants::default() };
        self.observer.as_ref().map_or(planned, Observer::wants)
    }

    fn ffn_input(&mut self, layer: usize, x: &Tensor) -> Result<()> {
        if !self.method.needs().inputs || self.model.layers[layer].ffn.moe().is_none() {
            return Ok(());
        }
        let tokens = x.dim(0).map_err(|e| not_kept(layer, e))?;
        let first = self.arrived;
        self.arrived += tokens;
        let counted = self.observer().counted_of(first..first + tokens);
        let rows = match counted.len() {
            0 => return Ok(()),
            all if all == tokens => Ok(x.clone()),
            some => Tensor::from_vec(counted, some, x.device())
                .and_then(|rows| x.index_select(&rows, 0)),
        };
        self.inputs.push(rows.map_err(|e| not_kept(layer, e))?);
        Ok(())
    }

    fn routed(&mut self, layer: usize, logits: &Tensor, routing: &Routing) -> Result<()> {
        self.observer().routed(layer, logits, routing)
    }

    fn expert_ran(&mut self, layer: usize, run: &ExpertRun<'_>) -> Result<()> {
        self.observer().expert_ran(layer, run)
    }

    fn left_out(&mut self, layer: usize, found: &LeftOut<'_>) -> Result<()> {
        self.observer().left_out(layer, found)
    }

    fn sampled_output(
        &mut self,
        layer: usize,
        expert: usize,
        tokens: &[u32],
        output: &Tensor,
    ) -> Result<()> {
        self.observer().sampled_output(layer, expert, tokens, output)
    }
}

/// Finds the largest output of each expert of the original model.
struct SuperExpertSurvey {
    observer: StatisticsObserver,
    largest: BTreeMap<usize, Vec<f64>>,
}

impl Observer for SuperExpertSurvey {
    fn wants(&self) -> Wants {
        self.observer.wants()
    }

    fn routed(&mut self, layer: usize, logits: &Tensor, routing: &Routing) -> Result<()> {
        self.observer.routed(layer, logits, routing)
    }

    fn expert_ran(&mut self, layer: usize, run: &ExpertRun<'_>) -> Result<()> {
        self.observer.expert_ran(layer, run)
    }

    fn layer_done(&mut self, layer: usize, _: usize) -> Result<()> {
        let sums = self.observer.take()?;
        self.largest.extend(sums.map(|sums| (layer, largest(&sums))));
        Ok(())
    }
}

/// The error where the inputs of layer `layer` can't be kept.
fn not_kept(layer: usize, error: candle_core::Error) -> Error {
    Error::new(Kind::Numeric, format!("cannot keep the inputs of layer {layer}")).source(error)
}

#[cfg(test)]
mod tests;
