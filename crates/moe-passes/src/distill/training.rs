//! How long and how fast layers are trained.

use moe_model::Result;
use serde::{Deserialize, Serialize};

use crate::train::{MAX_BATCH, check_steps};
use crate::usage::{refuse_unused, usage};

/// Training of each layer.
#[derive(Debug, Clone, clap::Args, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Training {
    /// Train each layer for this many steps to give what the original layer gives on the same
    /// inputs, which --forcing chooses. 0 trains nothing.
    #[arg(long, value_name = "STEPS", default_value_t = default_steps(), help_heading = "Training")]
    #[serde(default = "default_steps")]
    pub steps: u64,

    /// Then train each layer for this many steps on what reaches it through the trained dense
    /// layers before it.
    #[arg(long, value_name = "STEPS", default_value_t, help_heading = "Training")]
    #[serde(default)]
    pub student_steps: u64,

    /// Tokens of a step.
    #[arg(long, value_name = "TOKENS", default_value_t = default_batch_tokens(), help_heading = "Training")]
    #[serde(default = "default_batch_tokens")]
    pub batch_tokens: usize,

    /// Peak learning rate of AdamW, as a share of the root mean square of each matrix; it rises
    /// over the first twentieth of the steps and falls along a cosine.
    #[arg(long, value_name = "RATE", default_value_t = default_learning_rate(), help_heading = "Training")]
    #[serde(default = "default_learning_rate")]
    pub relative_learning_rate: f64,
}

pub(super) fn default_steps() -> u64 {
    200
}

pub(super) fn default_batch_tokens() -> usize {
    512
}

pub(super) fn default_learning_rate() -> f64 {
    0.1
}

impl Training {
    /// Whether any layer is trained.
    pub(super) fn trains(&self) -> bool {
        self.steps > 0 || self.student_steps > 0
    }

    /// A warning for a learning rate that can hardly train; None for others.
    pub(super) fn warning(&self) -> Option<String> {
        let rate = self.relative_learning_rate;
        let what = "moves weights by many times their size in a step: 0.1 is usual";
        (self.trains() && rate > 10.0).then(|| format!("--relative-learning-rate {rate:e} {what}"))
    }

    /// Refuses values that can't train.
    pub(super) fn check(&self) -> Result<()> {
        match self {
            _ if !self.trains() => self.check_idle(),
            Self { batch_tokens: 0, .. } => {
                Err(usage(&["--batch-tokens"], "--batch-tokens 0 teaches nothing", "give 512, say"))
            }
            Self { relative_learning_rate: rate, .. } if !(rate.is_finite() && *rate > 0.0) => {
                Err(usage(
                    &["--relative-learning-rate"],
                    format!("--relative-learning-rate {rate} is not a learning rate"),
                    "give a positive number, such as 0.1",
                ))
            }
            Self { batch_tokens, .. } if *batch_tokens > MAX_BATCH => Err(usage(
                &["--batch-tokens"],
                format!("--batch-tokens {batch_tokens} is more than a step can take"),
                format!("give at most {MAX_BATCH}, such as 512"),
            )),
            Self { steps, student_steps, .. } => {
                check_steps("--steps", *steps)?;
                check_steps("--student-steps", *student_steps)
            }
        }
    }

    /// Refuses options of training where no layer is trained.
    fn check_idle(&self) -> Result<()> {
        let idle = [
            ("--batch-tokens", self.batch_tokens != default_batch_tokens()),
            ("--relative-learning-rate", self.relative_learning_rate != default_learning_rate()),
        ];
        refuse_unused(
            idle,
            "says how layers are trained, and --steps 0 trains none",
            "give --steps above 0",
        )
    }
}
