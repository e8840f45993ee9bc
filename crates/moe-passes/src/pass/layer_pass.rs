//! Decisions that are taken layer by layer in a sweep over text.

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
    /// The text.
    pub text: CalibrationOptions,
    /// More text, of which some may join it.
    pub pool: Option<Pool>,
    /// What decides in the first sweep.
    pub pass: Box<dyn LayerPass>,
    /// What decides once more, each in a sweep of its own.
    pub stages: Vec<Box<dyn LayerStage>>,
}

impl LayerSweep {
    /// One sweep of `pass` over `text`.
    pub(crate) fn new(text: &CalibrationOptions, pass: impl LayerPass + 'static) -> Self {
        Self { text: text.clone(), pool: None, pass: Box::new(pass), stages: Vec::new() }
    }
}

/// How text goes through a sweep.
#[derive(Debug, Clone, Copy)]
pub struct SweptText {
    /// All of its tokens.
    pub tokens: usize,
    /// Tokens that go through a layer together.
    pub block: usize,
    /// Whether hidden states of all tokens are in memory, rather than in a scratch file.
    pub in_memory: bool,
}

/// Decides layer by layer in a sweep, in which what reaches a layer has gone through the converted
/// ones before it.
///
/// Before anything runs, it is asked what it would take ([`LayerPass::flops`],
/// [`LayerPass::working_bytes`]), and shown the tokens ([`LayerPass::check_text`]). When it runs,
/// the order is [`LayerPass::begin`], a sweep over the original model where
/// [`LayerPass::survey`] gives an observer, the sweep, in which it observes and converts one layer
/// after the other as a [`Converter`], and [`LayerPass::finish`]. In a run of several passes, the
/// layers of [`LayerPass::model_mut`] come from the pass before, each just before it is converted.
pub trait LayerPass: Converter + Send + Sync {
    /// Refuses so few tokens of text and pool that nothing could be decided on them.
    ///
    /// # Errors
    /// [`moe_model::Kind::Usage`] then.
    fn check_text(&self, text: &Calibration, pool: Option<&Calibration>) -> Result<()> {
        let _ = (text, pool);
        Ok(())
    }

    /// The least tokens of text in sequences of `sequence` that [`LayerPass::check_text`] takes.
    fn least_tokens(&self, sequence: usize) -> usize {
        let _ = sequence;
        0
    }

    /// The model that it converts. Where another pass decides that model's layers in the same
    /// sweep, each is put there just before it is converted, and the whole model before
    /// [`LayerPass::finish`].
    fn model_mut(&mut self) -> &mut Model;

    /// About how many floating-point operations deciding on `tokens` tokens in sequences of
    /// `sequence` takes, stages included.
    fn flops(&self, tokens: usize, sequence: usize) -> f64;

    /// The most bytes that it holds for `text`, beside the sweep's states and a layer's weights,
    /// in any of its stages.
    fn working_bytes(&self, text: SweptText) -> u64 {
        let _ = text;
        0
    }

    /// Whether [`LayerPass::survey`] must see the whole original model before the first layer is
    /// converted.
    fn looks_ahead(&self) -> bool {
        false
    }

    /// Is told the tokens that are about to come.
    fn begin(&mut self, calibration: &Calibration);

    /// What watches a sweep of `sample` over the original model, where it looks ahead.
    fn survey(&mut self, sample: &Calibration) -> Option<&mut dyn Observer> {
        let _ = sample;
        None
    }

    /// What was decided.
    ///
    /// # Errors
    /// What reading weights returns.
    fn finish(&mut self) -> Result<LayerEdits>;
}

/// Decides all layers once more, in another sweep over the original model and the same text.
///
/// The order is [`LayerStage::begin`], the sweep, and [`LayerStage::finish`], whose result is
/// measured where there is held-out text. Where that is no better than what was there before,
/// [`LayerStage::taken_back`] gives what the next stage goes on from, and what the run ends with.
pub trait LayerStage: Converter + Send + Sync {
    /// What it does, as a report says it.
    fn name(&self) -> &'static str;

    /// Is told what was decided `so_far`, and the tokens that are about to come. Its steps are so
    /// costly that a killed run must not take them again: they go to `saved`.
    fn begin(&mut self, calibration: &Calibration, so_far: LayerEdits, saved: Arc<Saved>);

    /// What was decided now.
    fn finish(&mut self) -> LayerEdits;

    /// What was decided before it, with records that say what it tried.
    fn taken_back(&mut self) -> LayerEdits;
}

/// What decisions rest on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DecidedBy {
    /// On weights, or by chance: no data.
    Weights,
    /// On statistics of the original model.
    OriginalStatistics,
    /// On data, layer by layer, through the original's layers.
    OriginalText,
    /// On data, layer by layer, through the converted layers.
    Sequence,
    /// On a plan that was given.
    GivenPlan,
}

/// What was decided for each layer that changes.
#[derive(Clone)]
pub struct LayerEdits {
    /// What it rests on.
    pub by: DecidedBy,
    /// By layer.
    pub layers: BTreeMap<usize, DecidedLayer>,
    /// Attention that changes, by layer.
    pub attention: BTreeMap<usize, Attention>,
}

/// What becomes of one layer; layers for multi-token prediction are numbered behind the others.
#[derive(Clone)]
pub struct DecidedLayer {
    /// Its feed-forward block.
    pub ffn: Ffn,
    /// How it is made.
    pub record: LayerRecord,
    /// For each expert that is left: the one whose router row it keeps, then what was merged into
    /// it.
    pub clusters: Vec<Vec<usize>>,
    /// What experts were ranked by.
    pub saliency: Vec<f64>,
}
