//! Options of passes that train whole models, and the training that a pass asks for.

use clap::ValueEnum;
use moe_checkpoint::counted;
use moe_forward::DataSpec;
use moe_forward::train::{BalanceOver, TeacherKind, TrainedPart};
use moe_model::Result;
use serde::{Deserialize, Serialize};

use crate::calibrate::{HeldOut, check_held_out_used, check_windows};
use crate::pass::{Effect, Kept};
use crate::usage::{idle, refuse_unused, usage};

/// The maximum number of steps: more would take years.
const MAX_STEPS: u64 = 10_000_000;
/// The maximum number of tokens of a batch, and of batches of a step.
pub(crate) const MAX_BATCH: usize = 1 << 20;

/// Refuses more steps than can ever be taken. `option` is the option that gives them.
pub(crate) fn check_steps(option: &str, steps: u64) -> Result<()> {
    if steps <= MAX_STEPS {
        return Ok(());
    }
    Err(usage(
        &[option],
        format!("{option} {steps} is more than can ever be taken"),
        format!("give at most {MAX_STEPS}, such as 1000"),
    ))
}

/// Options of a training: steps, batches, learning rate, precision, measurements.
#[derive(Debug, Clone, PartialEq, clap::Args, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[command(next_help_heading = "Training")]
pub struct TrainOptions {
    /// Maximum number of steps; 0 trains nothing.
    #[arg(long, value_name = "N", default_value_t = default_steps())]
    #[serde(default = "default_steps")]
    pub steps: u64,

    /// Windows of about this many tokens go through the model together.
    #[arg(long, value_name = "TOKENS", default_value_t = default_batch_tokens())]
    #[serde(default = "default_batch_tokens")]
    pub batch_tokens: usize,

    /// Batches whose gradients are accumulated for a step.
    #[arg(long, value_name = "N", default_value_t = one())]
    #[serde(default = "one")]
    pub accumulate: usize,

    /// Peak learning rate of AdamW (β 0.9 and 0.95), which falls to 0 along half a cosine.
    #[arg(long, value_name = "RATE", default_value_t = default_learning_rate())]
    #[serde(default = "default_learning_rate")]
    pub learning_rate: f64,

    /// Steps over which the learning rate first rises from 0 [default: a twentieth of --steps].
    #[arg(long, value_name = "STEPS")]
    #[serde(default)]
    pub warmup: Option<u64>,

    /// Decoupled weight decay, of all that is trained but norms and biases.
    #[arg(long, value_name = "DECAY", default_value_t = default_weight_decay())]
    #[serde(default = "default_weight_decay")]
    pub weight_decay: f64,

    /// Maximum norm of all gradients together; 0 for no limit.
    #[arg(long, value_name = "NORM", default_value_t = one_f64())]
    #[serde(default = "one_f64")]
    pub clip: f64,

    /// Precision that matrices are rounded to while they are used; masters, moments and sums of
    /// gradients are f32 in either case.
    #[arg(long, value_enum, default_value_t)]
    #[serde(default)]
    pub precision: Precision,

    /// Measure on --held-out after every this many steps, and save a state for --resume; 0 for only
    /// at the end.
    #[arg(long, value_name = "STEPS", default_value_t = default_eval_every())]
    #[serde(default = "default_eval_every")]
    pub eval_every: u64,

    /// Stop after this many measurements without an improvement; 0 for never.
    #[arg(long, value_name = "N", default_value_t)]
    #[serde(default)]
    pub patience: u64,
}

/// The precision of matrices in the forward and backward passes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// All 32 bits.
    #[default]
    F32,
    /// 16 bits, as in most checkpoints: training sees the weights that are written.
    Bf16,
}

fn default_steps() -> u64 {
    200
}

fn default_batch_tokens() -> usize {
    2048
}

fn default_learning_rate() -> f64 {
    2e-4
}

fn default_weight_decay() -> f64 {
    0.01
}

fn default_eval_every() -> u64 {
    20
}

fn one() -> usize {
    1
}

fn one_f64() -> f64 {
    1.0
}

impl TrainOptions {
    /// Refuses values without a meaning.
    ///
    /// # Errors
    /// [`moe_model::Kind::Usage`].
    pub fn check(&self) -> Result<()> {
        self.check_rates()?;
        self.check_batches()?;
        self.check_idle()?;
        let warmup = self.warmup();
        if warmup > self.steps {
            let steps = self.steps;
            let what = format!("a warm-up of {warmup} steps is longer than all {steps} steps");
            return Err(usage(&["--warmup", "--steps"], what, "lower --warmup, or raise --steps"));
        }
        if self.patience > 0 && self.eval_every == 0 {
            let what = "--patience counts measurements, and without --eval-every there is only one";
            return Err(idle(&["--patience"], what, "give --eval-every, or leave --patience out"));
        }
        Ok(())
    }

