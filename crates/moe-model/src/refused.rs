//! Finds values of a config that transformers refuses and this program can read.

use moe_checkpoint::json::shown;
use serde_json::{Map, Value};

use crate::assembly::Model;
use crate::base_config::{self, ATTRIBUTE_MAP_KEY};
use crate::rope;

/// Names of the torch dtypes in which transformers can load a model.
const DTYPES: [&str; 7] = ["float32", "float16", "bfloat16", "float64", "float", "half", "double"];
/// The config keys of the dtype: transformers 5 writes the first, earlier versions write the
/// second.
pub(crate) const DTYPE_KEYS: [&str; 2] = ["dtype", "torch_dtype"];

/// Kinds of attention that transformers 5.23 accepts in `layer_types` of any family
/// (`ALLOWED_ATTN_LAYER_TYPES`), with older names of some of them.
const ATTENTION_TYPES: [&str; 17] = [
    "full_attention",
    "sliding_attention",
    "chunked_attention",
    "window_attention",
    "indexed_attention",
    "compressed_sparse_attention",
    "heavily_compressed_attention",
    "minimax_m3_sparse",
    "conv",
    "moe",
    "hybrid",
    "hybrid_sliding",
    "reference_sliding_attention",
    "linear_attention",
    "mamba",
    "attention",
    "deepseek_sparse_attention",
];

impl Model {
    /// Returns a sentence for each value of this model's config that transformers 5 refuses
    /// (`golden/loaders/verdicts.py`).
    pub fn refused_config(&self) -> Vec<String> {
        let mut refused = self.family.strict.refused(&self.config);
        refused.extend(self.refused_counts());
        refused.extend(self.refused_dtype());
        refused.extend(self.refused_padding());
        refused.extend(self.refused_layer_types());
        refused.extend(base_config::refused(&self.config).into_iter().map(|(key, wanted)| {
            format!("config.json says {key} {}, where transformers wants {wanted}", self.said(key))
        }));
        refused.extend(self.refused_attribute_map());
        refused.extend(self.family.attention.window.refused(&self.config));
        refused.extend(self.refused_head_dim());
        refused.extend(self.refused_method());
        refused.extend(self.refused_nulls());
        refused.extend(rope::refused(&self.config));
        refused.extend(self.refused_yarn());
        refused
    }

    /// Returns the value of `key` in the config, for a sentence.
    fn said(&self, key: &str) -> String {
        self.config.get(key).map(shown).unwrap_or_default()
    }

    fn refused_dtype(&self) -> Option<String> {
        // The older key is read only if the newer one is missing.
        let key = DTYPE_KEYS
            .into_iter()
            .find(|key| self.config.get(*key).is_some_and(|value| !value.is_null()))?;
        (!is_dtype(&self.config[key])).then(|| {
            format!(
                "config.json says {key} {}, which is not a type that transformers loads: it has float32, float16 and \
                 bfloat16",
                self.said(key)
            )
        })
    }

    fn refused_padding(&self) -> Option<String> {
        (!has_padding(&self.config, self.vocab)).then(|| {
            format!(
                "pad_token_id {} has no place in a vocabulary of {}: transformers refuses it",
                self.said("pad_token_id"),
                self.vocab
            )
        })
    }

    fn refused_layer_types(&self) -> Option<String> {
        let types = self.config.get("layer_types").filter(|types| !types.is_null())?;
        (!has_types(types, self.layers.len())).then(|| {
            format!(
                "config.json says layer_types {}, where transformers 5 wants a kind of attention for each of {} layers",
                self.said("layer_types"),
                self.layers.len()
            )
        })
    }

    fn refused_attribute_map(&self) -> Option<String> {
        self.needs_attribute_map().then(|| {
            format!(
                "config.json says {ATTRIBUTE_MAP_KEY} {}, in the place of the map by which transformers finds the number of \
                 experts",
                self.said(ATTRIBUTE_MAP_KEY)
            )
        })
    }

    /// Finds a `head_dim` that isn't the width of the rotary part, and one that is null.
    fn refused_head_dim(&self) -> Vec<String> {
        let mut refused = Vec::new();
        let width = self.rotary_head();
        if let Some(width) = width.filter(|width| !is_count(self.config.get("head_dim"), *width)) {
            refused.push(format!(
                "config.json says head_dim {}, which transformers makes tables for, where {width} dimensions rotate",
                self.said("head_dim")
            ));
        }
        if self.has_null_head() {
            refused.push(
                "config.json says head_dim null, which transformers computes with in this family"
                    .to_owned(),
            );
        }
        refused
    }

    fn refused_method(&self) -> Option<String> {
        let key = self.null_method()?;
        Some(format!(
            "config.json says {key} null, where transformers wants a way of choosing experts"
        ))
    }

