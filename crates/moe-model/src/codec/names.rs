//! Tensor names that all families share so far.

pub const EMBED: &str = "model.embed_tokens.weight";
pub const FINAL_NORM: &str = "model.norm.weight";
pub const HEAD: &str = "lm_head.weight";
pub const LAYERS: &str = "model.layers.";
pub const ATTENTION_NORM: &str = "input_layernorm.weight";
pub const FFN_NORM: &str = "post_attention_layernorm.weight";
/// The prefix of names that is missing in a checkpoint of the model without a head.
pub const MODEL: &str = "model.";
/// Buffers that old writers saved: tables of rotary embeddings and causal masks. Loaders
/// compute them.
pub const IGNORED_SUFFIXES: [&str; 7] = [
    "rotary_emb.inv_freq",
    "rotary_emb.original_inv_freq",
    "rotary_emb.cos_cached",
    "rotary_emb.sin_cached",
    "rotary_pos_emb.inv_freq",
    ".masked_bias",
    "attn.bias",
];

/// Whether the tensor `name` is a buffer that loaders compute themselves.
pub fn is_computed(name: &str) -> bool {
    IGNORED_SUFFIXES.iter().any(|suffix| name.ends_with(suffix))
}

/// The name of the bias that belongs to the weight `name`.
pub(crate) fn bias_name(name: &str) -> String {
    format!("{}.bias", module(name))
}

/// The module that the weight `name` belongs to.
pub(crate) fn module(name: &str) -> &str {
    name.strip_suffix(".weight").unwrap_or(name)
}
