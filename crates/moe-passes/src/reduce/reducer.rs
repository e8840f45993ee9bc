//! Decides layer by layer: in a sweep over text, or from sums that were observed before.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Tensor};
use moe_forward::{
    Calibration, Converter, ExpertRun, Group, LeftOut, Observer, ObserverOptions, StatisticsObserver, Wants,
};
use moe_math::Compute;
use moe_math::routing::Routing;
use moe_math::statistics::{Quantity, Sums};
use moe_model::{Error, Ffn, Kind, Model, Moe, Result};

use super::budget::padded;
use super::guard::super_experts;
use super::mtp::decide_mtp;
use super::{LayerTrust, LayerView, Method, MtpChoice, Needs, ReduceOptions, Size};
use crate::calibrate::CalibrationOptions;
use crate::pass::{DecidedBy, DecidedLayer, Decider, Decisions, LayerStatistics, Sources};

/// Decides from statistics, or from weights alone where the method needs none.
pub(super) fn decide_now(
    method: &dyn Method,
    options: &ReduceOptions,
    size: &Size,
    sources: &Sources<'_>,
) -> Result<Decisions> {
    let (model, needs) = (sources.model, method.needs());
    let statistics = sources.statistics.filter(|_| needs.sums);
    let protected = match statistics {
        Some(statistics) if !options.no_super_expert_guard => super_experts(&largest_outputs(model, statistics)?),
        _ => BTreeMap::new(),
    };
    let groups = statistics.map_or(&[] as &[Group], |statistics| statistics.groups());
    let setting = Setting {
        method,
        size,
        protected: &protected,
        groups,
        seed: options.calibration.seed,
        compute: sources.compute,
    };
    let mut layers = BTreeMap::new();
    for (index, moe) in model.moes() {
        let sums = statistics.map(|statistics| sums_of(statistics, index)).transpose()?.unwrap_or_default();
        if statistics.is_some() && needs.left_out {
            check_left_out(index, &sums)?;
        }
        layers.insert(index, setting.decided(index, moe, &sums, &[])?);
    }
    let by = if statistics.is_some() { DecidedBy::OriginalStatistics } else { DecidedBy::Weights };
    let mut decisions = Decisions { by, layers };
    if options.mtp == MtpChoice::Prune {
        decide_mtp(model, size, sources.compute, &mut decisions)?;
    }
    Ok(decisions)
}

/// What the layers of a model are decided with.
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
    /// Decides layer `index`, which is `moe`.
    fn decided(&self, index: usize, moe: &Moe, sums: &[Sums], inputs: &[Tensor]) -> Result<DecidedLayer> {
        let Self { size, groups, seed, compute, .. } = *self;
        let protected = self.protected.get(&index).map_or(&[] as &[usize], Vec::as_slice);
        let view = LayerView { index, moe, count: size.counts[&index], protected, groups, sums, inputs, seed, compute };
        let reduced = self.method.reduce(&view)?;
        let trust = (!sums.is_empty()).then(|| LayerTrust::new(&reduced, &view));
        Ok(padded(reduced.decided(index, moe, trust), moe, size.after))
    }
}

/// The sums of each group of tokens in layer `index`.
pub(super) fn sums_of(statistics: &dyn LayerStatistics, index: usize) -> Result<Vec<Sums>> {
    statistics.layer(index)?.ok_or_else(|| {
        Error::new(Kind::Mismatch, format!("the statistics have no layer {index}")).remedy("observe this model again")
    })
}

/// Statistics that were observed without leaving experts out can't rank by that.
fn check_left_out(index: usize, sums: &[Sums]) -> Result<()> {
    let seen = |quantity| sums.iter().any(|sums| sums.get(quantity).iter().any(|value| *value > 0.0));
    if seen(Quantity::OutputSquareNorms) || !seen(Quantity::SeenTokens) {
        return Ok(());
    }
    Err(Error::new(Kind::Usage, format!("these statistics of layer {index} don't say what leaving an expert out does"))
        .remedy("observe again without --no-left-out, or give --data"))
}

fn largest_outputs(model: &Model, statistics: &dyn LayerStatistics) -> Result<BTreeMap<usize, Vec<f64>>> {
    let largest = |(index, _)| Ok((index, largest(&sums_of(statistics, index)?)));
    model.moes().map(largest).collect()
}

fn largest(sums: &[Sums]) -> Vec<f64> {
    Sums::pooled(sums.iter().map(|sums| (sums, 1.0))).get(Quantity::Largest).to_vec()
}

/// Decides each layer on what reaches it through the converted layers before it.
pub(super) struct Reducer {
    method: Arc<dyn Method>,
    options: ReduceOptions,
    size: Size,
    model: Model,
    compute: Compute,
    groups: Vec<Group>,
    /// Watches the sweep.
    observer: Option<StatisticsObserver>,
    /// Watches a sweep over the original model, before.
    survey: Option<SuperExpertSurvey>,
    inputs: Vec<Tensor>,
    /// Σ ‖y − y'‖² and Σ ‖y‖² of each layer.
    errors: BTreeMap<usize, [f64; 2]>,
    layers: BTreeMap<usize, DecidedLayer>,
}

