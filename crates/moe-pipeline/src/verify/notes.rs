//! Finds pitfalls in a checkpoint that stock loaders load.

use moe_checkpoint::{CONFIG_FILE, Checkpoint, json};
use moe_forward::tokens_beyond_vocabulary;
use moe_model::{Model, is_computed, loaded_name};
use serde_json::{Map, Value};

use super::contents::ignored;
use super::loaders::{has_tokenizer, named_by, some};
use super::older;

/// Notes on `checkpoint`, one sentence each.
pub(crate) fn notes(checkpoint: &Checkpoint, model: &Model) -> Vec<String> {
    let mut notes = Vec::new();
    let config = checkpoint.config();
    let has = |key: &str| config.get(key).is_some_and(|v| !v.is_null());
    if !has("architectures") {
        notes.push("config.json has no \"architectures\": vLLM and SGLang refuse it".to_owned());
    }
    notes.extend(of_architectures(config, model));
    if config.get("quantization_config").is_some_and(Value::is_null) {
        notes.push(
            "config.json says quantization_config null, at which transformers before 5 fails: remove it".to_owned(),
        );
    }
    if has("rope_parameters") && !has("rope_theta") {
        let what = "config.json has rope_parameters only: transformers before 5 and older vLLM ignore them and use their \
                    default rope_theta; add rope_theta (and rope_scaling)";
        notes.push(what.to_owned());
    }
    if has("dtype") && !has("torch_dtype") {
        notes.push(
            "config.json has dtype only: transformers before 5 loads the weights in float32; add torch_dtype"
                .to_owned(),
        );
    }
    if let Some(rule) = &model.family.moe {
        // transformers maps num_local_experts to the family's own key.
        let is_mapped =
            |key: &str| key == "num_local_experts" && rule.experts.len() > 1 && has("num_experts");
        for key in rule.experts.iter().filter(|key| !has(key) && !is_mapped(key)) {
            notes
                .push(format!("config.json has no {key}: loaders that read it assume their default number of experts"));
        }
        let fused = |name: &String| {
            rule.layouts.iter().flat_map(|l| &l.fused).any(|f| name.ends_with(&f.gate_up))
        };
        if checkpoint.tensors().keys().any(fused) {
            notes.push(
                "experts are stored as fused 3-D tensors: transformers before 5 initialises them at random".to_owned(),
            );
        }
    }
    if let Some(name) = named_by(checkpoint, model, |layout, at| at > 0 && !layout.is_unknown) {
        notes.push(format!(
            "transformers before 5 doesn't know {name} in this family, and starts such experts at random; any pass of this \
             program writes the usual names"
        ));
    }
    notes.extend(of_router(checkpoint, model));
    notes.extend(older::notes(checkpoint, model));
    notes.extend(model.caveats().map(str::to_owned));
    let tied = config.get("tie_word_embeddings").and_then(serde_json::Value::as_bool) == Some(true);
    if tied && checkpoint.tensors().contains_key("lm_head.weight") {
        let what = match checkpoint.tensors().contains_key("model.embed_tokens.weight") {
            true => {
                "embeddings are tied, yet there is an lm_head.weight: transformers 5 uses it if it differs, older \
                 versions and vLLM ignore it"
            }
            false => {
                "embeddings are tied, and stored as lm_head.weight alone: transformers before 5 doesn't load them; any \
                 pass of this program writes model.embed_tokens.weight"
            }
        };
        notes.push(what.to_owned());
    }
    notes.extend(ignored(checkpoint.side_files()));
    notes.extend(of_tensors(checkpoint, model));
    notes.extend(of_two_keys(config));
    notes.extend(of_tokens(checkpoint, model));
    notes.extend(checkpoint.warnings().iter().cloned());
    if !has_tokenizer(checkpoint.side_files()) {
        notes.push(
            "there is no tokenizer: AutoTokenizer, vLLM and SGLang need one beside the weights"
                .to_owned(),
        );
    }
    notes
}

