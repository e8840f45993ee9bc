//! The options of `quantize`.

use clap::ValueEnum;
use moe_checkpoint::quantization::{
    Blocks, CompressedTensors, Integers, Quantization, Scheme, SchemeGroup,
};
use moe_forward::DataSpec;
use moe_model::{Packing, Result};
use serde::{Deserialize, Serialize};

use super::scheme::{SchemeParser, WeightScheme};
use crate::calibrate::{CalibrationOptions, HeldOutOptions};
use crate::usage::usage;

/// Options of `quantize`.
#[derive(Debug, Clone, clap::Args, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct QuantizeOptions {
    /// Scheme of the weights, w4a16 unless told otherwise.
    #[arg(long, value_parser = SchemeParser)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheme: Option<WeightScheme>,

    /// Integers of several bit widths, in place of --scheme: quantized weights take at most this
    /// many bits of the file on average, scales and zero points included. Layers get bit widths by
    /// what these cost their outputs on the text of --data.
    #[arg(long, value_name = "BITS", conflicts_with = "scheme")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_bits: Option<f64>,

    /// Bit widths that --target-bits chooses from.
    #[arg(long, value_enum, default_value_t, requires = "target_bits")]
    #[serde(default)]
    pub profile: Profile,

    /// Method that chooses codes; gptq for integers and rtn for floats unless given.
    #[arg(long, value_enum)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub solver: Option<SolverChoice>,

    /// Columns that share a scale: 32, 64 or 128, or -1 for whole rows. For integers only.
    #[arg(long, value_name = "COLUMNS", default_value_t = default_group_size(), allow_negative_numbers = true)]
    #[serde(default = "default_group_size")]
    pub group_size: i64,

    /// Give every group a zero point. Engines run symmetric experts best.
    #[arg(long)]
    #[serde(default)]
    pub asymmetric: bool,

    /// Format of the result; by default the one that most loaders know for the scheme.
    #[arg(long, value_enum)]
    #[serde(default)]
    pub format: Option<Format>,

    /// Parts that are quantized besides the routed experts. Routers, norms, embeddings and head
    /// never are.
    #[arg(long, value_enum, value_name = "PART", value_delimiter = ',')]
    #[serde(default)]
    pub include: Vec<QuantizedPart>,

    /// Tokens that each expert is calibrated on.
    #[arg(
        long,
        value_enum,
        value_name = "WHICH",
        default_value_t,
        help_heading = "Tokens of experts"
    )]
    #[serde(default)]
    pub calibrate_on: CalibrateOn,

    /// Calibrate every expert on enough tokens of its own: the same as --calibrate-on per-expert.
    #[arg(long, conflicts_with = "calibrate_on", help_heading = "Tokens of experts")]
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub per_expert: bool,

    /// An expert with fewer tokens than this multiple of its input width is topped up to
    /// it. By default, this and --shrinkage together give a Hessian as many tokens as it has inputs,
    /// which it needs not to be singular.
    #[arg(long, value_name = "FACTOR", default_value_t = half(), help_heading = "Tokens of experts")]
    #[serde(default = "half")]
    pub top_up_below: f64,

    /// The weight of a token is its gate to this power: 0, 1 or 2.
    #[arg(long, value_name = "POWER", default_value_t = default_gate_power(), help_heading = "Tokens of experts")]
    #[serde(default = "default_gate_power")]
    pub gate_power: u8,

    /// Tokens' worth of the whole layer that is mixed into each expert's Hessian of gate and up, as
    /// a multiple of its input width; with --calibrate-on per-expert.
    #[arg(long, value_name = "FACTOR", default_value_t = half(), help_heading = "Tokens of experts")]
    #[serde(default = "half")]
    pub shrinkage: f64,

    /// White noise that is mixed into each expert's Hessian: as much as that many tokens of noise
    /// would add, this factor times its input width, at the mean energy of its inputs. The fewer
    /// tokens an expert has, the more this damps; with --calibrate-on per-expert.
    #[arg(long, value_name = "FACTOR", default_value_t = half(), help_heading = "Tokens of experts")]
    #[serde(default = "half")]
    pub expert_damping: f64,

    /// Experts with more tokens than this multiple of the mean are calibrated on an even selection
    /// of them; 0 for all.
    #[arg(long, value_name = "FACTOR", default_value_t = default_hot_cap(), help_heading = "Tokens of experts")]
    #[serde(default = "default_hot_cap")]
    pub hot_cap: f64,

    /// More text, as for --data, that is scanned for sequences that have tokens for cold experts;
    /// these sequences join the calibration.
    #[arg(long, value_name = "DATA", help_heading = "Tokens of experts")]
    #[serde(default)]
    pub pool: Vec<DataSpec>,

    /// At most this many tokens of each label of --pool are scanned.
    #[arg(long, value_name = "TOKENS", default_value_t = default_pool_tokens(), help_heading = "Tokens of experts")]
    #[serde(default = "default_pool_tokens")]
    pub pool_tokens: usize,

    /// At most this many tokens of the pool join the calibration; as many as --data has unless
    /// given.
    #[arg(long, value_name = "TOKENS", help_heading = "Tokens of experts")]
    #[serde(default)]
    pub pool_added_tokens: Option<usize>,

    /// Share of the mean diagonal that is added to a Hessian's diagonal, ten times as much each
    /// time that it is still singular.
    #[arg(long, value_name = "SHARE", default_value_t = default_damping(), help_heading = "GPTQ")]
    #[serde(default = "default_damping")]
    pub damping: f64,

    /// Solve columns in the order of their energy; groups are fixed beforehand, so that files
    /// needn't store the order.
    #[arg(
        long,
        value_name = "BOOL",
        default_value_t = default_act_order(),
        default_missing_value = "true",
        num_args = 0..=1,
        require_equals = true,
        action = clap::ArgAction::Set,
        help_heading = "GPTQ"
    )]
    #[serde(default = "default_act_order")]
    pub act_order: bool,

    /// Let the range of a group shrink if that reduces the error of its outputs. Better for groups
    /// of 128 at 4 bits; worse for groups of 32 at 3 bits, and at 2 bits, where it cost 18 to 30 %
    /// of KL.
    #[arg(long, help_heading = "GPTQ")]
    #[serde(default)]
    pub clip_search: bool,

    #[command(flatten)]
    #[serde(flatten)]
    #[allow(missing_docs)]
    pub measuring: HeldOutOptions,

    #[command(flatten)]
    #[serde(flatten)]
    #[allow(missing_docs)]
    pub calibration: CalibrationOptions,
}

