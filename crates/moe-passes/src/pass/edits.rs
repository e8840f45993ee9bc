//! How the parts of a layer were made, as receipts have it. `Display` gives the sentence that
//! cards, reports and terminals print; [`super::LayerRecord::shared_sentence`] gives that of a
//! shared expert.

mod sentences;

use moe_checkpoint::quantization::Scheme;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// An edit that made a feed-forward network.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkEdit {
    /// The networks that it is made from. If router rows are kept, the first source is the expert
    /// whose row is kept. Empty in a plan whose experts are chosen when it runs.
    pub sources: Vec<NetworkSource>,
    /// Whether it only fills up a layer to as many experts as the others have: its router never
    /// selects it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub never_selected: bool,
    /// Factors that its projections were multiplied by.
    #[serde(default, skip_serializing_if = "ProjectionScale::is_one")]
    pub scale: ProjectionScale,
    /// The share of its neurons that were reinitialized.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redrawn: Option<f64>,
    /// The noise that was added to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub noise: Option<NoiseEdit>,
}

/// A network that another one is made from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkSource {
    /// The model that it comes from, as the options name it. None for the model that is converted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The network, one of its layer's.
    #[serde(flatten)]
    pub network: Network,
    /// The neurons that are taken from it. None for all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub neurons: Option<Neurons>,
    /// Its coefficient in a weighted sum. None if it isn't summed.
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
        /// The index of the expert.
        expert: usize,
    },
}

/// Some neurons of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Neurons {
    /// A number of them.
    Count(usize),
    /// All of them, a number of times.
    Copies(usize),
    /// One of several equal runs of neighboring neurons.
    Shard {
        /// The index of the run, counted from 0.
        index: usize,
        /// The number of runs.
        of: usize,
    },
}

/// Factors on the projections of a network.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ProjectionScale {
    /// Factor of the gate projection, and of the up projection.
    pub gate_and_up: f64,
    /// Factor of the down projection.
    pub down: f64,
}

/// Normally distributed noise.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NoiseEdit {
    /// The standard deviation of the noise.
    pub std: f64,
    /// The share of weights that got noise.
    pub share: f64,
}

/// The quantization of the parts of a layer; None for parts that weren't quantized.
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

/// The quantization of matrices.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EncodingEdit {
    /// The scheme of all matrices; if they differ, the schemes of gate, up and down.
    pub schemes: Vec<Scheme>,
    /// The method that chose the codes.
    pub rounding: Rounding,
}

/// The method that chose the codes of a quantized matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Rounding {
    /// GPTQ.
    Gptq,
    /// Rounding of each value to the nearest code.
    Nearest,
}

/// An edit that made a shared expert.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SharedEdit {
    /// The expert's network.
    #[serde(flatten)]
    pub network: NetworkEdit,
    /// The value that all weights of its gate were set to. None if the gate is the source's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gate: Option<f64>,
}

/// An edit that made a router.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RouterEdit {
    /// The rows, and where they come from.
    #[serde(flatten)]
    pub rows: RouterRows,
    /// The number of consecutive experts that share a row; 1 if every expert has a row of its own.
    pub repeated: usize,
}

/// The origin of a router's rows. If they were made from text, `entropy` is the share of its
/// maximum that the mean entropy of routing was scaled to, or None if rows weren't scaled.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "rows", rename_all = "kebab-case")]
pub enum RouterRows {
    /// Rows of the source: for each expert, that of its first source.
    Kept {
        /// The number of rows that are kept.
        kept: usize,
        /// The number of rows that the source has.
        of: usize,
        /// The number of further rows, for experts that are never selected and fill up the layer.
        #[serde(default, skip_serializing_if = "is_zero")]
        never_selected: usize,
    },
    /// Random entries.
    Normal {
        /// The standard deviation of the entries.
        std: f64,
        /// The seed that they follow from.
        seed: u64,
    },
    /// Random orthogonal rows.
    Orthogonal {
        /// The standard deviation of normal entries that give rows of the same length.
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

impl ProjectionScale {
    /// Whether nothing changes.
    pub fn is_one(&self) -> bool {
        *self == Self::default()
    }
}

impl Default for ProjectionScale {
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
