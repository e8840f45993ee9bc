//! What stock loaders would trip over in a checkpoint, though it is sound.

use moe_checkpoint::Checkpoint;
use moe_model::Model;

/// Notes on `checkpoint`, one sentence each.
pub(crate) fn notes(checkpoint: &Checkpoint, model: &Model) -> Vec<String> {
    let mut notes = Vec::new();
    let config = checkpoint.config();
    let has = |key: &str| config.get(key).is_some_and(|v| !v.is_null());
    if !has("architectures") {
        notes.push("config.json has no \"architectures\": vLLM and SGLang refuse it".to_owned());
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
        for key in rule.experts.iter().filter(|key| !has(key)) {
            notes
                .push(format!("config.json has no {key}: loaders that read it assume their default number of experts"));
        }
        let fused = |name: &String| rule.layouts.iter().flat_map(|l| &l.fused).any(|f| name.ends_with(&f.gate_up));
        if checkpoint.tensors().keys().any(fused) {
            notes.push(
                "experts are stored as fused 3-D tensors: transformers before 5 initialises them at random".to_owned(),
            );
        }
    }
    notes.extend(model.caveats().map(str::to_owned));
    let tied = config.get("tie_word_embeddings").and_then(serde_json::Value::as_bool) == Some(true);
    if tied && checkpoint.tensors().contains_key("lm_head.weight") {
        let what = "embeddings are tied, yet there is an lm_head.weight: transformers 5 uses it if it differs, older \
                    versions and vLLM ignore it";
        notes.push(what.to_owned());
    }
    if !model.extra.is_empty() {
        let names: Vec<_> = model.extra.keys().map(String::as_str).collect();
        notes.push(format!("loaders ignore these tensors: {}", names.join(", ")));
    }
    let tokenizer = ["tokenizer.json", "tokenizer.model", "vocab.json"];
    if !tokenizer.iter().any(|name| checkpoint.dir().join(name).is_file()) {
        notes.push("there is no tokenizer: AutoTokenizer, vLLM and SGLang need one beside the weights".to_owned());
    }
    notes
}
