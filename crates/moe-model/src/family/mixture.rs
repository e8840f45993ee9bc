//! What a family's file says of feed-forward networks and experts.

use moe_math::routing::{GroupScore, Scoring};
use serde::Deserialize;

use super::flag::Flag;
use crate::layer::RouterPrecision;

/// Names of a feed-forward network's weights below the layer's prefix.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpertNames {
    /// Gate projection (the one that goes through the activation).
    pub gate: String,
    /// Up projection.
    pub up: String,
    /// Down projection.
    pub down: String,
}

/// A family's dense feed-forward block.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DenseRule {
    /// The config key of the width.
    pub width: String,
    /// Whether the three projections have biases.
    #[serde(default)]
    pub bias: Flag,
    /// Names of the weights.
    #[serde(default = "dense_names")]
    pub names: ExpertNames,
}

fn softmax() -> Scoring {
    Scoring::Softmax
}

fn dense_names() -> ExpertNames {
    let name = |n: &str| format!("mlp.{n}_proj.weight");
    ExpertNames { gate: name("gate"), up: name("up"), down: name("down") }
}

/// Names of experts that are stored as one 3-D tensor: `gate_up [E, 2I, H]` and `down [E, H, I]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FusedNames {
    /// Gate rows, then up rows, of every expert.
    pub gate_up: String,
    /// Down projections of every expert.
    pub down: String,
}

/// One way in which a mixture of experts lies on disk.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    /// The router's weight.
    pub router: String,
    /// The router's bias, which every model of the family then has.
    pub bias: Option<String>,
    /// Names of expert `{expert}`, where every expert has tensors of its own.
    pub expert: Option<ExpertNames>,
    /// Names of the fused tensors.
    pub fused: Option<FusedNames>,
    /// Whether transformers doesn't know these names, and starts such experts at random.
    #[serde(default)]
    pub is_unknown: bool,
}

/// A family's shared expert.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SharedRule {
    /// The config key of the width.
    pub width: SharedWidth,
    /// Names of its network.
    pub expert: ExpertNames,
    /// Whether its three projections have biases.
    #[serde(default)]
    pub bias: Flag,
    /// Name of the sigmoid gate, `[1, hidden]`, where it has one.
    pub gate: Option<String>,
}

/// How wide a shared expert is.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum SharedWidth {
    /// It is as wide as this config key says, in neurons.
    Key(String),
    /// It is as wide as this config key says, in routed experts.
    Experts {
        /// The config key.
        experts: String,
    },
}

/// How a family's experts are grouped.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupsRule {
    /// The config key of the number of groups.
    pub count: String,
    /// The config key of the number of groups that a token can go to.
    pub kept: String,
    /// What groups are ranked by.
    pub score: GroupScore,
    /// The config key that switches groups, and the value at which they count; they always count
    /// without one.
    pub when: Option<KeyIs>,
}

/// A config key and a value of it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyIs {
    /// The key.
    pub key: String,
    /// Its value.
    pub is: String,
}

/// A family's mixture of experts.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoeRule {
    /// Config keys of the number of experts: the first that is there is read, all are written.
    pub experts: Vec<String>,
    /// Config keys of the same number that are read, but not written.
    #[serde(default)]
    pub experts_also: Vec<String>,
    /// Config keys that must give this number where the config has an `attribute_map` of its own,
    /// since that takes the place of the map by which transformers finds it; `None` where it then
    /// doesn't find it at all.
    pub without_map: Option<Vec<String>>,
    /// The config key of the number of experts a token goes to.
    pub top_k: String,
    /// The config key of an expert's width.
    pub width: String,
    /// What transformers computes routers in.
    pub precision: RouterPrecision,
    /// What makes scores of a router's logits.
    #[serde(default = "softmax")]
    pub scoring: Scoring,
    /// Groups of experts.
    pub groups: Option<GroupsRule>,
    /// Whether selected scores are divided by their sum.
    pub normalize: Flag,
    /// The config key of what then multiplies them.
    pub scale: Option<String>,
    /// The config key of the number of layers in front that stay dense.
    pub dense_first: Option<String>,
    /// The config key of the period of sparse layers: layer i is one if `(i + 1) % step == 0`.
    pub sparse_step: Option<String>,
    /// The config key that lists layers which stay dense.
    pub dense_layers: Option<String>,
    /// The shared expert.
    pub shared: Option<SharedRule>,
    /// How it lies on disk; the first layout is written, all are read.
    pub layouts: Vec<Layout>,
}
