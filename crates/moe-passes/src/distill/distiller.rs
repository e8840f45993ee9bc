//! Makes layers dense in a sweep: each layer is observed whole, then decided.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::Tensor;
use moe_checkpoint::ScratchStore;
use moe_forward::{
    Calibration, Converted, Converter, ExpertRun, Forcing, ForwardWork, Inputs, Observer, Wants,
};
use moe_math::Compute;
use moe_math::meter::Work;
use moe_math::routing::Routing;
use moe_model::{Expert, Ffn, Model, Moe, Result};

use super::block::{GATHERED_BYTES, LOOKED_AT, step_bytes};
use super::errors::LayerErrors;
use super::observe::{BlockPart, LayerObserver, LayerSums, Tokens};
use super::ridge::{DownProjectionFit, Fitted};
use super::student::{StudentLayer, dense};
use super::{DistillOptions, Down, DownFit, Forced, Init};
use crate::align::aligning_bytes;
use crate::pass::{
    DecidedBy, DecidedLayer, Details, Kept, LayerEdits, LayerPass, LayerRecord, Sources, SweptText,
};

/// Decides layer by layer.
pub(super) struct Distiller {
    options: DistillOptions,
    /// The number of neurons of each dense layer.
    width: usize,
    model: Model,
    compute: Compute,
    scratch: Option<Arc<ScratchStore>>,
    tokens: Option<Tokens>,
    /// The observer of the layer that runs.
    observer: Option<LayerObserver>,
    errors: LayerErrors,
    layers: BTreeMap<usize, DecidedLayer>,
}

impl Distiller {
    pub fn new(options: &DistillOptions, width: usize, sources: &Sources<'_>) -> Self {
        Self {
            options: options.clone(),
            width,
            model: sources.model.clone(),
            compute: sources.compute.clone(),
            scratch: sources.scratch.cloned(),
            tokens: None,
            observer: None,
            errors: LayerErrors::default(),
            layers: BTreeMap::new(),
        }
    }

    fn tokens(&self) -> &Tokens {
        self.tokens.as_ref().expect("a sweep begins first")
    }

    /// The dense network of layer `index`, whose mixture is `moe`.
    fn decided(
        &self,
        index: usize,
        moe: &Moe,
        sums: &LayerSums,
        inputs: &Inputs<'_>,
    ) -> Result<DecidedLayer> {
        let layer = StudentLayer { index, moe, sums, options: &self.options, width: self.width };
        let (mut network, mut details) =
            self.compute.stage("neurons", Work::UNCOUNTED, || layer.student())?;
        // There is nothing to fit where the network gives exactly what the mixture gives.
        if self.options.down == Down::Ridge && details.kept != Kept::Exactly {
            let fitted = self.fitted(index, &network, inputs)?;
            network.down.weight = fitted.down;
            details.fit = Some(DownFit { lambda: fitted.lambda, tried: fitted.tried });
        }
        let details = Some(Details::of(details));
        let record = LayerRecord { details, ..LayerRecord::unchanged(index) };
        Ok(dense(network, record))
    }

    /// The down projection of `student`, fitted to what reaches layer `index`.
    fn fitted(&self, index: usize, student: &Expert, inputs: &Inputs<'_>) -> Result<Fitted> {
        let fit = DownProjectionFit {
            index,
            student,
            inputs,
            tokens: self.tokens(),
            compute: &self.compute,
            scratch: self.scratch.as_deref(),
        };
        fit.fitted()
    }
}

impl LayerPass for Distiller {
    fn model_mut(&mut self) -> &mut Model {
        &mut self.model
    }

    fn flops(&self, tokens: usize, sequence: usize) -> f64 {
        let forward = ForwardWork::of(&self.model, tokens, sequence);
        let layers = self.model.moes().count() as f64;
        let (width, hidden) = (self.width as f64, self.model.hidden as f64);
        let network = 3.0 * 2.0 * width * hidden;
        let ridge = if self.options.down == Down::Ridge {
            tokens as f64 * 2.0 * width * (width + hidden)
        } else {
            0.0
        };
        let training = &self.options.training;
        let sweeps =
            [training.steps, training.student_steps].into_iter().filter(|steps| *steps > 0).count()
                as f64;
        let steps = (training.steps + training.student_steps) as f64
            * training.batch_tokens as f64
            * 3.0
            * network;
        let made = layers * (ridge + tokens as f64 * network);
        forward.total() * (1.0 + sweeps)
            + made
            + layers * (steps + sweeps * tokens as f64 * network)
    }

