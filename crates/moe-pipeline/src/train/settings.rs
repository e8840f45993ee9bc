//! Options of a training that may change when it is resumed, and the log's record of them.

use moe_passes::TrainOptions;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Options that may change when a training is resumed.
pub(super) const CHANGEABLE: [&str; 3] = ["learning-rate", "clip", "patience"];

/// The options that may change when training is resumed, as they were from a step on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Settings {
    /// Number of steps that were taken before.
    pub after_step: u64,
    /// The peak learning rate.
    pub learning_rate: f64,
    /// The norm that gradients are limited to; 0 for no limit.
    pub clip: f64,
    /// Number of measurements without improvement after which training stops; 0 for never.
    pub patience: u64,
}

impl Settings {
    pub(super) fn new(after_step: u64, options: &TrainOptions) -> Self {
        let TrainOptions { learning_rate, clip, patience, .. } = *options;
        Self { after_step, learning_rate, clip, patience }
    }

    /// Whether the values are the same, from any step on.
    pub(super) fn same(&self, other: &Self) -> bool {
        *self == Self { after_step: self.after_step, ..*other }
    }

    /// The note for a training that is resumed with other settings than `before`.
    pub(super) fn changes(&self, before: &Self) -> String {
        let values = |of: &Self| {
            [of.learning_rate.to_string(), of.clip.to_string(), of.patience.to_string()]
        };
        let changed = CHANGEABLE
            .iter()
            .zip(values(before))
            .zip(values(self))
            .filter(|((_, was), is)| was != is);
        let said: Vec<String> = changed
            .map(|((option, was), is)| format!("--{option} is {is}, no longer {was}"))
            .collect();
        format!("after step {}, {}", self.after_step, said.join(", "))
    }

    /// The log's line for these settings.
    pub(super) fn line(&self) -> Value {
        json!({ "step": self.after_step, "settings": self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_said_by_option() {
        let before = Settings { after_step: 0, learning_rate: 1e-3, clip: 1.0, patience: 0 };
        let said =
            Settings { after_step: 4, learning_rate: 5e-4, patience: 2, ..before }.changes(&before);
        assert_eq!(
            said,
            "after step 4, --learning-rate is 0.0005, no longer 0.001, --patience is 2, no longer 0"
        );
    }
}
