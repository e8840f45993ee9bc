//! Keys of config.json that loaders lack, or read differently.

use moe_checkpoint::json;
use moe_model::Model;
use serde_json::{Map, Value};

/// Keys that some loaders need or fail at.
pub(super) fn of_keys(config: &Map<String, Value>, model: &Model) -> Vec<String> {
    let mut notes: Vec<String> = of_architectures(config, model).into_iter().collect();
    if config.get("quantization_config").is_some_and(Value::is_null) {
        notes.push(
            "config.json says quantization_config null, at which transformers before 5 fails: remove it".to_owned(),
        );
    }
    if has(config, "rope_parameters") && !has(config, "rope_theta") {
        let what = "config.json has rope_parameters only: transformers before 5 and older vLLM ignore them and use their \
                    default rope_theta; add rope_theta (and rope_scaling)";
        notes.push(what.to_owned());
    }
    if has(config, "dtype") && !has(config, "torch_dtype") {
        notes.push(
            "config.json has dtype only: transformers before 5 loads the weights in float32; add torch_dtype"
                .to_owned(),
        );
    }
    notes.extend(of_expert_counts(config, model));
    notes
}

fn has(config: &Map<String, Value>, key: &str) -> bool {
    config.get(key).is_some_and(|value| !value.is_null())
}

/// The problem with the class that loaders are told to use.
fn of_architectures(config: &Map<String, Value>, model: &Model) -> Option<String> {
    let Some(said) = config.get("architectures").filter(|said| !said.is_null()) else {
        return Some("config.json has no \"architectures\": vLLM and SGLang refuse it".to_owned());
    };
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

/// Keys for the number of experts that some loader reads and the config lacks.
fn of_expert_counts(config: &Map<String, Value>, model: &Model) -> Vec<String> {
    let Some(rule) = &model.family.moe else { return Vec::new() };
    // transformers maps num_local_experts to the family's own key.
    let maps = rule.experts.len() > 1 && has(config, "num_experts");
    let is_mapped = |key: &str| maps && key == "num_local_experts";
    let missing = rule.experts.iter().filter(|key| !has(config, key) && !is_mapped(key));
    let note = |key: &String| {
        format!(
            "config.json has no {key}: loaders that read it assume their default number of experts"
        )
    };
    missing.map(note).collect()
}

/// Keys for the same value that different loaders read, where the values differ.
pub(super) fn of_two_keys(config: &Map<String, Value>) -> Vec<String> {
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
    let mut notes: Vec<String> = of_rope_type(scaling).into_iter().collect();
    if scaling.get("factor").is_some_and(Value::is_null) {
        notes.push(
            "config.json says rope_scaling.factor null, which transformers before 5 refuses"
                .to_owned(),
        );
    }
    let keys = [("rope_theta", true), ("original_max_position_embeddings", false)];
    notes.extend(keys.into_iter().filter_map(|(key, inner_is_newer)| {
        let (inner, outer) = (scaling.get(key)?, config.get(key)?);
        of_both_places(key, inner, outer, inner_is_newer)
    }));
    notes
}

fn of_rope_type(scaling: &Map<String, Value>) -> Option<String> {
    match (scaling.get("rope_type"), scaling.get("type")) {
        (None | Some(Value::Null), None | Some(Value::Null)) => Some(
            "config.json has a rope_scaling without rope_type, which transformers before 5 refuses: remove it, or say \
             which type it is"
                .to_owned(),
        ),
        (Some(newer), Some(older)) if newer != older => Some(format!(
            "config.json says rope_type {newer} in rope_scaling, which transformers 5 reads, and type {older}, which \
             versions before it read: they compute another function"
        )),
        _ => None,
    }
}

/// Returns the note on a `key` whose value in rope_scaling, `inner`, differs from the one at the
/// top level, `outer`.
fn of_both_places(key: &str, inner: &Value, outer: &Value, inner_is_newer: bool) -> Option<String> {
    if inner.as_f64() == outer.as_f64() || outer.is_null() || inner.is_null() {
        return None;
    }
    let (newer, older) = if inner_is_newer { (inner, outer) } else { (outer, inner) };
    Some(format!(
        "config.json says {key} {outer}, and {inner} in rope_scaling: transformers 5 reads {newer}, versions before \
         it {older}: they compute another function"
    ))
}