    /// Refuses rates and norms that are negative or not numbers, and steps at a rate of 0.
    fn check_rates(&self) -> Result<()> {
        let rate = self.learning_rate;
        if !(rate >= 0.0 && rate.is_finite()) {
            let what = format!("--learning-rate {rate} is not a rate");
            return Err(usage(&["--learning-rate"], what, "give a positive number, such as 1e-4"));
        }
        let sizes = [("--weight-decay", self.weight_decay), ("--clip", self.clip)];
        if let Some((option, value)) =
            sizes.into_iter().find(|(_, value)| !(*value >= 0.0 && value.is_finite()))
        {
            let what = format!("{option} {value} is negative or not a number");
            return Err(usage(&[option], what, "give a number of 0 or more"));
        }
        if rate == 0.0 && self.steps > 0 {
            return Err(usage(
                &["--learning-rate"],
                "--learning-rate 0 trains nothing",
                "give a positive number, such as 1e-4; or --steps 0",
            ));
        }
        Ok(())
    }

    /// Refuses steps without tokens, and more steps or tokens than can ever be taken.
    fn check_batches(&self) -> Result<()> {
        let sizes = [("--batch-tokens", self.batch_tokens), ("--accumulate", self.accumulate)];
        if let Some((option, _)) = sizes.into_iter().find(|(_, size)| *size == 0) {
            let what = "--batch-tokens or --accumulate is 0: a step would have no tokens";
            let remedy = "give --batch-tokens and --accumulate of 1 or more";
            return Err(usage(&[option], what, remedy));
        }
        check_steps("--steps", self.steps)?;
        for (option, number) in sizes {
            if number > MAX_BATCH {
                let what = format!("{option} {number} is more than a step can take");
                let remedy = format!("give at most {MAX_BATCH}");
                return Err(usage(&[option], what, remedy));
            }
        }
        Ok(())
    }

    /// Refuses options of steps where none is taken.
    fn check_idle(&self) -> Result<()> {
        if self.steps > 0 {
            return Ok(());
        }
        let idle = [
            ("--learning-rate", self.learning_rate != default_learning_rate()),
            ("--weight-decay", self.weight_decay != default_weight_decay()),
            ("--clip", self.clip != one_f64()),
            ("--accumulate", self.accumulate != one()),
            ("--warmup", self.warmup.is_some()),
            ("--patience", self.patience != 0),
        ];
        refuse_unused(
            idle,
            "says how steps are taken, and --steps 0 takes none",
            "give --steps above 0",
        )
    }

    /// The maximum number of tokens that all steps see, in windows of `length`; those of one batch
    /// where no step is taken.
    pub fn most_tokens(&self, length: usize) -> usize {
        let batches = usize::try_from(self.steps.max(1))
            .unwrap_or(usize::MAX)
            .saturating_mul(self.accumulate);
        batches.saturating_mul(self.batch_tokens.max(length))
    }

    /// The number of steps over which the learning rate rises.
    pub fn warmup(&self) -> u64 {
        self.warmup.unwrap_or(self.steps / 20)
    }
}

/// The routers' part in a training: auxiliary losses and capacity.
#[derive(Debug, Clone, PartialEq, clap::Args, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[command(next_help_heading = "Routers")]
pub struct RouterOptions {
    /// Weight of the load-balancing loss, E Σ f P with the fractions f of tokens that went to each
    /// expert (2101.03961).
    #[arg(long, value_name = "WEIGHT", default_value_t = default_balance())]
    #[serde(default = "default_balance")]
    pub balance: f64,

    /// Balance each layer by itself, or all layers together, as transformers does.
    #[arg(long, value_enum, default_value_t)]
    #[serde(default)]
    pub balance_over: Over,

    /// Weight of the router z-loss, the mean of (log Σ exp z)² (2202.08906); 0.001 is usual.
    #[arg(long, value_name = "WEIGHT", default_value_t)]
    #[serde(default)]
    pub z_loss: f64,

    /// While training, let an expert take this many times its even share of a batch, and drop the
    /// rest, as Switch does.
    #[arg(long, value_name = "FACTOR")]
    #[serde(default)]
    pub capacity_factor: Option<f64>,
}

/// The scope of a balance loss.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Over {
    /// Each layer.
    #[default]
    Layer,
    /// The model.
    Model,
}

fn default_balance() -> f64 {
    0.01
}

impl RouterOptions {
    /// Refuses values without a meaning.
    ///
    /// # Errors
    /// [`moe_model::Kind::Usage`].
    pub fn check(&self) -> Result<()> {
        for (option, weight) in [("--balance", self.balance), ("--z-loss", self.z_loss)] {
            if !(weight >= 0.0 && weight.is_finite()) {
                return Err(usage(
                    &[option],
                    format!("{option} {weight} is not a weight"),
                    "give a number of 0 or more",
                ));
            }
        }
        refuse_unused(
            [("--balance-over", self.balance_over != Over::default() && self.balance == 0.0)],
            "says what is balanced, and --balance 0 balances nothing",
            "give --balance above 0",
        )?;
        match self.capacity_factor {
            Some(factor) if !(factor > 0.0 && factor.is_finite()) => Err(usage(
                &["--capacity-factor"],
                format!("--capacity-factor {factor} lets no expert take a token"),
                "give a number above 0",
            )),
            _ => Ok(()),
        }
    }

