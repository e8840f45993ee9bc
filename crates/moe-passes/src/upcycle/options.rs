//! The options of `upcycle`, on the command line and in recipes.

use std::path::PathBuf;

use clap::ValueEnum;
use moe_forward::DataSpec;
use serde::{Deserialize, Serialize};

use super::layers::LayerChoice;

/// Default standard deviations of routers: normal, almost zero, and almost zero for shards.
const NORMAL_STD: f64 = 0.02;
const ZEROS_STD: f64 = 1e-6;
const SHARDS_STD: f64 = 1e-4;

/// The initialization of experts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Init {
    /// Every expert is a copy of the dense feed-forward network or, with --granularity, of one of
    /// its shards.
    #[default]
    Copy,
    /// Copies with a share of neurons reinitialized, so that experts differ (Drop-Upcycling).
    Drop,
    /// The network's neurons are dealt out among the experts (LLaMA-MoE, CMoE).
    Partition,
}

/// The rule by which a partition groups neurons.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PartitionBy {
    /// At random.
    Random,
    /// Balanced clusters of their gate and up rows.
    #[default]
    Weights,
    /// Balanced clusters of the tokens of --data on which they are most active.
    Activations,
}

/// The initialization of routers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RouterInit {
    /// Entries from a normal distribution of standard deviation --router-std, 0.02 unless given.
    #[default]
    Normal,
    /// Almost zero: noise of standard deviation --router-std, 1e-6 unless given (1e-4 for shards),
    /// so that ties are broken.
    Zeros,
    /// Orthogonal rows, as long as normal ones are on average.
    Orthogonal,
    /// Centroids of the inputs that the feed-forward network sees on --data, apart from their mean.
    Kmeans,
    /// Mean inputs of the feed-forward network on the prompts of --prompts; where rows are scaled,
    /// apart from their mean.
    Prompts,
    /// Token embeddings of the prompts of --prompts, the same in every layer (mergekit's
    /// cheap_embed).
    CheapEmbed,
    /// The inputs on which an expert's neurons are most active on --data; for --init partition.
    Activations,
}

impl RouterInit {
    /// Whether rows come from text, so that --router-entropy can set their scale.
    pub(super) fn is_surveyed(self) -> bool {
        !matches!(self, Self::Normal | Self::Zeros | Self::Orthogonal)
    }

    pub(super) fn takes_prompts(self) -> bool {
        matches!(self, Self::Prompts | Self::CheapEmbed)
    }
}

/// The projections that are scaled to make the mixture equal to the dense network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScalePlacement {
    /// Down projections alone, which keeps the function.
    #[default]
    Exact,
    /// Gate, up and down projections, by the cube root each (Megatron, 2410.07524); changes the
    /// function of gated networks.
    Nvidia,
}

/// The source of all weights but the experts'.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rest {
    /// The model that is upcycled.
    #[default]
    Base,
    /// The mean of the models given by --expert-model (Branch-Train-MiX).
    Average,
}