/// Routers with a name that older loaders don't know.
fn of_router(checkpoint: &Checkpoint, model: &Model) -> Option<String> {
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

/// Tensors that loaders skip or refuse, and entries of an index whose tensors don't exist.
fn of_tensors(checkpoint: &Checkpoint, model: &Model) -> Vec<String> {
    let mut notes = Vec::new();
    let names: Vec<&str> = checkpoint.tensors().keys().map(String::as_str).collect();
    let other = names.iter().filter_map(|name| Some((*name, loaded_name(name, checkpoint)?)));
    let (lacking, longer): (Vec<_>, Vec<_>) =
        other.partition(|(name, loaded)| loaded.len() > name.len());
    if let Some((name, loaded)) = longer.first() {
        notes.push(format!(
            "transformers 5 loads {name} as {loaded}; older versions start it at random, vLLM and SGLang refuse it; any pass of \
             this program writes the usual names"
        ));
    }
    if !lacking.is_empty() {
        let has_others =
            names.iter().any(|name| *name == "lm_head.weight" || name.starts_with("model."));
        let older = match has_others {
            true => "transformers 5 adds it, older versions, vLLM and SGLang refuse them",
            false => "transformers adds it, vLLM and SGLang refuse them",
        };
        notes.push(format!("names of tensors lack \"model.\": {older}"));
    }
    // vLLM looks each name up among its parameters (load_weights of its models) and skips few.
    let skipped = |name: &str| {
        let rotary = [
            "rotary_emb.inv_freq",
            "rotary_pos_emb.inv_freq",
            "rotary_emb.cos_cached",
            "rotary_emb.sin_cached",
        ];
        let biases: &[&str] =
            if model.family.moe.is_some() { &[".bias", "_bias"] } else { &[".bias"] };
        rotary.iter().any(|part| name.contains(part))
            || biases.iter().any(|end| name.ends_with(end))
    };
    let extra = model.extra.keys().map(String::as_str);
    let unknown: Vec<&str> =
        extra.chain(names.into_iter().filter(|name| is_computed(name))).collect();
    let (skipped, refused): (Vec<&str>, Vec<&str>) =
        unknown.into_iter().partition(|name| skipped(name));
    if !skipped.is_empty() {
        notes.push(format!("loaders ignore these tensors: {}", some(&skipped)));
    }
    if !refused.is_empty() {
        notes.push(format!(
            "transformers ignores these tensors, vLLM refuses a model with them: {}",
            some(&refused)
        ));
    }
    if let Some(index) = checkpoint.index() {
        let listed = |names: &[String]| some(&names.iter().map(String::as_str).collect::<Vec<_>>());
        if !index.unheld.is_empty() {
            notes.push(format!(
                "the index lists tensors that no shard holds: {}",
                listed(&index.unheld)
            ));
        }
        if !index.unlisted.is_empty() {
            notes.push(format!(
                "the index leaves out tensors that its shards hold, which transformers before 5 starts at random: {}; any \
                 pass of this program writes a whole index",
                listed(&index.unlisted)
            ));
        }
        if !index.misplaced.is_empty() {
            notes.push(format!(
                "the index says of tensors that another shard holds them: {}",
                listed(&index.misplaced)
            ));
        }
    }
    notes
}

/// Keys for the same value that different loaders read, where the values differ.
fn of_two_keys(config: &Map<String, Value>) -> Vec<String> {
    let mut notes = Vec::new();
    if let (Some(dtype), Some(older)) = (config.get("dtype"), config.get("torch_dtype"))
        && dtype != older
    {
        notes.push(format!(
            "config.json says dtype {dtype}, which transformers 5 reads, and torch_dtype {older}, which others read"
        ));
    }
    notes.extend(of_rope_scaling(config));
    let theta = config
        .get("rope_parameters")
        .and_then(|rope| rope.get("rope_theta"))
        .and_then(Value::as_f64);
    if let (Some(theta), Some(older)) = (theta, config.get("rope_theta").and_then(Value::as_f64))
        && theta != older
    {
        notes.push(format!(
            "config.json says rope_theta {older}, and {theta} in rope_parameters, which transformers 5 reads: other \
             loaders compute another function"
        ));
    }
    notes
}

/// Values of `rope_scaling` that transformers 5 and older loaders read differently, or that the
/// older ones refuse.
fn of_rope_scaling(config: &Map<String, Value>) -> Vec<String> {
    let Some(said) = config.get("rope_scaling").filter(|said| !said.is_null()) else {
        return Vec::new();
    };
    let Some(scaling) = said.as_object() else {
        return vec![format!(
            "config.json says rope_scaling {}, which transformers before 5 refuses: remove it",
            json::shown(said)
        )];
    };
    let kinds = (scaling.get("rope_type"), scaling.get("type"));
    let mut notes = Vec::new();
    match kinds {
        (None | Some(Value::Null), None | Some(Value::Null)) => notes.push(
            "config.json has a rope_scaling without rope_type, which transformers before 5 refuses: remove it, or say \
             which type it is"
                .to_owned(),
        ),
        (Some(newer), Some(older)) if newer != older => notes.push(format!(
            "config.json says rope_type {newer} in rope_scaling, which transformers 5 reads, and type {older}, which \
             versions before it read: they compute another function"
        )),
        _ => {}
    }
    if scaling.get("factor").is_some_and(Value::is_null) {
        notes.push(
            "config.json says rope_scaling.factor null, which transformers before 5 refuses"
                .to_owned(),
        );
    }
    let keys = [("rope_theta", true), ("original_max_position_embeddings", false)];
    for (key, inner_is_newer) in keys {
        let (Some(inner), Some(outer)) = (scaling.get(key), config.get(key)) else { continue };
        if inner.as_f64() == outer.as_f64() || outer.is_null() || inner.is_null() {
            continue;
        }
        let (newer, older) = if inner_is_newer { (inner, outer) } else { (outer, inner) };
        notes.push(format!(
            "config.json says {key} {outer}, and {inner} in rope_scaling: transformers 5 reads {newer}, versions before \
             it {older}: they compute another function"
        ));
    }
    notes
}

/// The problem with the class that loaders are told to use.
fn of_architectures(config: &Map<String, Value>, model: &Model) -> Option<String> {
    let said = config.get("architectures").filter(|said| !said.is_null())?;
    let wanted = &model.family.architecture;
    let is_right =
        said.as_array().is_some_and(|named| named.iter().any(|name| name == wanted.as_str()));
    (!is_right).then(|| {
        format!(
            "config.json says architectures {}, where a {} model has [{wanted:?}]: vLLM and SGLang load what it names; \
             any pass of this program writes it",
            json::shown(said),
            model.family.model_type
        )
    })
}

/// Tokens that the model has no embedding for.
fn of_tokens(checkpoint: &Checkpoint, model: &Model) -> Vec<String> {
    let vocab = model.vocab as u64;
    let mut notes = Vec::new();
    match tokens_beyond_vocabulary(checkpoint.dir(), model.vocab) {
        Ok(beyond) => notes.extend(beyond.last().map(|(id, token)| {
            format!(
                "the tokenizer has tokens beyond the vocabulary of {vocab}, such as {token:?} ({id}): loaders fail where text has them"
            )
        })),
        Err(error) => notes.push(format!("text can't be tokenized here: {}", error.briefly())),
    }
    let generation =
        json::read_python(&checkpoint.dir().join("generation_config.json")).unwrap_or_default();
    for (file, config) in
        [(CONFIG_FILE, checkpoint.config()), ("generation_config.json", &generation)]
    {
        for key in ["bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"] {
            let value = config.get(key);
            let ids = value
                .and_then(Value::as_array)
                .map_or(value.map(std::slice::from_ref), |ids| Some(ids.as_slice()));
            let beyond =
                ids.into_iter().flatten().filter_map(Value::as_u64).find(|id| *id >= vocab);
            if let Some(id) = beyond {
                notes.push(format!("{file} says {key} {id}, beyond the vocabulary of {vocab}"));
            }
        }
    }
    notes
}
