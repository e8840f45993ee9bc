//! Makes layers dense in a sweep: each is observed whole, then decided.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::Tensor;
use moe_checkpoint::{Saved, ScratchStore};
use moe_forward::{
    Calibration, Converted, Converter, ExpertRun, Forcing, ForwardWork, Inputs, Observer, Wants,
};
use moe_math::Compute;
use moe_math::meter::Work;
use moe_math::routing::Routing;
use moe_model::{Error, Ffn, Kind, Model, Moe, Result};

use super::block::{GATHERED_BYTES, LOOKED_AT, LayerTrainingData, Learned, step_bytes, train};
use super::observe::{BlockPart, LayerObserver, LayerSums, Tokens, failed};
use super::ridge::fit;
use super::student::student;
use super::training::Training;
use super::weights::kept;
use super::{DistillOptions, Down, DownFit, Forced, Init};
use crate::calibrate::CalibrationOptions;
use crate::merge::aligning_bytes;
use crate::output_error::OutputError;
use crate::pass::{
    DecidedBy, DecidedLayer, Kept, LayerEdits, LayerPass, LayerRecord, Sources, SweptText,
};

/// Decides layer by layer.
pub(super) struct Distiller {
    options: DistillOptions,
    /// Neurons of each dense layer.
    width: usize,
    model: Model,
    compute: Compute,
    spill: Option<Arc<ScratchStore>>,
    tokens: Option<Tokens>,
    /// Watches the layer that runs.
    observer: Option<LayerObserver>,
    /// Tokens of that layer whose outputs were compared.
    compared: usize,
    /// Σ ‖y − y'‖² and Σ ‖y‖² of each layer.
    errors: BTreeMap<usize, OutputError>,
    layers: BTreeMap<usize, DecidedLayer>,
    stage: DistillStage,
    /// Layers and their errors as the stage before left them.
    before: Option<(BTreeMap<usize, DecidedLayer>, BTreeMap<usize, OutputError>)>,
    /// Where trained layers are saved.
    saved: Option<Saved>,
}

/// What a sweep does with each layer.
#[derive(Clone, Copy, PartialEq)]
enum DistillStage {
    /// Makes it dense.
    WeightSource,
    /// Trains it on what --forcing says.
    Train,
    /// Trains it on what reaches it.
    TrainOnOwn,
}

impl DistillStage {
    /// What it did, in words.
    fn done(self) -> &'static str {
        match self {
            Self::WeightSource => "made",
            Self::Train => "trained",
            Self::TrainOnOwn => "trained on own states",
        }
    }

    fn steps(self, training: &Training) -> u64 {
        match self {
            Self::WeightSource => 0,
            Self::Train => training.steps,
            Self::TrainOnOwn => training.student_steps,
        }
    }

    /// The next of those that are asked for.
    fn next(self, training: &Training) -> Option<Self> {
        let next = match self {
            Self::WeightSource => Self::Train,
            Self::Train => Self::TrainOnOwn,
            Self::TrainOnOwn => return None,
        };
        if next.steps(training) > 0 { Some(next) } else { next.next(training) }
    }
}

impl Distiller {
    pub fn new(options: &DistillOptions, width: usize, sources: &Sources<'_>) -> Self {
        Self {
            options: options.clone(),
            width,
            model: sources.model.clone(),
            compute: sources.compute.clone(),
            spill: sources.spill.cloned(),
            tokens: None,
            observer: None,
            compared: 0,
            errors: BTreeMap::new(),
            layers: BTreeMap::new(),
            stage: DistillStage::WeightSource,
            before: None,
            saved: None,
        }
    }

    /// Where weights go that are made before they are written.
    fn spill(&self) -> Result<&ScratchStore> {
        self.spill.as_deref().ok_or_else(|| {
            let what = "there is no place for weights that are made before they are written";
            Error::new(Kind::Usage, what)
        })
    }

    fn tokens(&self) -> &Tokens {
        self.tokens.as_ref().expect("a sweep begins first")
    }