/// The bit widths that `--target-bits` chooses from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    /// 4 or 8 bits for a layer, which vLLM and SGLang support.
    #[default]
    Engine,
    /// 2 to 6 or 8 bits for each projection of a layer, which transformers 4.57 supports but no
    /// engine does.
    Free,
}

/// The method that chooses codes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SolverChoice {
    /// Minimizes the error of a matrix's outputs, column after column (2210.17323); needs --data.
    #[default]
    Gptq,
    /// Rounds to the nearest; needs no data. The solver of fp8.
    Rtn,
}

/// The format in which the result is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// pack-quantized or float-quantized, for vLLM, SGLang and transformers.
    CompressedTensors,
    /// Hugging Face's own, for fp8-block.
    Fp8,
    /// GPTQ v1, for GPTQModel and vLLM.
    Gptq,
}

/// A part that can be quantized besides the routed experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QuantizedPart {
    /// Experts that every token goes through.
    Shared,
    /// Projections of attention, in all layers.
    Attention,
}

/// Tokens that each expert is calibrated on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CalibrateOn {
    /// Tokens that are routed to it.
    Routed,
    /// All tokens, as llm-compressor does.
    AllExperts,
    /// Tokens that are routed to it and, where these are too few, those that came closest to it.
    TopUp,
    /// As top-up, with the Hessian of each expert shrunk towards the layer's.
    #[default]
    PerExpert,
}

impl CalibrateOn {
    /// Whether experts with too few tokens get further ones.
    pub(super) fn tops_up(self) -> bool {
        matches!(self, Self::TopUp | Self::PerExpert)
    }
}

pub(super) fn default_group_size() -> i64 {
    128
}

pub(super) fn half() -> f64 {
    0.5
}

pub(super) fn default_hot_cap() -> f64 {
    4.0
}

pub(super) fn default_gate_power() -> u8 {
    1
}

pub(super) fn default_act_order() -> bool {
    true
}

pub(super) fn default_pool_tokens() -> usize {
    262_144
}

pub(super) fn default_damping() -> f64 {
    0.01
}

impl QuantizeOptions {
    /// The same options with what the scheme and other options imply, and `--calibrate-on` in place
    /// of its short form.
    pub(super) fn spelled_out(&self) -> Self {
        let parts = QuantizedPart::value_variants().iter();
        Self {
            scheme: self.target_bits.is_none().then(|| self.scheme()),
            solver: Some(self.solver()),
            format: Some(self.format()),
            include: parts.filter(|part| self.include.contains(part)).copied().collect(),
            calibrate_on: self.calibrate_on(),
            per_expert: false,
            ..self.clone()
        }
    }