    /// The name of an option that was given, and that has no effect on a model without routers.
    pub(crate) fn given(&self) -> Option<&'static str> {
        let options = [
            ("--balance", self.balance != default_balance() && self.balance != 0.0),
            ("--balance-over", self.balance_over != Over::default()),
            ("--z-loss", self.z_loss != 0.0),
            ("--capacity-factor", self.capacity_factor.is_some()),
        ];
        options.into_iter().find(|(_, is_given)| *is_given).map(|(option, _)| option)
    }

    /// The layers that a balance loss is taken over, as the forward pass takes them.
    pub fn over(&self) -> BalanceOver {
        match self.balance_over {
            Over::Layer => BalanceOver::Layers,
            Over::Model => BalanceOver::Model,
        }
    }
}

/// Text to train on.
#[derive(Debug, Clone, PartialEq, clap::Args, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[command(next_help_heading = "Text")]
pub struct TrainingText {
    /// Text to train on as PATH or LABEL=PATH; a text file, or JSONL with "text", "messages",
    /// "conversations" or "input_ids".
    #[arg(long, value_name = "DATA", required = true)]
    pub data: Vec<DataSpec>,

    /// Documents are cut into windows of this many tokens, each a sequence of its own.
    #[arg(long, value_name = "TOKENS", default_value_t = default_sequence_length())]
    #[serde(default = "default_sequence_length")]
    pub sequence_length: usize,

    /// At most this many tokens of each label, in windows drawn at random by --seed, large text at
    /// random places only [default: as many as all steps see].
    #[arg(long, value_name = "TOKENS")]
    #[serde(default)]
    pub data_tokens: Option<usize>,

    /// Let windows run across the documents of a label, so that short ones fill them.
    #[arg(long)]
    #[serde(default)]
    pub pack: bool,

    /// Held-out text, as for --data: the weights that measure best on it are written. Without it,
    /// those of the last step
    #[arg(long, value_name = "DATA")]
    #[serde(default)]
    pub held_out: Vec<DataSpec>,

    /// At most this many tokens of each label of --held-out, the first ones.
    #[arg(long, value_name = "TOKENS", default_value_t = default_held_out_tokens())]
    #[serde(default = "default_held_out_tokens")]
    pub held_out_tokens: usize,

    /// Seed of everything that is drawn.
    #[arg(long, value_name = "SEED", default_value_t)]
    #[serde(default)]
    pub seed: u64,
}

fn default_sequence_length() -> usize {
    512
}

fn default_held_out_tokens() -> usize {
    8192
}

impl TrainingText {
    /// Refuses numbers that leave no text to train or to measure on.
    ///
    /// # Errors
    /// [`moe_model::Kind::Usage`].
    pub fn check(&self) -> Result<()> {
        check_windows(
            self.sequence_length,
            self.data_tokens.map(|tokens| ("--data-tokens", tokens)),
        )?;
        check_windows(self.sequence_length, Some(("--held-out-tokens", self.held_out_tokens)))?;
        check_held_out_used(&self.held_out, self.held_out_tokens != default_held_out_tokens())
    }

    /// The maximum number of tokens of each label: unless given, as many as all steps of `options`
    /// see.
    pub fn most_tokens(&self, options: &TrainOptions) -> usize {
        self.data_tokens.unwrap_or_else(|| options.most_tokens(self.sequence_length))
    }

    /// Text that the training is measured on; None without --held-out.
    pub(crate) fn held_out(&self) -> Option<HeldOut<'_>> {
        (!self.held_out.is_empty()).then_some(HeldOut {
            data: &self.held_out,
            sequence_length: self.sequence_length,
            max_tokens: self.held_out_tokens,
            while_training: true,
        })
    }
}

/// A training of a planned model before it is written.
#[derive(Debug, Clone)]
pub struct Training {
    /// The parts that are trained, in words.
    pub what: String,
    /// The parts that are trained, as the forward pass takes them.
    pub parts: Vec<TrainedPart>,
    /// Steps, learning rate and the like.
    pub options: TrainOptions,
    /// Losses of routers, in addition to the loss of next tokens.
    pub routers: RouterOptions,
    /// The text to train on and to measure on.
    pub text: TrainingText,
    /// How the teacher is used, which is the first of [`crate::Inputs::models`]; None without a
    /// teacher.
    pub teacher: Option<TeacherOptions>,
}

impl Training {
    /// The effect of the `steps` that were taken on the function; a plan knows only their maximum
    /// number. None for 0 steps.
    pub fn effect(&self, steps: u64) -> Option<Effect> {
        (steps > 0).then(|| {
            let why = format!("{} trained for {}", self.what, counted(steps, "step"));
            Effect::new("train", Kept::No, why)
        })
    }
}

/// How a teacher is used in training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TeacherOptions {
    /// Weight of KL(teacher ‖ model); the loss of next tokens has the rest of 1.
    pub weight: f64,
    /// How much of the teacher's distribution is used.
    pub kind: TeacherKind,
}