    /// Finds keys that are null although transformers computes with their values.
    fn refused_nulls(&self) -> impl Iterator<Item = String> {
        let never_null = self.family.never_null.iter();
        let null = never_null.filter(|key| self.config.get(*key).is_some_and(Value::is_null));
        null.map(|key| {
            format!("config.json says {key} null, where transformers computes with a number")
        })
    }

    fn refused_yarn(&self) -> Option<String> {
        let key = self.family.yarn_needs.as_ref().filter(|_| rope::is_yarn(&self.config))?;
        self.config.get(key).is_none_or(Value::is_null).then(|| {
            format!(
                "config.json has no {key}, without which transformers can't compute yarn in this family"
            )
        })
    }

    /// Finds numbers of experts that are null or differ.
    fn refused_counts(&self) -> Option<String> {
        let rule = self.family.moe.as_ref()?;
        let keys = rule.experts.iter().chain(&rule.experts_also);
        let given: Vec<_> = keys.filter_map(|key| Some((key, self.config.get(key)?))).collect();
        if let Some((key, _)) = given.iter().find(|(_, count)| count.is_null()) {
            return Some(format!(
                "config.json says {key} null, where transformers wants a number of experts"
            ));
        }
        given.windows(2).any(|pair| pair[0].1 != pair[1].1).then(|| {
            let said: Vec<_> = given.iter().map(|(key, count)| format!("{key} {count}")).collect();
            let said = said.join(" and ");
            format!("config.json counts experts in two ways, {said}: loaders read one or the other")
        })
    }

    /// Whether the config's `attribute_map` replaces the one that transformers needs to find the
    /// number of experts under another key.
    fn needs_attribute_map(&self) -> bool {
        let Some((_, moe)) = self.moes().next() else { return false };
        let without_map = self.family.moe.as_ref().and_then(|rule| rule.without_map.as_ref());
        self.config.contains_key(ATTRIBUTE_MAP_KEY)
            && !without_map.is_some_and(|keys| {
                keys.iter().all(|key| is_count(self.meant_value(key), moe.experts.len()))
            })
    }

    /// The value of `key`, or its default in the family.
    fn meant_value(&self, key: &str) -> Option<&Value> {
        self.config.get(key).or_else(|| self.family.defaults.get(key))
    }

    /// Whether `head_dim` is null in a family whose config class doesn't declare the key, and so
    /// doesn't replace null by a default.
    fn has_null_head(&self) -> bool {
        let is_known = self.family.strict.rules().any(|(key, _)| key == "head_dim");
        !is_known && self.config.get("head_dim").is_some_and(Value::is_null)
    }

    /// Returns the key that switches groups of experts, if its value is null.
    fn null_method(&self) -> Option<&str> {
        let key = &self.family.moe.as_ref()?.groups.as_ref()?.when.as_ref()?.key;
        self.config.get(key)?.is_null().then_some(key)
    }

    /// Returns the value that `head_dim` must have, if the config has it, in a family with a rotary
    /// part of its own, for which transformers makes rotary tables as wide as `head_dim`.
    fn rotary_head(&self) -> Option<usize> {
        let latent = self.family.attention.latent.as_ref()?;
        let is_read = latent.tables_of_head_dim && self.config.contains_key("head_dim");
        is_read.then_some(self.rope.dims)
    }
}

/// Corrects values that [`Model::refused_config`] finds, if that doesn't change what the model
/// computes.
pub(crate) fn mend(config: &mut Map<String, Value>, vocab: usize) {
    if !has_padding(config, vocab) {
        config.insert("pad_token_id".into(), Value::Null);
    }
    base_config::mend(config);
}

/// Whether transformers can load a model in the dtype `value`: the name of a dtype, or an object
/// with one for each part of a model, in which "" stands for the whole model.
pub(crate) fn is_dtype(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(parts) => parts.get("").is_none_or(is_dtype),
        value => value.as_str().is_some_and(|name| DTYPES.contains(&name)),
    }
}

/// Whether the padding token, if there is one, has a row in the embedding. A negative id counts
/// from the end.
fn has_padding(config: &Map<String, Value>, vocab: usize) -> bool {
    let vocab = vocab as i64;
    config
        .get("pad_token_id")
        .and_then(Value::as_i64)
        .is_none_or(|id| (-vocab..vocab).contains(&id))
}

fn has_types(types: &Value, layers: usize) -> bool {
    types.as_array().is_some_and(|types| {
        types.len() == layers
            && types
                .iter()
                .all(|kind| kind.as_str().is_some_and(|kind| ATTENTION_TYPES.contains(&kind)))
    })
}

fn is_count(value: Option<&Value>, count: usize) -> bool {
    value.and_then(Value::as_u64) == Some(count as u64)
}
