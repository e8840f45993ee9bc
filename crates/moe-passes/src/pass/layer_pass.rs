//! Decisions that are taken layer by layer in a sweep over text.

use std::collections::BTreeMap;

use moe_checkpoint::Saved;
use moe_forward::{Calibration, Converter, Observer};
use moe_model::{Attention, Ffn, Model, Result};
use serde::Serialize;

use super::LayerRecord;
use crate::calibrate::CalibrationOptions;
use crate::quantize::PoolStats;

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
pub trait LayerPass: Converter + Send + Sync {
    /// The text.
    fn text(&self) -> &CalibrationOptions;

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

    /// Whether it must see the whole model before it converts the first layer.
    fn looks_ahead(&self) -> bool;

    /// Whether one sweep is all that it needs.
    fn sweeps_once(&self) -> bool {
        true
    }

    /// About how many floating-point operations deciding on `tokens` tokens in sequences of
    /// `sequence` takes.
    fn flops(&self, tokens: usize, sequence: usize) -> f64;

    /// The most bytes that it holds for `text`, beside the sweep's states and a layer's weights.
    fn working_bytes(&self, text: SweptText) -> u64 {
        let _ = text;
        0
    }

    /// Whether each expert is left out in turn to see what that does.
    fn leaves_out(&self) -> bool {
        false
    }

    /// Is told the tokens that are about to come.
    fn begin(&mut self, calibration: &Calibration);

    /// More text, of which some may join the calibration.
    fn pool_text(&self) -> Option<CalibrationOptions> {
        None
    }

    /// What chooses of the pool. Sequences of `all` from `own` on are the pool, those before them
    /// the calibration.
    fn pool(&self, all: &Calibration, own: usize) -> Option<Box<dyn Pool>> {
        let _ = (all, own);
        None
    }

    /// What must watch a sweep of `sample` over the original model first.
    fn survey(&mut self, sample: &Calibration) -> Option<&mut dyn Observer>;

    /// Whether all layers shall be converted once more, in a sweep of its own; asked behind each.
    fn again(&mut self) -> bool {
        false
    }

    /// What the sweep that ended did, where each of several gives a whole result that can be
    /// measured.
    fn stage(&self) -> Option<&'static str> {
        None
    }

    /// Takes back what the last of these did, since the one before measured better.
    fn take_back(&mut self) {}

    /// Whether its steps are so costly that a killed run must not take them again;
    /// [`Self::save_in`] is called then.
    fn saves(&self) -> bool {
        false
    }

    /// Is told where to save them.
    fn save_in(&mut self, saved: Saved) {
        let _ = saved;
    }

    /// What was decided; asked for at the end, and behind each [`Self::stage`] before it.
    ///
    /// # Errors
    /// What reading weights returns.
    fn finish(&mut self) -> Result<LayerEdits>;
}

/// Watches a sweep of the original model over a calibration and the pool of text behind it.
pub trait Pool: Observer {
    /// The sequences of the pool that join the calibration, ascending, and what is said of it.
    fn choose(&mut self) -> (Vec<usize>, PoolStats);
}

/// What decisions rest on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
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