/// Options of `upcycle`.
#[derive(Debug, Clone, clap::Args, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct UpcycleOptions {
    /// Experts in each layer.
    #[arg(long, value_name = "N")]
    pub experts: usize,

    /// Experts that each token goes to.
    #[arg(long, value_name = "K")]
    pub top_k: usize,

    /// Shards that each dense network is cut into; N and K count shards and are multiples of it.
    /// Shards of one network share their router rows, so that they are chosen together.
    #[arg(long, value_name = "G", default_value_t = one_shard())]
    #[serde(default = "one_shard")]
    pub granularity: usize,

    /// MoE family to write, as its model_type; by default the one that holds the dense family
    /// exactly.
    #[arg(long, value_name = "FAMILY")]
    #[serde(default)]
    pub target: Option<String>,

    /// Layers that get experts: all, every:2 (each second one), or a list such as 0,4-7. The others
    /// stay dense.
    #[arg(long, value_name = "LAYERS", default_value_t)]
    #[serde(default)]
    pub layers: LayerChoice,

    /// Initialization of the experts.
    #[arg(long, value_enum, default_value_t, help_heading = "Experts")]
    #[serde(default)]
    pub init: Init,

    /// A dense model whose networks become experts, in turn with the others given; repeat it for
    /// each.
    #[arg(long = "expert-model", value_name = "DENSE", help_heading = "Experts")]
    #[serde(default, rename = "expert-model")]
    #[serde(serialize_with = "moe_checkpoint::lossy_paths")]
    pub models: Vec<PathBuf>,

    /// With --expert-model: source of all weights but the experts'.
    #[arg(long, value_enum, default_value_t, help_heading = "Experts")]
    #[serde(default)]
    pub rest: Rest,

    /// With --init drop: share of an expert's neurons that are reinitialized.
    #[arg(long, value_name = "SHARE", default_value_t = half(), help_heading = "Experts")]
    #[serde(default = "half")]
    pub drop_fraction: f64,

    /// With --init partition: rule by which neurons are grouped.
    #[arg(long, value_enum, default_value_t, help_heading = "Experts")]
    #[serde(default)]
    pub partition_by: PartitionBy,

    /// Standard deviation of noise that is added to every expert; 0 keeps the function.
    #[arg(long, value_name = "STD", default_value_t, help_heading = "Experts")]
    #[serde(default)]
    pub noise_std: f64,

    /// Share of an expert's weights that get noise.
    #[arg(long, value_name = "SHARE", default_value_t = one(), help_heading = "Experts")]
    #[serde(default = "one")]
    pub noise_fraction: f64,

    /// Projections that are scaled to make the mixture equal to the dense network.
    #[arg(long, value_enum, default_value_t, help_heading = "Experts")]
    #[serde(default)]
    pub scale_placement: ScalePlacement,

    /// Share of the function that the shared expert computes, where the family has one.
    #[arg(long, value_name = "SHARE", default_value_t = half(), help_heading = "Experts")]
    #[serde(default = "half")]
    pub shared_fraction: f64,

    /// Copies of the dense network that the shared expert is made of, where the family has one.
    #[arg(long, value_name = "COUNT", default_value_t = one_shard(), help_heading = "Experts")]
    #[serde(default = "one_shard")]
    pub shared_experts: usize,

    /// With --init partition: neurons of the shared expert, where the family has one; about a
    /// quarter unless given.
    #[arg(long, value_name = "NEURONS", help_heading = "Experts")]
    #[serde(default)]
    pub shared_width: Option<usize>,

    /// Initialization of the routers.
    #[arg(long, value_enum, default_value_t, help_heading = "Routers")]
    #[serde(default)]
    pub router: RouterInit,

    /// Standard deviation of router entries.
    #[arg(long, value_name = "STD", help_heading = "Routers")]
    #[serde(default)]
    pub router_std: Option<f64>,

    /// For routers made from text: rows are scaled until the mean entropy of routing there is this
    /// share of its maximum, ln(experts). 0 leaves rows as long as they are.
    #[arg(long, value_name = "SHARE", default_value_t = nine_tenths(), help_heading = "Routers")]
    #[serde(default = "nine_tenths")]
    pub router_entropy: f64,

    /// JSON file of prompts, one entry for each router row: [{"positive": ["…"], "negative":
    /// ["…"]}, …].
    #[arg(long, value_name = "PROMPTS.json", help_heading = "Routers")]
    #[serde(default)]
    #[serde(serialize_with = "moe_checkpoint::lossy_paths")]
    pub prompts: Option<PathBuf>,

    /// Text that k-means routers and partitions by activation are found on, as PATH or LABEL=PATH;
    /// text, or JSONL.
    #[arg(long, value_name = "DATA", help_heading = "Routers")]
    #[serde(default)]
    pub data: Vec<DataSpec>,

    /// At most this many tokens of each label of --data, the first ones.
    #[arg(long, value_name = "TOKENS", default_value_t = survey_tokens(), help_heading = "Routers")]
    #[serde(default = "survey_tokens")]
    pub data_tokens: usize,

    /// Documents of --data are cut into windows of this many tokens.
    #[arg(long, value_name = "TOKENS", default_value_t = window(), help_heading = "Routers")]
    #[serde(default = "window")]
    pub sequence_length: usize,

    /// Whether routing weights are divided by their sum, if the family allows a choice. The
    /// default, true, keeps the function with any router; false does only with an almost zero one.
    #[arg(long, value_name = "BOOL", help_heading = "Routers")]
    #[serde(default)]
    pub norm_topk_prob: Option<bool>,

    /// Seed of everything random.
    #[arg(long, default_value_t)]
    #[serde(default)]
    pub seed: u64,
}

fn one() -> f64 {
    1.0
}

fn half() -> f64 {
    0.5
}

fn nine_tenths() -> f64 {
    0.9
}

fn one_shard() -> usize {
    1
}

pub(super) fn survey_tokens() -> usize {
    4096
}

pub(super) fn window() -> usize {
    512
}

impl UpcycleOptions {
    /// Options for plain copies, with defaults for all else.
    pub fn copies(experts: usize, top_k: usize) -> Self {
        Self {
            experts,
            top_k,
            granularity: one_shard(),
            target: None,
            layers: LayerChoice::default(),
            init: Init::Copy,
            models: Vec::new(),
            rest: Rest::default(),
            drop_fraction: half(),
            partition_by: PartitionBy::default(),
            noise_std: 0.0,
            noise_fraction: one(),
            scale_placement: ScalePlacement::default(),
            shared_fraction: half(),
            shared_experts: one_shard(),
            shared_width: None,
            router: RouterInit::default(),
            router_std: None,
            router_entropy: nine_tenths(),
            prompts: None,
            data: Vec::new(),
            data_tokens: survey_tokens(),
            sequence_length: window(),
            norm_topk_prob: None,
            seed: 0,
        }
    }

    /// The same options with the default of --router-std, where the router has one.
    pub(super) fn spelled_out(&self) -> Self {
        let router_std = (!self.router.is_surveyed()).then(|| self.router_std());
        Self { router_std, ..self.clone() }
    }

    /// The number of distinct rows of a router.
    pub fn router_rows(&self) -> usize {
        self.experts / self.granularity
    }

    pub(super) fn has_noise(&self) -> bool {
        self.noise_std > 0.0 && self.noise_fraction > 0.0
    }

    /// The standard deviation of router entries. Rows of groups must be distinguishable in f32, or
    /// runtimes would mix shards of two groups; whole experts needn't be.
    pub(super) fn router_std(&self) -> f64 {
        self.router_std.unwrap_or(match (self.router, self.granularity) {
            (RouterInit::Zeros, 1) => ZEROS_STD,
            (RouterInit::Zeros, _) => SHARDS_STD,
            _ => NORMAL_STD,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The default of --router-std depends on the kind of router, and the help of each kind states
    /// it.
    #[test]
    fn help_states_the_standard_deviations() {
        let help =
            |init: RouterInit| init.to_possible_value().unwrap().get_help().unwrap().to_string();
        assert!(
            help(RouterInit::Normal).contains(&format!("--router-std, {NORMAL_STD} unless given"))
        );
        let zeros = format!("{ZEROS_STD:e} unless given ({SHARDS_STD:e} for shards)");
        assert!(help(RouterInit::Zeros).contains(&zeros));
    }
}