impl Reducer {
    pub fn new(method: Arc<dyn Method>, options: &ReduceOptions, size: Size, sources: &Sources<'_>) -> Self {
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
            errors: BTreeMap::new(),
            layers: BTreeMap::new(),
        }
    }

    fn observer(&mut self) -> &mut StatisticsObserver {
        self.observer.as_mut().expect("a sweep begins first")
    }
}

impl Decider for Reducer {
    fn text(&self) -> &CalibrationOptions {
        &self.options.calibration
    }

    fn begin(&mut self, calibration: &Calibration) {
        let Needs { left_out, sample_every, .. } = self.method.needs();
        let observer = |left_out, sample_every| {
            let (groups, group_of) = (calibration.groups.len(), calibration.group_of.clone());
            StatisticsObserver::new(&self.model, ObserverOptions { groups, group_of, left_out, sample_every })
        };
        self.survey = (!self.options.no_super_expert_guard)
            .then(|| SuperExpertSurvey { observer: observer(false, 0), largest: BTreeMap::new() });
        self.observer = Some(observer(left_out, sample_every));
        self.groups.clone_from(&calibration.groups);
    }

    fn survey(&mut self) -> Option<&mut dyn Observer> {
        self.survey.as_mut().map(|survey| survey as &mut dyn Observer)
    }

    fn finish(&mut self) -> Result<Decisions> {
        let mut layers = std::mem::take(&mut self.layers);
        for (index, [error, all]) in &self.errors {
            let trust = layers.get_mut(index).and_then(|layer| layer.record.trust.as_mut());
            trust.into_iter().for_each(|trust| {
                trust.output_error = Some(if *all > 0.0 { (error / all).sqrt() } else { 0.0 });
            });
        }
        let mut decisions = Decisions { by: DecidedBy::Sequence, layers };
        if self.options.mtp == MtpChoice::Prune {
            decide_mtp(&self.model, &self.size, &self.compute, &mut decisions)?;
        }
        Ok(decisions)
    }
}

impl Converter for Reducer {
    fn convert(&mut self, index: usize) -> Result<Option<Ffn>> {
        let Some(sums) = self.observer().take() else { return Ok(None) };
        let inputs = std::mem::take(&mut self.inputs);
        let Ffn::Moe(moe) = &self.model.layers[index].ffn else { return Ok(None) };
        let protected = self.survey.as_ref().map(|survey| super_experts(&survey.largest)).unwrap_or_default();
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
        Ok(Some(ffn))
    }

    fn converted(&mut self, index: usize, original: &Tensor, converted: &Tensor) -> Result<()> {
        let square = |t: &Tensor| t.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>();
        let sums = || -> candle_core::Result<[f64; 2]> { Ok([square(&(original - converted)?)?, square(original)?]) };
        let [error, all] = sums()
            .map_err(|e| Error::new(Kind::Numeric, format!("cannot compare the outputs of layer {index}")).source(e))?;
        let layer = self.errors.entry(index).or_default();
        layer[0] += error;
        layer[1] += all;
        Ok(())
    }
}

impl Observer for Reducer {
    fn wants(&self) -> Wants {
        self.observer.as_ref().map_or(Wants::default(), Observer::wants)
    }

    fn ffn_input(&mut self, layer: usize, x: &Tensor) -> Result<()> {
        if self.method.needs().inputs && self.model.layers[layer].ffn.moe().is_some() {
            self.inputs.push(x.clone());
        }
        Ok(())
    }

    fn routed(&mut self, layer: usize, logits: &Tensor, routing: &Routing) {
        self.observer().routed(layer, logits, routing);
    }

    fn expert_ran(&mut self, layer: usize, run: &ExpertRun<'_>) -> Result<()> {
        self.observer().expert_ran(layer, run)
    }

    fn left_out(&mut self, layer: usize, found: &LeftOut<'_>) -> Result<()> {
        self.observer().left_out(layer, found)
    }

    fn sampled(&mut self, layer: usize) -> Vec<u32> {
        self.observer().sampled(layer)
    }

    fn sampled_output(&mut self, layer: usize, expert: usize, tokens: &[u32], output: &Tensor) -> Result<()> {
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

    fn routed(&mut self, layer: usize, logits: &Tensor, routing: &Routing) {
        self.observer.routed(layer, logits, routing);
    }

    fn expert_ran(&mut self, layer: usize, run: &ExpertRun<'_>) -> Result<()> {
        self.observer.expert_ran(layer, run)
    }

    fn layer_done(&mut self, layer: usize, _: usize) -> Result<()> {
        let sums = self.observer.take();
        self.largest.extend(sums.map(|sums| (layer, largest(&sums))));
        Ok(())
    }
}
