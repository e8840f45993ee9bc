//! Options of a training that may be changed when it goes on, and where the log says what they were.

use moe_passes::TrainOptions;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Options that may be changed when a training goes on.
pub(super) const CHANGEABLE: [&str; 3] = ["learning-rate", "clip", "patience"];

/// What these were from a step on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Steps that were taken before.
    pub after_step: u64,
    /// The highest learning rate.
    pub learning_rate: f64,
    /// The norm that gradients are limited to; 0 for no limit.
    pub clip: f64,
    /// Measurements without a better one before it ends; 0 for no end.
    pub patience: u64,
}

impl Settings {
    pub(super) fn new(after_step: u64, options: &TrainOptions) -> Self {
        let TrainOptions { learning_rate, clip, patience, .. } = *options;
        Self { after_step, learning_rate, clip, patience }
    }

    /// Whether both say the same, from whichever step on.
    pub(super) fn same(&self, other: &Self) -> bool {
        *self == Self { after_step: self.after_step, ..*other }
    }

    /// A line of the log.
    pub(super) fn line(&self) -> Value {
        json!({ "step": self.after_step, "settings": self })
    }
}
