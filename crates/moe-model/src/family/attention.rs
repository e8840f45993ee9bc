//! What a family's file says of attention.

use serde::Deserialize;

use super::flag::Flag;

/// Which normalisation of queries and keys a family has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QkNormKind {
    /// Neither is normalised.
    #[default]
    None,
    /// Each head is normalised by itself.
    PerHead,
    /// All heads are normalised at once.
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
    /// Normalisation of queries and keys.
    pub qk_norm: QkNormKind,
    /// The config key that switches this normalisation; without one it is always there.
    pub qk_norm_key: Option<String>,
    /// Whether `partial_rotary_factor` says how much of a head is rotated.
    pub partial_rotary: bool,
    /// Whether neighbouring dimensions are rotated together.
    pub interleaved: Flag,
    /// Latent attention, where the family has it; `qkv_bias` then speaks of the projections to the
    /// latents.
    pub latent: Option<LatentRule>,
    /// The config key of the clamp on projected queries, keys and values.
    pub clip: Option<String>,
    /// Which layers have a sliding window.
    pub window: WindowRule,
}

/// A family's latent attention.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LatentRule {
    /// The config key of the width of the queries' latent; null for queries without one.
    pub q_rank: String,
    /// The config key of the width of the latent of keys and values.
    pub kv_rank: String,
    /// The config key of the width of a head's part without position.
    pub nope: String,
    /// The config key of the width of the rotary part.
    pub rope: String,
    /// The config key of the width of a head's values.
    pub value: String,
    /// ε of the latents' norms, which no config key sets.
    pub norm_eps: f64,
    /// Whether transformers makes rotary tables as wide as the config key `head_dim`, which must
    /// then be `rope`'s.
    #[serde(default)]
    pub tables_of_head_dim: bool,
}

/// How a family's config says which layers have a sliding window.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WindowRule {
    /// No layer has one.
    #[default]
    None,
    /// `sliding_window`, unless null, applies to every layer.
    EveryLayer,
    /// `sliding_window`, unless null, applies to every layer, or to those alone that `layer_types`
    /// says, where it is there.
    EveryUnlessListed,
    /// `sliding_window` applies to every layer where `use_sliding_window` is true.
    IfEnabled,
    /// `layer_types` says which; without it, these are the layers from `max_window_layers` on,
    /// where `use_sliding_window` is true.
    LateLayers,
    /// `layer_types` says which; without it, these are the even layers below `max_window_layers`,
    /// where `use_sliding_window` is true.
    AlternateLayers,
}
