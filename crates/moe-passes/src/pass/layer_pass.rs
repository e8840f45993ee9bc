//! Passes that decide layer by layer in a sweep over text.

use std::collections::BTreeMap;
use std::sync::Arc;

use moe_checkpoint::Saved;
use moe_forward::{Calibration, Converter, Observer};
use moe_model::{Attention, Ffn, Model, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{LayerRecord, Pool};
use crate::calibrate::CalibrationOptions;

/// Edits of layers, decided in sweeps over text.
pub struct LayerSweep {
    /// The text of the sweeps.
    pub text: CalibrationOptions,
    /// Further text, some of which may join `text`.
    pub pool: Option<Pool>,
    /// The pass that decides in the first sweep.
    pub pass: Box<dyn LayerPass>,
    /// Stages that decide again, each in a sweep of its own.
    pub stages: Vec<Box<dyn LayerStage>>,
}

impl LayerSweep {
    /// One sweep of `pass` over `text`.
    pub(crate) fn new(text: &CalibrationOptions, pass: impl LayerPass + 'static) -> Self {
        Self { text: text.clone(), pool: None, pass: Box::new(pass), stages: Vec::new() }
    }
}

/// The size of text, and how it goes through a sweep.
#[derive(Debug, Clone, Copy)]
pub struct SweptText {
    /// The number of all its tokens.
    pub tokens: usize,
    /// The number of tokens that go through a layer together.
    pub block: usize,
    /// Whether hidden states of all tokens are in memory, rather than in a scratch file.
    pub in_memory: bool,
}

/// Decides layer by layer in a sweep, where each layer sees what the converted layers before it
/// give.
///
/// Before anything runs, it is asked what it will take ([`LayerPass::flops`],
/// [`LayerPass::working_bytes`]) and shown the tokens ([`LayerPass::check_text`]). A run then calls
/// [`LayerPass::begin`]; sweeps over the original model if [`LayerPass::survey`] gives an observer;
/// sweeps, observing and converting one layer after the other through the [`Converter`]; and calls
/// [`LayerPass::finish`]. In a run of several passes, the pass before puts each layer into
/// [`LayerPass::model_mut`] just before it is converted.
pub trait LayerPass: Converter + Send + Sync {
    /// Refuses text and pool that have too few tokens to decide on.
    ///
    /// # Errors
    /// [`moe_model::Kind::Usage`].
    fn check_text(&self, text: &Calibration, pool: Option<&Calibration>) -> Result<()> {
        let _ = (text, pool);
        Ok(())
    }

    /// The minimum number of tokens, in sequences of `sequence`, that [`LayerPass::check_text`]
    /// accepts.
    fn least_tokens(&self, sequence: usize) -> usize {
        let _ = sequence;
        0
    }

    /// The model that it converts. Where another pass decides that model's layers in the same
    /// sweep, each layer is put there just before it is converted, and the whole model before
    /// [`LayerPass::finish`].
    fn model_mut(&mut self) -> &mut Model;

    /// The approximate number of floating-point operations that deciding on `tokens` tokens in
    /// sequences of `sequence` takes, including stages.
    fn flops(&self, tokens: usize, sequence: usize) -> f64;

    /// The maximum number of bytes that it holds for `text` in any of its stages, in addition to
    /// the sweep's states and a layer's weights.
    fn working_bytes(&self, text: SweptText) -> u64 {
        let _ = text;
        0
    }

    /// Whether [`LayerPass::survey`] must see the whole original model before the first layer is
    /// converted.
    fn looks_ahead(&self) -> bool {
        false
    }

    /// Receives the tokens of the sweep that is about to start.
    fn begin(&mut self, calibration: &Calibration);

    /// The observer of a sweep of `sample` over the original model; None where it doesn't look
    /// ahead.
    fn survey(&mut self, sample: &Calibration) -> Option<&mut dyn Observer> {
        let _ = sample;
        None
    }

    /// The edits of all layers, after the sweep.
    ///
    /// # Errors
    /// If a weight can't be read.
    fn finish(&mut self) -> Result<LayerEdits>;
}

/// Decides all layers again, in another sweep over the original model and the same text.
///
/// A run calls [`LayerStage::begin`], sweeps, and calls [`LayerStage::finish`], whose result is
/// measured where there is held-out text. Where it is no better than the result before the stage,
/// [`LayerStage::taken_back`] gives the edits that the next stage starts from, and that the run
/// ends with.
pub trait LayerStage: Converter + Send + Sync {
    /// The name of the stage in reports.
    fn name(&self) -> &'static str;

    /// Receives the edits `so_far` and the tokens of the sweep that is about to start. Its steps
    /// are so expensive that a killed run must not repeat them, so it stores them in `saved`.
    fn begin(&mut self, calibration: &Calibration, so_far: LayerEdits, saved: Arc<Saved>);

    /// The edits of this stage.
    fn finish(&mut self) -> LayerEdits;

    /// The edits from before this stage, with records that say what it tried.
    fn taken_back(&mut self) -> LayerEdits;
}

/// The data that decisions about experts are based on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DecidedBy {
    /// Weights, or chance: no data.
    Weights,
    /// Statistics of the original model.
    OriginalStatistics,
    /// Text, layer by layer, through the original's layers.
    OriginalText,
    /// Text, layer by layer, through the converted layers (sequential calibration).
    Sequence,
    /// A plan that was given.
    GivenPlan,
}

/// The decisions about each layer that changes.
#[derive(Clone)]
pub struct LayerEdits {
    /// The data that the decisions are based on.
    pub by: DecidedBy,
    /// Feed-forward blocks that change, by layer.
    pub layers: BTreeMap<usize, DecidedLayer>,
    /// Attention that changes, by layer.
    pub attention: BTreeMap<usize, Attention>,
}

/// The edit of one layer. Layers for multi-token prediction are numbered after the others.
#[derive(Clone)]
pub struct DecidedLayer {
    /// The converted feed-forward block.
    pub ffn: Ffn,
    /// The record of how it is made.
    pub record: LayerRecord,
    /// For each expert that is left: the expert whose router row it keeps, then those merged into
    /// it.
    pub clusters: Vec<Vec<usize>>,
    /// The score that ranked each expert; empty where none did.
    pub saliency: Vec<f64>,
}
