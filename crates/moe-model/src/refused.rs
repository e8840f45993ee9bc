//! What transformers refuses of a config that this program can read.

use moe_checkpoint::json::shown;
use serde_json::{Map, Value};

use crate::assembly::Model;
use crate::base_config::{self, ATTRIBUTE_MAP_KEY};
use crate::family::MoeRule;
use crate::rope;

/// Names of torch's types that transformers can load a model in.
const DTYPES: [&str; 7] = ["float32", "float16", "bfloat16", "float64", "float", "half", "double"];
/// The keys that say it, of transformers 5 and of those before.
pub(crate) const DTYPE_KEYS: [&str; 2] = ["dtype", "torch_dtype"];

/// Kinds of attention that transformers 5.23 takes in `layer_types` of any family
/// (`ALLOWED_ATTN_LAYER_TYPES`), and older names of some.
const LAYER_TYPES: [&str; 17] = [
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
    /// What transformers 5 refuses of this model's config (`golden/loaders/verdicts.py`), a
    /// sentence each.
    pub fn refused_config(&self) -> Vec<String> {
        let config = &self.config;
        let mut refused = self.family.strict.refused(config);
        let said = |key: &str| config.get(key).map(shown).unwrap_or_default();
        refused.extend(self.refused_counts());
        // The older key is read where the newer one isn't there.
        let dtype = DTYPE_KEYS
            .into_iter()
            .find(|key| config.get(*key).is_some_and(|value| !value.is_null()));
        if let Some(key) = dtype.filter(|key| !is_dtype(&config[*key])) {
            let what = format!(
                "config.json says {key} {}, which is not a type that transformers loads",
                said(key)
            );
            refused.push(format!("{what}: it has float32, float16 and bfloat16"));
        }
        if !has_padding(config, self.vocab) {
            refused.push(format!(
                "pad_token_id {} has no place in a vocabulary of {}: transformers refuses it",
                said("pad_token_id"),
                self.vocab
            ));
        }
        if config
            .get("layer_types")
            .is_some_and(|types| !types.is_null() && !has_types(types, self.layers.len()))
        {
            refused.push(format!(
                "config.json says layer_types {}, where transformers 5 wants a kind of attention for each of {} layers",
                said("layer_types"),
                self.layers.len()
            ));
        }
        for (key, wanted) in base_config::refused(config) {
            refused.push(format!(
                "config.json says {key} {}, where transformers wants {wanted}",
                said(key)
            ));
        }
        if self.needs_attribute_map() {
            refused.push(format!(
                "config.json says {ATTRIBUTE_MAP_KEY} {}, in the place of the map by which transformers finds the number of \
                 experts",
                said(ATTRIBUTE_MAP_KEY)
            ));
        }
        refused.extend(self.family.attention.window.refused(config));
        if let Some(width) =
            self.rotary_head().filter(|width| !is_count(config.get("head_dim"), *width))
        {
            refused.push(format!(
                "config.json says head_dim {}, which transformers makes tables for, where {width} dimensions rotate",
                said("head_dim")
            ));
        }
        if self.has_null_head() {
            refused.push(
                "config.json says head_dim null, which transformers computes with in this family"
                    .to_owned(),
            );
        }
        if let Some(key) = self.null_method() {
            refused.push(format!(
                "config.json says {key} null, where transformers wants a way of choosing experts"
            ));
        }
        for key in
            self.family.never_null.iter().filter(|key| config.get(*key).is_some_and(Value::is_null))
        {
            refused.push(format!(
                "config.json says {key} null, where transformers computes with a number"
            ));
        }
        refused.extend(rope::refused(config));
        let needed = self.family.yarn_needs.as_ref().filter(|_| rope::is_yarn(config));
        if let Some(key) = needed.filter(|key| config.get(*key).is_none_or(Value::is_null)) {
            refused.push(format!(
                "config.json has no {key}, without which transformers can't compute yarn in this family"
            ));
        }
        refused
    }

    /// Counts of experts that are null, or differ.
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

    /// Whether a map in the config hides the one that finds a number of experts under another key.
    fn needs_attribute_map(&self) -> bool {
        let Some((_, moe)) = self.moes().next() else { return false };
        let counts = |key: &String| self.config.get(key).or_else(|| self.family.defaults.get(key));
        let is_found = |key: &String| is_count(counts(key), moe.experts.len());
        let finds_all = |rule: &MoeRule| {
            rule.without_map.as_ref().is_some_and(|keys| keys.iter().all(is_found))
        };
        self.config.contains_key(ATTRIBUTE_MAP_KEY)
            && !self.family.moe.as_ref().is_some_and(finds_all)
    }

    /// Whether `head_dim` is null in a family whose config in transformers doesn't know the key,
    /// and so has no other value for null.
    fn has_null_head(&self) -> bool {
        let is_known = self.family.strict.rules().any(|(key, _)| key == "head_dim");
        !is_known && self.config.get("head_dim").is_some_and(Value::is_null)
    }

    /// The key that says whether groups of experts count, where it is null.
    fn null_method(&self) -> Option<&str> {
        let key = &self.family.moe.as_ref()?.groups.as_ref()?.when.as_ref()?.key;
        self.config.get(key)?.is_null().then_some(key)
    }

    /// The width that `head_dim` must have, if it is there, in a family that rotates a part of its
    /// own: transformers makes the rotary tables for it.
    fn rotary_head(&self) -> Option<usize> {
        let latent = self.family.attention.latent.as_ref()?;
        let is_read = latent.tables_of_head_dim && self.config.contains_key("head_dim");
        is_read.then_some(self.rope.dims)
    }
}

/// Writes keys that [`Model::refused_config`] finds as transformers takes them, where they change
/// nothing that is computed.
pub(crate) fn mend(config: &mut Map<String, Value>, vocab: usize) {
    if !has_padding(config, vocab) {
        config.insert("pad_token_id".into(), Value::Null);
    }
    base_config::mend(config);
}

/// Whether transformers can load a model in `value`: one of torch's types, or an object of such by
/// parts of a model, of which the one without a name is the whole.
pub(crate) fn is_dtype(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(parts) => parts.get("").is_none_or(is_dtype),
        value => value.as_str().is_some_and(|name| DTYPES.contains(&name)),
    }
}

/// Whether padding, if there is any, has a row in the embedding: from its end, if it is negative.
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
                .all(|kind| kind.as_str().is_some_and(|kind| LAYER_TYPES.contains(&kind)))
    })
}

fn is_count(value: Option<&Value>, count: usize) -> bool {
    value.and_then(Value::as_u64) == Some(count as u64)
}