    fn scheme(&self) -> WeightScheme {
        self.scheme.unwrap_or_default()
    }

    /// How the result is stored.
    fn format(&self) -> Format {
        let usual = match self.scheme() {
            WeightScheme::Fp8Block => Format::Fp8,
            _ => Format::CompressedTensors,
        };
        self.format.unwrap_or(usual)
    }

    pub(super) fn is_float(&self) -> bool {
        matches!(self.scheme(), WeightScheme::Fp8 | WeightScheme::Fp8Block)
    }

    /// The solver that is used. e4m3 is always rounded to the nearest.
    pub(super) fn solver(&self) -> SolverChoice {
        if self.is_float() { SolverChoice::Rtn } else { self.solver.unwrap_or_default() }
    }

    pub(super) fn calibrate_on(&self) -> CalibrateOn {
        if self.per_expert { CalibrateOn::PerExpert } else { self.calibrate_on }
    }

    /// The number of tokens that an expert needs whose matrices read `hidden` and `width` values.
    pub(super) fn least_tokens(&self, hidden: usize, width: usize) -> usize {
        (self.top_up_below * hidden.max(width) as f64).ceil() as usize
    }

    /// Whether ranges are searched for matrices that may get 2 bits.
    pub(super) fn clips_two_bits(&self) -> bool {
        let may_be_two = match self.target_bits {
            Some(_) => self.profile == Profile::Free,
            None => self.scheme() == WeightScheme::W2a16,
        };
        self.clip_search && self.solver() == SolverChoice::Gptq && may_be_two
    }

    /// The number of columns that share a scale; None for whole rows.
    pub(super) fn group(&self) -> Option<usize> {
        usize::try_from(self.group_size).ok()
    }

    pub(super) fn of_bits(&self, bits: u32) -> Integers {
        Integers { bits, group: self.group(), symmetric: !self.asymmetric }
    }

    /// The encoding of each quantized matrix, unless --target-bits decides.
    pub(super) fn encoding(&self) -> Scheme {
        match self.scheme() {
            WeightScheme::W8a16 => Scheme::Integers(self.of_bits(8)),
            WeightScheme::W4a16 => Scheme::Integers(self.of_bits(4)),
            WeightScheme::W3a16 => Scheme::Integers(self.of_bits(3)),
            WeightScheme::W2a16 => Scheme::Integers(self.of_bits(2)),
            WeightScheme::Fp8 => Scheme::Fp8(Blocks::Rows),
            WeightScheme::Fp8Block => Scheme::Fp8(Blocks::Of([128, 128])),
        }
    }

    pub(super) fn packing(&self) -> Packing {
        if self.format() == Format::Gptq { Packing::Columns } else { Packing::Rows }
    }

    /// The quantization that the config declares.
    ///
    /// # Errors
    /// [`moe_model::Kind::Usage`] for a format that doesn't have this scheme.
    pub(super) fn quantization(&self) -> Result<Quantization> {
        let scheme = self.encoding();
        let compressed = || {
            Quantization::Compressed(CompressedTensors {
                groups: vec![SchemeGroup::linear(scheme)],
                ignore: Vec::new(),
            })
        };
        match (self.format(), scheme) {
            (Format::Fp8, Scheme::Fp8(Blocks::Of(block))) => Ok(Quantization::BlockFp8 { block }),
            (Format::CompressedTensors, _) => Ok(compressed()),
            (Format::Gptq, Scheme::Integers(integers)) => Ok(Quantization::Gptq(integers)),
            (Format::Fp8, _) => Err(usage(
                &["--format", "--scheme"],
                "Hugging Face's fp8 format has blocks of e4m3 only",
                "give --scheme fp8-block, or leave --format out",
            )),
            (Format::Gptq, Scheme::Fp8(_)) => Err(usage(
                &["--format", "--scheme"],
                "the GPTQ format has integers only",
                "give --scheme w4a16, or leave --format out",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Args;

    use super::*;

    #[test]
    fn help_states_the_scheme_that_is_usual() {
        let command = QuantizeOptions::augment_args(clap::Command::new("quantize"));
        let scheme = command.get_arguments().find(|arg| arg.get_long() == Some("scheme")).unwrap();
        let usual = WeightScheme::default().to_possible_value().unwrap();
        let help = scheme.get_help().unwrap().to_string();
        assert!(help.contains(&format!("{} unless told otherwise", usual.get_name())), "{help}");
    }
}
