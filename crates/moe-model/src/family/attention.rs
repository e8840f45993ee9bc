//! The attention of a family, as described by its file.

use serde::Deserialize;

use super::flag::Flag;

/// The kind of normalization of queries and keys.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QkNormKind {
    /// Queries and keys are not normalized.
    #[default]
    None,
    /// Each head is normalized by itself.
    PerHead,
    /// All heads are normalized together.
    FullWidth,
}

/// A family's attention.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AttentionRule {
    /// Whether query, key and value projections have biases.
    pub qkv_bias: Flag,
    /// Whether the output projection has a bias.
    pub o_bias: Flag,
    /// Normalization of queries and keys.
    pub qk_norm: QkNormKind,
    /// The config key that switches this normalization on; None if it is always on.
    pub qk_norm_key: Option<String>,
    /// Whether the config key `partial_rotary_factor` gives the part of a head that is rotated.
    pub partial_rotary: bool,
    /// Whether pairs of neighboring dimensions are rotated, rather than i and i + dims / 2.
    pub interleaved: Flag,
    /// Latent attention, if the family has it; `qkv_bias` is then about the projections to the
    /// latents.
    pub latent: Option<LatentRule>,
    /// The config key of the clamp on projected queries, keys and values; None if they are never
    /// clamped.
    pub clip: Option<String>,
    /// Which layers have a sliding window.
    pub window: WindowRule,
}

/// A family's latent attention.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LatentRule {
    /// The config key of the width of the queries' latent. Its value is null for queries without
    /// one.
    pub q_rank: String,
    /// The config key of the width of the latent of keys and values.
    pub kv_rank: String,
    /// The config key of the width of a head's part that isn't rotated.
    pub nope: String,
    /// The config key of the width of the rotary part.
    pub rope: String,
    /// The config key of the width of a head's values.
    pub value: String,
    /// ε of the latents' norms, which no config key sets.
    pub norm_eps: f64,
    /// Whether transformers makes rotary tables as wide as the config key `head_dim`, which must
    /// then equal the value of the key `rope`.
    #[serde(default)]
    pub tables_of_head_dim: bool,
}

/// How a family's config says which layers have a sliding window.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WindowRule {
    /// No layer has a sliding window.
    #[default]
    None,
    /// `sliding_window`, unless null, applies to every layer.
    EveryLayer,
    /// `sliding_window`, unless null, applies to every layer, or only to those in `layer_types` if
    /// the config has that key.
    EveryUnlessListed,
    /// `sliding_window` applies to every layer if `use_sliding_window` is true.
    IfEnabled,
    /// `layer_types` says which layers have one. Without it, these are the layers from
    /// `max_window_layers` on, if `use_sliding_window` is true.
    LateLayers,
    /// `layer_types` says which layers have one. Without it, these are the even layers below
    /// `max_window_layers`, if `use_sliding_window` is true.
    AlternateLayers,
}
