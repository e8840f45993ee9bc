//! Options of all that reads calibration text.

use moe_forward::DataSpec;
use moe_model::Result;
use serde::{Deserialize, Serialize};

use crate::usage::{refuse_unused, usage};

/// What text a model is observed on, and how it becomes windows of tokens.
#[derive(Debug, Clone, clap::Args, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct CalibrationOptions {
    /// Calibration text as PATH, LABEL=PATH or LABEL=PATH@WEIGHT; a text file, or JSONL with
    /// "text", "messages", "conversations" or "input_ids". Weights, where all labels have one, are
    /// their shares in decisions.
    #[arg(long, value_name = "DATA", help_heading = "Calibration")]
    #[serde(default)]
    pub data: Vec<DataSpec>,

    /// Documents are cut into windows of this many tokens, each a sequence of its own.
    #[arg(long, value_name = "TOKENS", default_value_t = default_sequence_length(), help_heading = "Calibration")]
    #[serde(default = "default_sequence_length")]
    pub sequence_length: usize,

    /// At most this many tokens of each label, in windows drawn at random by --seed. Large text
    /// (more than 4 MiB, and than 16 bytes for each of these tokens) is read at random places only.
    #[arg(long, value_name = "TOKENS", default_value_t = default_data_tokens(), help_heading = "Calibration")]
    #[serde(default = "default_data_tokens")]
    pub data_tokens: usize,

    /// Let windows run across the documents of a label, so that short ones fill them.
    #[arg(long, help_heading = "Calibration")]
    #[serde(default)]
    pub pack: bool,

    /// Leave special tokens out of all statistics; they still take part in the forward pass.
    #[arg(long, help_heading = "Calibration")]
    #[serde(default)]
    pub mask_special: bool,

    /// Seed of everything that is drawn.
    #[arg(long, value_name = "SEED", default_value_t)]
    #[serde(default)]
    pub seed: u64,
}

fn default_sequence_length() -> usize {
    512
}

fn default_data_tokens() -> usize {
    65_536
}

/// Text that a result is measured on.
#[derive(Debug, Clone, clap::Args, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct HeldOutOptions {
    /// Held-out text, as for --data, on which the result is measured against the original, and a
    /// baseline beside it where the pass has one.
    #[arg(long, value_name = "DATA", help_heading = "Measuring")]
    #[serde(default)]
    pub held_out: Vec<DataSpec>,

    /// At most this many tokens of each label of --held-out, the first ones.
    #[arg(long, value_name = "TOKENS", default_value_t = default_held_out_tokens(), help_heading = "Measuring")]
    #[serde(default = "default_held_out_tokens")]
    pub held_out_tokens: usize,
}

fn default_held_out_tokens() -> usize {
    16_384
}

/// Text that a model is measured on; nothing was learned from it.
#[derive(Debug, Clone, Copy)]
pub struct HeldOut<'a> {
    /// The files.
    pub data: &'a [DataSpec],
    /// The number of tokens of a window.
    pub sequence_length: usize,
    /// The maximum number of tokens of a label.
    pub max_tokens: usize,
    /// Whether training measures on it as it goes. Otherwise the run measures its result.
    pub while_training: bool,
}

/// A number as people write it, without dozens of zeros.
pub(crate) fn short(number: f64) -> String {
    if number.abs() < 1e6 { number.to_string() } else { format!("{number:e}") }
}

/// The maximum number of tokens of a window, so that its memory can be counted in 64 bits.
const MAX_SEQUENCE: usize = 1 << 23;

