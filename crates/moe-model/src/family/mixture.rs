//! Feed-forward networks and experts of a family, as described by its file.

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
    /// The config key of the width in neurons.
    pub width: String,
    /// Whether the three projections have biases.
    #[serde(default)]
    pub bias: Flag,
    /// Names of the weights, below the layer's prefix.
    #[serde(default = "dense_names")]
    pub names: ExpertNames,
}

fn softmax() -> Scoring {
    Scoring::Softmax
}

fn dense_names() -> ExpertNames {
    ExpertNames {
        gate: "mlp.gate_proj.weight".to_owned(),
        up: "mlp.up_proj.weight".to_owned(),
        down: "mlp.down_proj.weight".to_owned(),
    }
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

/// The names of the tensors of a mixture of experts. A family can have several such layouts.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    /// Name of the router's weight.
    pub router: String,
    /// Name of the router's bias; None if routers have none. Otherwise every model of the family
    /// has one.
    pub bias: Option<String>,
    /// Names of the tensors of expert `{expert}`; None if experts are fused.
    pub expert: Option<ExpertNames>,
    /// Names of the fused tensors; None if every expert has tensors of its own.
    pub fused: Option<FusedNames>,
    /// Whether transformers doesn't know these names, and initializes such experts randomly.
    #[serde(default)]
    pub is_unknown: bool,
}

/// The shared expert of a family.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SharedRule {
    /// The config key of the width in neurons.
    pub width: SharedWidth,
    /// Names of the expert's projections.
    pub expert: ExpertNames,
    /// Whether the three projections have biases.
    #[serde(default)]
    pub bias: Flag,
    /// Name of the sigmoid gate, `[1, hidden]`; None if the expert's output isn't gated.
    pub gate: Option<String>,
}

/// How a config gives the width of a shared expert.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum SharedWidth {
    /// This config key has the width in neurons.
    Key(String),
    /// This config key has the width as a multiple of a routed expert's width.
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
    /// The config key of the number of groups that a token can choose experts from.
    pub kept: String,
    /// The score that groups are ranked by.
    pub score: GroupScore,
    /// The config key, and its value, for which groups limit the choice; None if they always do.
    pub when: Option<KeyIs>,
}

/// A config key and one of its values.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyIs {
    /// The key.
    pub key: String,
    /// The value that is compared with.
    pub is: String,
}

/// A family's mixture of experts.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoeRule {
    /// Config keys of the number of experts. The first one that exists is read; all are written.
    pub experts: Vec<String>,
    /// More config keys of the same number, which are read but not written.
    #[serde(default)]
    pub experts_also: Vec<String>,
    /// Config keys that must have this number if the config has its own `attribute_map`, since that
    /// replaces the map by which transformers finds the number. None if transformers can't find it
    /// then.
    pub without_map: Option<Vec<String>>,
    /// The config key of the number of experts a token goes to.
    pub top_k: String,
    /// The config key of an expert's width in neurons.
    pub width: String,
    /// The dtype that transformers computes routers in.
    pub precision: RouterPrecision,
    /// The function from a router's logits to scores.
    #[serde(default = "softmax")]
    pub scoring: Scoring,
    /// Groups of experts; None if a token can choose any experts.
    pub groups: Option<GroupsRule>,
    /// Whether selected scores are divided by their sum.
    pub normalize: Flag,
    /// The config key of the factor of the selected scores; None for a factor of 1.
    pub scale: Option<String>,
    /// The config key of the number of dense layers at the start.
    pub dense_first: Option<String>,
    /// The config key of the period of sparse layers: layer i is sparse if `(i + 1) % step == 0`.
    pub sparse_step: Option<String>,
    /// The config key of the list of dense layers.
    pub dense_layers: Option<String>,
    /// The shared expert, if the family has one.
    pub shared: Option<SharedRule>,
    /// The layouts of tensors; all can be read, the first is written.
    pub layouts: Vec<Layout>,
}