    /// The dense network of layer `index`, which is `moe`.
    fn decided(
        &self,
        index: usize,
        moe: &Moe,
        sums: &LayerSums,
        inputs: &Inputs<'_>,
    ) -> Result<DecidedLayer> {
        let choose = || student(index, moe, sums, &self.options, self.width);
        let (mut network, mut record) = self.compute.stage("neurons", Work::UNCOUNTED, choose)?;
        // Nothing is left to fit where the network gives what the mixture gives.
        if self.options.down == Down::Ridge && record.kept != Kept::Exactly {
            let fitted = fit(index, &network, inputs, self.tokens(), &self.compute, self.spill()?)?;
            network.down.weight = fitted.down;
            record.fit = Some(DownFit { lambda: fitted.lambda, tried: fitted.tried });
        }
        let record =
            LayerRecord { layer: index, distilled: Some(record), ..LayerRecord::default() };
        Ok(DecidedLayer {
            ffn: Ffn::Dense(Box::new(network)),
            record,
            clusters: Vec::new(),
            saliency: Vec::new(),
        })
    }
}

impl Distiller {
    /// Layer `index` after the steps of this stage, or as they were saved.
    fn trained(
        &self,
        index: usize,
        layer: &DecidedLayer,
        inputs: &Inputs<'_>,
    ) -> Result<DecidedLayer> {
        let (network, mut record) =
            (layer.ffn.dense().expect("it was made dense"), layer.record.clone());
        let name = format!("{}.{index}", self.stage.done().replace(' ', "-"));
        let found = self.saved.as_ref().map(|saved| saved.get(&name)).transpose()?.flatten();
        let learned = match found.and_then(|bytes| Learned::of_bytes(&bytes, network)) {
            Some(learned) => learned,
            None => {
                let (seed, training) = (self.options.calibration.seed, &self.options.training);
                let hidden = self.model.hidden;
                let lessons = LayerTrainingData {
                    index,
                    inputs,
                    tokens: self.tokens(),
                    compute: &self.compute,
                    hidden,
                    seed,
                };
                let steps = self.stage.steps(training);
                let train = || train(&lessons, network, steps, training);
                let learned = self.compute.stage("looks", Work::UNCOUNTED, train)?;
                self.saved
                    .as_ref()
                    .map_or(Ok(()), |saved| saved.put(&name, &learned.to_bytes()))?;
                learned
            }
        };
        let mut network = network.clone();
        if let Some([gate, up, down]) = learned.best {
            network.gate.weight = kept(&gate, &network.gate.weight, self.spill()?)?;
            network.up.weight = kept(&up, &network.up.weight, self.spill()?)?;
            network.down.weight = kept(&down, &network.down.weight, self.spill()?)?;
        }
        record.distilled.iter_mut().for_each(|record| record.trained.push(learned.trained.clone()));
        Ok(DecidedLayer {
            ffn: Ffn::Dense(Box::new(network)),
            record,
            clusters: Vec::new(),
            saliency: Vec::new(),
        })
    }

    fn changes(&self, index: usize) -> bool {
        let record = self.layers.get(&index).and_then(|layer| layer.record.distilled.as_ref());
        record.is_some_and(|record| record.kept != Kept::Exactly)
    }
}

impl LayerPass for Distiller {
    fn text(&self) -> &CalibrationOptions {
        &self.options.calibration
    }

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

    fn looks_ahead(&self) -> bool {
        false
    }

    fn sweeps_once(&self) -> bool {
        !self.options.training.trains()
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
        // In f64 two Gram matrices, one of them with λ, and its factor; products with what comes
        // out.
        let (width, hidden) = (self.width as u64, self.model.hidden as u64);
        let fit = if self.options.down == Down::Ridge {
            8 * (4 * width * width + 5 * width * hidden)
        } else {
            0
        };
        // In f32 three matrices: they, their gradients, two moments, and the best; and what is
        // looked at.
        let tokens = text.tokens as u64;
        let gathered = (4 * 2 * tokens * hidden).min(GATHERED_BYTES as u64);
        // Samples of each block, then put together.
        let samples = 2 * gathered + 4 * 2 * tokens.min(LOOKED_AT as u64) * hidden;
        let batch = tokens.min(self.options.training.batch_tokens as u64);
        let training = 4 * 5 * 3 * width * hidden + samples + step_bytes(batch, width, hidden);
        let training = if self.options.training.trains() { training } else { 0 };
        // Experts are aligned before anything is fitted, or for the baseline that the result is
        // measured beside.
        let has_baseline = !self.options.no_baseline && !self.options.measuring.held_out.is_empty();
        let aligns = has_baseline || matches!(self.options.init, Init::Mean | Init::UsageMean);
        let aligning = if aligns { aligning_bytes(&self.model) } else { 0 };
        fit.max(training).max(aligning)
    }

    fn begin(&mut self, calibration: &Calibration) {
        self.tokens = Some(Tokens::new(calibration));
    }