/// Refuses windows and limits that leave no token to predict. `limit` is an option and its value.
///
/// # Errors
/// [`moe_model::Kind::Usage`].
pub fn check_windows(sequence_length: usize, limit: Option<(&str, usize)>) -> Result<()> {
    if sequence_length < 2 {
        let what = format!("--sequence-length {sequence_length} leaves no token to predict");
        return Err(usage(&["--sequence-length"], what, "give at least 2, such as 512"));
    }
    if sequence_length > MAX_SEQUENCE {
        let what =
            format!("--sequence-length {sequence_length} is longer than any model's context");
        return Err(usage(
            &["--sequence-length"],
            what,
            format!("give at most {MAX_SEQUENCE}, such as 512"),
        ));
    }
    match limit {
        Some((option, tokens @ 0..2)) => {
            let what = format!("{option} {tokens} leaves no token to predict");
            Err(usage(&[option], what, "give at least 2, such as 65536"))
        }
        _ => Ok(()),
    }
}

/// Refuses a number of tokens for `held_out` text where there is no such text.
pub(crate) fn check_held_out_used(held_out: &[DataSpec], is_given: bool) -> Result<()> {
    refuse_unused(
        [("--held-out-tokens", is_given && held_out.is_empty())],
        "says how much of --held-out is read, and there is no --held-out",
        "give --held-out TEXT",
    )
}

impl CalibrationOptions {
    /// Refuses numbers that leave no text.
    ///
    /// # Errors
    /// [`moe_model::Kind::Usage`].
    pub fn check(&self) -> Result<()> {
        check_windows(self.sequence_length, Some(("--data-tokens", self.data_tokens)))
    }

    /// Refuses options of text where there is no `--data`, as far as their values show that they
    /// were given. Where `measures` is true, held-out text uses the windows too.
    ///
    /// # Errors
    /// [`moe_model::Kind::Usage`].
    pub fn check_used(&self, measures: bool) -> Result<()> {
        if !self.data.is_empty() {
            return Ok(());
        }
        let idle = [
            ("--data-tokens", self.data_tokens != default_data_tokens()),
            ("--pack", self.pack),
            ("--mask-special", self.mask_special),
            ("--sequence-length", self.sequence_length != default_sequence_length() && !measures),
        ];
        refuse_unused(
            idle,
            "says how text is read, and there is no --data to read",
            "give --data TEXT",
        )
    }
}

/// Refuses to leave out a baseline where nothing is measured.
///
/// # Errors
/// [`moe_model::Kind::Usage`].
pub(crate) fn check_baseline_used(no_baseline: bool, held_out: &HeldOutOptions) -> Result<()> {
    refuse_unused(
        [("--no-baseline", no_baseline && !held_out.is_given())],
        "says what is measured on --held-out, and there is none",
        "give --held-out TEXT",
    )
}

impl HeldOutOptions {
    /// Refuses a limit that leaves nothing to measure on.
    pub(crate) fn check(&self) -> Result<()> {
        match self.held_out_tokens {
            tokens @ 0..2 => Err(usage(
                &["--held-out-tokens"],
                format!("--held-out-tokens {tokens} leaves no token to predict"),
                "give at least 2, such as 16384; without --held-out nothing is measured",
            )),
            tokens => check_held_out_used(&self.held_out, tokens != default_held_out_tokens()),
        }
    }

    /// Whether there is text to measure on.
    pub(crate) fn is_given(&self) -> bool {
        !self.held_out.is_empty()
    }

    /// The text, in windows as long as those of `calibration`; None without files.
    pub(crate) fn text(&self, calibration: &CalibrationOptions) -> Option<HeldOut<'_>> {
        let sequence_length = calibration.sequence_length;
        self.is_given().then_some(HeldOut {
            data: &self.held_out,
            sequence_length,
            max_tokens: self.held_out_tokens,
            while_training: false,
        })
    }
}

impl Default for HeldOutOptions {
    fn default() -> Self {
        Self { held_out: Vec::new(), held_out_tokens: default_held_out_tokens() }
    }
}

impl Default for CalibrationOptions {
    fn default() -> Self {
        Self {
            data: Vec::new(),
            sequence_length: default_sequence_length(),
            data_tokens: default_data_tokens(),
            pack: false,
            mask_special: false,
            seed: 0,
        }
    }
}
