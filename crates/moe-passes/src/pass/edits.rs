//! How the parts of a layer were made, as receipts have it. `Display` gives the sentence that
//! cards, reports and terminals print; [`super::LayerRecord::shared_sentence`] gives that of a
//! shared expert.

mod sentences;

use moe_checkpoint::quantization::Scheme;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How a feed-forward network was made.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkEdit {
    /// What it is made of. Where router rows are kept, the first is the expert whose row it has.
    /// Empty in a plan whose experts are chosen when it runs.
    pub sources: Vec<NetworkSource>,
    /// Whether it only fills up a layer to as many experts as the others have: its router never
    /// selects it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub never_selected: bool,
    /// What its projections were multiplied by.
    #[serde(default, skip_serializing_if = "Scale::is_one")]
    pub scale: Scale,
    /// The share of its neurons that were reinitialized.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redrawn: Option<f64>,
    /// The noise that was added to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub noise: Option<NoiseEdit>,
}

/// What a network takes from another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkSource {
    /// The other model that it comes from, as the options name it. None for the one that is
    /// converted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Which of the layer's networks it is.
    #[serde(flatten)]
    pub network: Network,
    /// Which of its neurons are taken. None for all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub neurons: Option<Neurons>,
    /// Its coefficient in a weighted sum.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<f64>,
}

/// A network of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "network", rename_all = "kebab-case")]
pub enum Network {
    /// The one network of a dense layer.
    Dense,
    /// A routed expert.
    Expert {
        /// Its index.
        expert: usize,
    },
}

/// Some neurons of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Neurons {
    /// So many of them.
    Count(usize),
    /// All of them, so many times over.
    Copies(usize),
    /// One of several equal runs of neighbouring neurons.
    Shard {
        /// Which run, counted from 0.
        index: usize,
        /// How many runs there are.
        of: usize,
    },
}

/// Factors on the projections of a network.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Scale {
    /// On the gate and up projections each.
    pub gate_and_up: f64,
    /// On the down projection.
    pub down: f64,
}

/// Normally distributed noise.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NoiseEdit {
    /// Its standard deviation.
    pub std: f64,
    /// The share of weights that got some.
    pub share: f64,
}

/// How the parts of a layer were quantized; None for those that weren't.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Encodings {
    /// All routed experts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub experts: Option<EncodingEdit>,
    /// The shared expert.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shared_expert: Option<EncodingEdit>,
    /// The projections of attention.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attention: Option<EncodingEdit>,
}

/// How matrices were quantized.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EncodingEdit {
    /// The scheme of all matrices, or those of gate, up and down where they differ.
    pub schemes: Vec<Scheme>,
    /// How codes were found.
    pub rounding: Rounding,
}

/// How the codes of a quantized matrix were found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Rounding {
    /// By GPTQ.
    Gptq,
    /// Each value was rounded to the nearest.
    Nearest,
}

/// How a shared expert was made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SharedEdit {
    /// Its network.
    #[serde(flatten)]
    pub network: NetworkEdit,
    /// What all weights of its gate became. None where its gate is the source's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gate: Option<f64>,
}

/// How a router was made.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RouterEdit {
    /// What its rows are.
    #[serde(flatten)]
    pub rows: RouterRows,
    /// How many experts in a row have the same one; 1 where every expert has a row of its own.
    pub repeated: usize,
}

/// Where the rows of a router come from. Where they were made of text, `entropy` is the share of
/// its maximum that the mean entropy of routing was scaled to, and None where rows are as long as
/// they were found.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "rows", rename_all = "kebab-case")]
pub enum RouterRows {
    /// The source's, of the experts that the new ones have as their first source.
    Kept {
        /// How many are kept.
        kept: usize,
        /// How many there were.
        of: usize,
        /// Further rows that are never selected, which fill up the layer.
        #[serde(default, skip_serializing_if = "is_zero")]
        never_selected: usize,
    },
    /// Random entries.
    Normal {
        /// Their standard deviation.
        std: f64,
        /// The seed that they follow from.
        seed: u64,
    },
    /// Random orthogonal rows.
    Orthogonal {
        /// The standard deviation of entries of rows as long as these.
        std: f64,
        /// The seed that they follow from.
        seed: u64,
    },
    /// Centroids of the inputs of the layer's feed-forward network.
    Kmeans {
        /// The seed that they follow from.
        seed: u64,
        /// The share of the maximum entropy.
        entropy: Option<f64>,
    },
    /// Mean inputs on prompts.
    Prompts {
        /// The share of the maximum entropy.
        entropy: Option<f64>,
    },
    /// Token embeddings of prompts.
    CheapEmbed {
        /// The share of the maximum entropy.
        entropy: Option<f64>,
    },
    /// Inputs on which an expert's neurons are most active.
    Activations {
        /// The share of the maximum entropy.
        entropy: Option<f64>,
    },
}

impl NetworkEdit {
    /// An edit that makes the network from `sources`.
    pub fn of(sources: Vec<NetworkSource>) -> Self {
        Self { sources, ..Self::default() }
    }

    /// The experts of the same layer that it is made from, in order.
    pub fn experts(&self) -> Vec<usize> {
        let experts = self.sources.iter().filter_map(|source| match source.network {
            Network::Expert { expert } => Some(expert),
            Network::Dense => None,
        });
        experts.collect()
    }
}

impl NetworkSource {
    /// All of `network` of the same layer.
    pub fn of(network: Network) -> Self {
        Self { model: None, network, neurons: None, weight: None }
    }

    /// All of an expert of the same layer.
    pub fn expert(expert: usize) -> Self {
        Self::of(Network::Expert { expert })
    }
}

impl Encodings {
    /// Whether nothing was quantized.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Scale {
    /// Whether nothing changes.
    pub fn is_one(&self) -> bool {
        *self == Self::default()
    }
}

impl Default for Scale {
    fn default() -> Self {
        Self { gate_and_up: 1.0, down: 1.0 }
    }
}

fn is_false(value: &bool) -> bool {
    !value
}

fn is_zero(value: &usize) -> bool {
    *value == 0
}