    fn check_text(&self, text: &Calibration, _: Option<&Calibration>) -> Result<()> {
        let tokens = Tokens::new(text);
        self.options.check_tokens(
            self.width,
            tokens.count(BlockPart::Decide),
            tokens.count(BlockPart::HeldOut),
        )
    }

    fn least_tokens(&self, sequence: usize) -> usize {
        self.options.least_tokens(self.width, sequence)
    }

    fn working_bytes(&self, text: SweptText) -> u64 {
        // In f64: two Gram matrices (one with λ), the factor, and products with outputs.
        let (width, hidden) = (self.width as u64, self.model.hidden as u64);
        let fit = if self.options.down == Down::Ridge {
            8 * (4 * width * width + 5 * width * hidden)
        } else {
            0
        };
        // In f32: three matrices, their gradients, two moments and the best values; and the tokens
        // that are evaluated.
        let tokens = text.tokens as u64;
        let gathered = (4 * 2 * tokens * hidden).min(GATHERED_BYTES as u64);
        // Samples of each block, then joined.
        let samples = 2 * gathered + 4 * 2 * tokens.min(LOOKED_AT as u64) * hidden;
        let batch = tokens.min(self.options.training.batch_tokens as u64);
        let training = 4 * 5 * 3 * width * hidden + samples + step_bytes(batch, width, hidden);
        let training = if self.options.training.trains() { training } else { 0 };
        // Experts are aligned before anything is fitted, or for the baseline.
        let has_baseline = !self.options.no_baseline && self.options.measuring.is_given();
        let aligns = has_baseline || matches!(self.options.init, Init::Mean | Init::UsageMean);
        let aligning = if aligns { aligning_bytes(&self.model) } else { 0 };
        fit.max(training).max(aligning)
    }

    fn begin(&mut self, calibration: &Calibration) {
        self.tokens = Some(Tokens::new(calibration));
    }

    fn finish(&mut self) -> Result<LayerEdits> {
        let mut layers = std::mem::take(&mut self.layers);
        self.errors.record(&mut layers);
        let by = match self.options.forcing {
            Forced::Student => DecidedBy::Sequence,
            Forced::Teacher => DecidedBy::OriginalText,
        };
        Ok(LayerEdits { by, layers, attention: BTreeMap::new() })
    }
}

impl Converter for Distiller {
    fn forcing(&self) -> Forcing {
        self.options.forcing.into()
    }

    fn convert(&mut self, index: usize, inputs: &Inputs<'_>) -> Result<Option<Converted>> {
        let Some(observer) = self.observer.take() else { return Ok(None) };
        let sums = observer.finish(index)?;
        let Ffn::Moe(moe) = &self.model.layers[index].ffn else { return Ok(None) };
        let layer = self.decided(index, moe, &sums, inputs)?;
        let ffn = layer.ffn.clone();
        self.layers.insert(index, layer);
        Ok(Some(ffn.into()))
    }

    fn converted(&mut self, index: usize, original: &Tensor, converted: &Tensor) -> Result<()> {
        let tokens = self.tokens.as_ref().expect("a sweep begins first");
        self.errors.add(index, tokens, original, converted)
    }
}

impl Observer for Distiller {
    fn wants(&self) -> Wants {
        let sampled = self.observer.as_ref().map(LayerObserver::sampled).unwrap_or_default();
        Wants { experts: true, left_out: false, sampled }
    }

    fn ffn_input(&mut self, layer: usize, x: &Tensor) -> Result<()> {
        let Some(moe) = self.model.layers[layer].ffn.moe() else { return Ok(()) };
        if self.observer.is_none() {
            let samples =
                self.options.init == Init::Select && self.options.criterion.needs_all_outputs();
            let sampled = if samples {
                self.tokens().sampled(self.model.hidden, moe.experts.len())
            } else {
                Arc::default()
            };
            self.observer = Some(LayerObserver::new(moe, self.tokens(), sampled, &self.compute)?);
        }
        self.observer.as_mut().map_or(Ok(()), |observer| observer.input(layer, x))
    }

    fn routed(&mut self, _: usize, _: &Tensor, routing: &Routing) -> Result<()> {
        self.observer.iter_mut().for_each(|observer| observer.routed(routing));
        Ok(())
    }

    fn expert_ran(&mut self, layer: usize, run: &ExpertRun<'_>) -> Result<()> {
        self.observer.as_mut().map_or(Ok(()), |observer| observer.ran(layer, run))
    }

    fn sampled_output(
        &mut self,
        layer: usize,
        expert: usize,
        _: &[u32],
        output: &Tensor,
    ) -> Result<()> {
        self.observer
            .as_mut()
            .map_or(Ok(()), |observer| observer.sampled_output(layer, expert, output))
    }
}
