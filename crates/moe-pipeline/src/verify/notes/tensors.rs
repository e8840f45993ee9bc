//! Tensors that loaders skip, refuse or start at random, and an index that doesn't fit them.

use moe_checkpoint::{Checkpoint, IndexFacts};
use moe_model::{Model, is_computed, loaded_name};
use serde_json::Value;

use crate::verify::loaders::{named_by, some};

/// Experts as fused tensors.
pub(super) fn of_fused(checkpoint: &Checkpoint, model: &Model) -> Option<String> {
    let layouts = &model.family.moe.as_ref()?.layouts;
    let is_fused = |name: &String| {
        layouts.iter().flat_map(|layout| &layout.fused).any(|f| name.ends_with(&f.gate_up))
    };
    checkpoint.tensors().keys().any(is_fused).then(|| {
        "experts are stored as fused 3-D tensors: transformers before 5 initialises them at random"
            .to_owned()
    })
}

/// Experts with names that older loaders don't know.
pub(super) fn of_expert_names(checkpoint: &Checkpoint, model: &Model) -> Option<String> {
    let name = named_by(checkpoint, model, |layout, at| at > 0 && !layout.is_unknown)?;
    Some(format!(
        "transformers before 5 doesn't know {name} in this family, and starts such experts at random; any pass of this \
         program writes the usual names"
    ))
}

/// Routers with a name that older loaders don't know.
pub(super) fn of_router(checkpoint: &Checkpoint, model: &Model) -> Option<String> {
    let layouts = &model.family.moe.as_ref()?.layouts;
    let usual = &layouts[0].router;
    let others: Vec<String> = layouts
        .iter()
        .filter(|layout| layout.router != *usual)
        .map(|layout| format!(".{}", layout.router))
        .collect();
    let mut names = checkpoint.tensors().keys();
    let name = names.find(|name| others.iter().any(|end| name.ends_with(end.as_str())))?;
    Some(format!(
        "transformers before 5 doesn't know {name} in this family, and starts such routers at random; any pass of this \
         program writes the usual names"
    ))
}

/// Returns the note on a head that is stored in addition to the embeddings that it is tied to, or
/// in their place.
pub(super) fn of_tied_head(checkpoint: &Checkpoint) -> Option<String> {
    let tensors = checkpoint.tensors();
    let is_tied = checkpoint.config().get("tie_word_embeddings").and_then(Value::as_bool)?;
    if !is_tied || !tensors.contains_key("lm_head.weight") {
        return None;
    }
    let what = if tensors.contains_key("model.embed_tokens.weight") {
        "embeddings are tied, yet there is an lm_head.weight: transformers 5 uses it if it differs, older \
         versions and vLLM ignore it"
    } else {
        "embeddings are tied, and stored as lm_head.weight alone: transformers before 5 doesn't load them; any \
         pass of this program writes model.embed_tokens.weight"
    };
    Some(what.to_owned())
}

/// Returns notes on names with a longer or shorter prefix than loaders expect.
pub(super) fn of_prefix(checkpoint: &Checkpoint) -> Vec<String> {
    let mut notes = Vec::new();
    let names = || checkpoint.tensors().keys().map(String::as_str);
    let other = names().filter_map(|name| Some((name, loaded_name(name, checkpoint)?)));
    let (lacking, longer): (Vec<_>, Vec<_>) =
        other.partition(|(name, loaded)| loaded.len() > name.len());
    if let Some((name, loaded)) = longer.first() {
        notes.push(format!(
            "transformers 5 loads {name} as {loaded}; older versions start it at random, vLLM and SGLang refuse it; any pass of \
             this program writes the usual names"
        ));
    }
    if !lacking.is_empty() {
        let has_others = names().any(|name| name == "lm_head.weight" || name.starts_with("model."));
        let older = if has_others {
            "transformers 5 adds it, older versions, vLLM and SGLang refuse them"
        } else {
            "transformers adds it, vLLM and SGLang refuse them"
        };
        notes.push(format!("names of tensors lack \"model.\": {older}"));
    }
    notes
}

/// Tensors that the family doesn't have, or that loaders compute.
pub(super) fn of_unknown(checkpoint: &Checkpoint, model: &Model) -> Vec<String> {
    let extra = model.extra.keys().map(String::as_str);
    let names = checkpoint.tensors().keys().map(String::as_str);
    let unknown = extra.chain(names.filter(|name| is_computed(name)));
    let has_experts = model.family.moe.is_some();
    let (skipped, refused): (Vec<&str>, Vec<&str>) =
        unknown.partition(|name| is_skipped(name, has_experts));
    let mut notes = Vec::new();
    if !skipped.is_empty() {
        notes.push(format!("loaders ignore these tensors: {}", some(&skipped)));
    }
    if !refused.is_empty() {
        notes.push(format!(
            "transformers ignores these tensors, vLLM refuses a model with them: {}",
            some(&refused)
        ));
    }
    notes
}

/// Whether vLLM skips the tensor `name`. It looks each name up among its parameters (load_weights
/// of its models) and skips few.
fn is_skipped(name: &str, has_experts: bool) -> bool {
    const ROTARY: [&str; 4] = [
        "rotary_emb.inv_freq",
        "rotary_pos_emb.inv_freq",
        "rotary_emb.cos_cached",
        "rotary_emb.sin_cached",
    ];
    let biases: &[&str] = if has_experts { &[".bias", "_bias"] } else { &[".bias"] };
    ROTARY.iter().any(|part| name.contains(part)) || biases.iter().any(|end| name.ends_with(end))
}

/// Returns notes on what an index says wrongly about its shards.
pub(super) fn of_index(index: &IndexFacts) -> Vec<String> {
    let mut notes = Vec::new();
    if !index.unheld.is_empty() {
        notes.push(format!(
            "the index lists tensors that no shard holds: {}",
            some_of(&index.unheld)
        ));
    }
    if !index.unlisted.is_empty() {
        notes.push(format!(
            "the index leaves out tensors that its shards hold, which transformers before 5 starts at random: {}; any \
             pass of this program writes a whole index",
            some_of(&index.unlisted)
        ));
    }
    if !index.misplaced.is_empty() {
        notes.push(format!(
            "the index says of tensors that another shard holds them: {}",
            some_of(&index.misplaced)
        ));
    }
    notes
}

fn some_of(names: &[String]) -> String {
    some(&names.iter().map(String::as_str).collect::<Vec<_>>())
}
