//! Every golden checkpoint is understood, and says the same after being declared and read again.

use std::path::{Path, PathBuf};

use moe_model::{Model, families};

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden").join(path)
}

fn cases() -> Vec<PathBuf> {
    let list = |dir: PathBuf| std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir());
    let mut cases: Vec<_> = list(golden("families")).flat_map(list).map(|case| case.join("model")).collect();
    cases.extend([golden("models/dense"), golden("models/moe")]);
    cases.sort();
    cases
}

/// What a decoder needs to know of a model: everything but the weights' bytes.
fn description(model: &Model) -> String {
    let Model { hidden, vocab, heads, kv_heads, head_dim, norm_eps, rope, embed, layers, final_norm, head, .. } = model;
    format!(
        "{hidden} {vocab} {heads} {kv_heads} {head_dim} {norm_eps} {rope:?} {embed:?} {layers:#?} {final_norm:?} {head:?}"
    )
}

/// A weight's name says where it was read from, which fused experts change.
fn without_names(description: &str) -> String {
    description
        .lines()
        .map(|l| l.split_once("model.").map_or(l, |(_, rest)| rest.split_once(' ').map_or("", |x| x.1)))
        .collect()
}

#[test]
fn every_family_has_a_golden() {
    for family in families().keys() {
        assert!(golden("families").join(family).is_dir(), "no golden for {family}");
    }
}

#[test]
fn goldens_survive_a_round_trip_through_names_and_config() {
    let cases = cases();
    assert!(cases.len() > 40, "only {} goldens", cases.len());
    for case in cases {
        let model = Model::open(&case).unwrap_or_else(|e| panic!("{}: {e}", case.display()));
        let declared = model.declare().unwrap_or_else(|e| panic!("{}: {e}", case.display()));
        let again = declared.reread().unwrap_or_else(|e| panic!("{}: {e}", case.display()));
        assert_eq!(without_names(&description(&model)), without_names(&description(&again)), "{}", case.display());
        for key in model.config.keys().filter(|k| *k != "rope_scaling" && *k != "layer_types") {
            assert!(declared.config.contains_key(key), "{}: config key {key} was lost", case.display());
        }
    }
}

fn with_config(case: &str, edit: impl Fn(&mut serde_json::Map<String, serde_json::Value>)) -> Model {
    let checkpoint = moe_checkpoint::Checkpoint::open(&golden(case)).unwrap();
    let mut config = checkpoint.config().clone();
    edit(&mut config);
    let tensors = checkpoint.tensors().iter().map(|(n, t)| (n.clone(), moe_model::Weight::from(t.clone()))).collect();
    Model::assemble(config, Path::new("config.json"), tensors).unwrap()
}

/// An empty or null `rope_scaling` says nothing; what stands in `rope_parameters` must survive it.
#[test]
fn an_empty_rope_scaling_does_not_hide_rope_parameters() {
    for empty in [serde_json::json!(null), serde_json::json!({})] {
        let model = with_config("families/llama/yarn/model", |c| _ = c.insert("rope_scaling".into(), empty.clone()));
        let again = model.declare().unwrap().reread().unwrap();
        assert_eq!(model.rope, again.rope);
        assert!(matches!(again.rope.scaling, moe_model::RopeScaling::Yarn { .. }));
    }
}

/// transformers 4 looks for the pretraining context among the parameters only.
#[test]
fn the_effective_rope_parameters_are_written_out() {
    let key = "original_max_position_embeddings";
    let model = with_config("families/llama/llama3_old/model", |c| _ = c.insert(key.into(), serde_json::json!(24)));
    let config = model.declare().unwrap().config;
    for parameters in ["rope_scaling", "rope_parameters"] {
        assert_eq!(config[parameters][key], 24, "{parameters}");
    }
}

/// A stale second name of the expert count would win in some loaders.
#[test]
fn every_name_of_the_expert_count_is_kept_up_to_date() {
    let mut model =
        with_config("families/mixtral/base/model", |c| _ = c.insert("num_experts".into(), serde_json::json!(99)));
    for layer in &mut model.layers {
        let moe_model::Ffn::Moe(moe) = &mut layer.ffn else { continue };
        moe.experts.pop();
    }
    let config = model.declare().unwrap().config;
    assert_eq!(config["num_experts"], config["num_local_experts"]);
}