    fn again(&mut self) -> bool {
        let Some(next) = self.stage.next(&self.options.training) else { return false };
        self.stage = next;
        self.before = Some((self.layers.clone(), std::mem::take(&mut self.errors)));
        true
    }

    fn stage(&self) -> Option<&'static str> {
        self.options.training.trains().then(|| self.stage.done())
    }

    fn take_back(&mut self) {
        let Some((layers, errors)) = self.before.take() else { return };
        self.errors = errors;
        for (index, before) in layers {
            // Records go on to say what was tried.
            self.layers.entry(index).and_modify(|layer| layer.ffn = before.ffn);
        }
    }

    fn saves(&self) -> bool {
        self.options.training.trains()
    }

    fn save_in(&mut self, saved: Saved) {
        self.saved = Some(saved);
    }

    fn survey(&mut self, _: &Calibration) -> Option<&mut dyn Observer> {
        None
    }

    fn finish(&mut self) -> Result<LayerEdits> {
        let mut layers = self.layers.clone();
        for (index, error) in &self.errors {
            let record = layers.get_mut(index).and_then(|layer| layer.record.distilled.as_mut());
            record.into_iter().for_each(|record| record.output_error = error.relative());
        }
        let by = match self.options.forcing {
            Forced::Student => DecidedBy::Sequence,
            Forced::Teacher => DecidedBy::OriginalText,
        };
        Ok(LayerEdits { by, layers, attention: BTreeMap::new() })
    }
}

impl Converter for Distiller {
    fn forcing(&self) -> Forcing {
        match self.options.forcing {
            _ if self.stage == DistillStage::TrainOnOwn => Forcing::Student,
            Forced::Student => Forcing::Student,
            Forced::Teacher => Forcing::Teacher,
        }
    }

    fn convert(&mut self, index: usize, inputs: &Inputs<'_>) -> Result<Option<Converted>> {
        self.compared = 0;
        if self.stage != DistillStage::WeightSource {
            let Some(layer) = self.layers.get(&index) else { return Ok(None) };
            if !self.changes(index) {
                return Ok(Some(layer.ffn.clone().into()));
            }
            let layer = self.trained(index, layer, inputs)?;
            let ffn = layer.ffn.clone();
            self.layers.insert(index, layer);
            return Ok(Some(ffn.into()));
        }
        let Some(observer) = self.observer.take() else { return Ok(None) };
        let sums = observer.finish(index)?;
        let Ffn::Moe(moe) = &self.model.layers[index].ffn else { return Ok(None) };
        let layer = self.decided(index, moe, &sums, inputs)?;
        let ffn = layer.ffn.clone();
        self.layers.insert(index, layer);
        Ok(Some(ffn.into()))
    }

    /// What held-out tokens say; all of them, where there are none.
    fn converted(&mut self, index: usize, original: &Tensor, converted: &Tensor) -> Result<()> {
        let fail = |e| failed(index, e);
        let first = self.compared;
        self.compared += original.dim(0).map_err(fail)?;
        let part = if self.tokens().count(BlockPart::HeldOut) > 0 {
            BlockPart::HeldOut
        } else {
            BlockPart::Decide
        };
        let (rows, _) = self.tokens().of(part, first..self.compared);
        if rows.is_empty() {
            return Ok(());
        }
        let pick =
            |t: &Tensor| t.index_select(&Tensor::from_slice(&rows, rows.len(), t.device())?, 0);
        let layer = self.errors.entry(index).or_default();
        let mut add = || layer.add(&pick(original)?, &pick(converted)?);
        add().map_err(fail)
    }
}

impl Observer for Distiller {
    fn wants(&self) -> Wants {
        Wants { experts: self.stage == DistillStage::WeightSource, left_out: false }
    }

    fn ffn_input(&mut self, layer: usize, x: &Tensor) -> Result<()> {
        let Some(moe) =
            self.model.layers[layer].ffn.moe().filter(|_| self.stage == DistillStage::WeightSource)
        else {
            return Ok(());
        };
        if self.observer.is_none() {
            let samples =
                self.options.init == Init::Select && self.options.score.needs_all_outputs();
            self.observer = Some(LayerObserver::new(moe, self.tokens(), samples, &self.compute)?);
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

    fn sampled(&mut self, _: usize) -> Vec<u32> {
        let hidden = self.model.hidden;
        self.observer.as_mut().map_or_else(Vec::new, |observer| observer.sampled(hidden))
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
