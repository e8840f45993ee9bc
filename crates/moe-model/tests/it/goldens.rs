//! Every golden checkpoint is understood, and says the same after being declared and read again.

use std::path::{Path, PathBuf};

use moe_model::{Model, families};

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden").join(path)
}

fn cases() -> Vec<PathBuf> {
    let list = |dir: PathBuf| {
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir())
    };
    let mut cases: Vec<_> =
        list(golden("families")).flat_map(list).map(|case| case.join("model")).collect();
    cases.extend([golden("models/dense"), golden("models/moe")]);
    cases.sort();
    cases
}

/// What a decoder needs to know of a model: everything but the weights' bytes.
fn description(model: &Model) -> String {
    let Model {
        hidden,
        vocab,
        heads,
        kv_heads,
        head_dim,
        norm_eps,
        rope,
        embed,
        layers,
        final_norm,
        head,
        mtp,
        ..
    } = model;
    format!(
        "{hidden} {vocab} {heads} {kv_heads} {head_dim} {norm_eps} {rope:?} {embed:?} {layers:#?} {final_norm:?} {head:?} {mtp:#?}"
    )
}

/// A weight's name says where it was read from, which fused experts change.
fn without_names(description: &str) -> String {
    description
        .lines()
        .map(|l| {
            l.split_once("model.").map_or(l, |(_, rest)| rest.split_once(' ').map_or("", |x| x.1))
        })
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
        assert_eq!(
            without_names(&description(&model)),
            without_names(&description(&again)),
            "{}",
            case.display()
        );
        for key in model.config.keys().filter(|k| *k != "rope_scaling" && *k != "layer_types") {
            assert!(
                declared.config.contains_key(key),
                "{}: config key {key} was lost",
                case.display()
            );
        }
    }
}

fn with_config(
    case: &str,
    edit: impl Fn(&mut serde_json::Map<String, serde_json::Value>),
) -> Model {
    try_with_config(case, edit).unwrap()
}

fn try_with_config(
    case: &str,
    edit: impl Fn(&mut serde_json::Map<String, serde_json::Value>),
) -> moe_model::Result<Model> {
    let checkpoint = moe_checkpoint::Checkpoint::open(&golden(case)).unwrap();
    let mut config = checkpoint.config().clone();
    edit(&mut config);
    let tensors = checkpoint
        .tensors()
        .iter()
        .map(|(n, t)| (n.clone(), moe_model::Weight::from(t.clone())))
        .collect();
    Model::assemble(config, Path::new("config.json"), tensors)
}

/// Names, encodings and sources of what `model` would be written as; but for fused experts, those
/// of its files.
fn names_and_bytes(model: &Model) -> Vec<String> {
    let declared = model.declare().unwrap();
    let mut found: Vec<_> =
        declared.tensors.iter().map(|(name, w)| format!("{name} from {w:?}")).collect();
    found.sort();
    found
}

#[test]
fn what_no_pass_touches_is_written_from_the_same_bytes_under_the_same_names() {
    for case in cases()
        .iter()
        .filter(|c| !c.ends_with("fused/model") && !c.ends_with("tied_own_head/model"))
    {
        let checkpoint = moe_checkpoint::Checkpoint::open(case).unwrap();
        let model = Model::read(&checkpoint).unwrap();
        let of_files: Vec<_> = checkpoint
            .tensors()
            .iter()
            .map(|(name, stored)| {
                format!("{name} from {:?}", moe_model::Weight::from(stored.clone()))
            })
            .collect();
        assert_eq!(names_and_bytes(&model), of_files, "{}", case.display());
    }
}

/// Through the writer and back, scales and prediction layers included.
#[test]
fn what_is_carried_is_written_byte_for_byte() {
    for case in [
        "families/deepseek_v3/fp8/model",
        "families/deepseek_v3/mtp/model",
        "families/glm4_moe/mtp/model",
    ] {
        let declared = Model::open(&golden(case)).unwrap().declare().unwrap();
        let of = |(name, w): &(String, moe_model::Weight)| moe_checkpoint::Declared {
            name: name.clone(),
            dtype: w.dtype(),
            shape: w.shape().to_vec(),
        };
        let shards = moe_checkpoint::plan_shards(
            &declared.tensors.iter().map(of).collect::<Vec<_>>(),
            20_000,
        )
        .unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut writer = moe_checkpoint::Writer::create(dir.path(), shards).unwrap();
        for (name, weight) in &declared.tensors {
            writer.push(name, &weight.read().unwrap()).unwrap();
        }
        writer.finish().unwrap();
        let config = serde_json::to_vec(&declared.config).unwrap();
        std::fs::write(dir.path().join(moe_checkpoint::CONFIG_FILE), config).unwrap();
        let (before, after) = (golden(case), dir.path());
        let open = |dir| moe_checkpoint::Checkpoint::open(dir).unwrap();
        let (before, after) = (open(&before), open(after));
        assert_eq!(before.tensors().len(), after.tensors().len());
        for (name, stored) in before.tensors() {
            let bytes = |stored: &moe_checkpoint::Stored| {
                moe_model::Weight::from(stored.clone()).read().unwrap()
            };
            let written = &after.tensors()[name];
            assert_eq!(
                (stored.dtype(), stored.shape()),
                (written.dtype(), written.shape()),
                "{name}"
            );
            assert!(bytes(stored) == bytes(written), "{case}: {name}");
        }
        Model::read(&after).unwrap();
    }
}

#[test]
fn quantized_weights_keep_their_scales_and_their_description() {
    let model = with_config("families/deepseek_v3/fp8/model", |_| {});
    let declared = model.declare().unwrap();
    assert_eq!(declared.config["quantization_config"], model.config["quantization_config"]);
    let scales =
        declared.tensors.iter().filter(|(name, _)| name.ends_with(".weight_scale_inv")).count();
    let codes = declared
        .tensors
        .iter()
        .filter(|(_, w)| w.dtype() == moe_checkpoint::Dtype::F8_E4M3)
        .count();
    assert!(scales > 20 && scales == codes, "{scales} scales of {codes} weights");
    for key in ["quant_method", "weight_block_size"] {
        let broken = try_with_config("families/deepseek_v3/fp8/model", |c| {
            c["quantization_config"][key] = serde_json::json!("gptq");
        });
        assert_eq!(broken.unwrap_err().kind(), moe_model::Kind::Unsupported);
    }
    let plain =
        try_with_config("families/deepseek_v3/fp8/model", |c| _ = c.remove("quantization_config"))
            .unwrap_err();
    assert!(plain.to_string().contains("F8_E4M3"), "{plain}");
}

#[test]
fn layers_for_multi_token_prediction_are_carried_pruned_or_dropped() {
    for (case, count) in [("families/deepseek_v3/mtp/model", 2), ("families/glm4_moe/mtp/model", 1)]
    {
        let mut model = with_config(case, |_| {});
        assert_eq!(model.mtp.len(), count);
        assert!(
            model
                .mtp
                .iter()
                .all(|m| m.layer.ffn.moe().is_some() && m.embed.is_some() && m.head.is_some())
        );
        assert!(model.parameters().multi_token > 0);
        let shrink = |layer: &mut moe_model::Layer| {
            let moe_model::Ffn::Moe(moe) = &mut layer.ffn else { return };
            moe.experts.pop();
            let (shape, dtype) =
                ([moe.experts.len(), moe.router.weight.shape()[1]], moe.router.weight.dtype());
            moe.router.weight = moe_model::Weight::made(
                "fewer rows",
                dtype,
                &shape,
                Zeros(2 * shape[0] * shape[1]),
            );
            let bias = moe.router.bias.as_ref().unwrap().dtype();
            moe.router.bias = Some(moe_model::Weight::made(
                "fewer",
                bias,
                &shape[..1],
                Zeros(shape[0] * bias.bitsize() / 8),
            ));
        };
        model.layers.iter_mut().for_each(shrink);
        let refused = model.declare().unwrap_err();
        assert!(refused.to_string().contains("number of experts"), "{refused}");
        let mut dropped = model.clone();
        dropped.mtp.clear();
        let declared = dropped.declare().unwrap();
        assert_eq!(declared.config["num_nextn_predict_layers"], 0);
        assert!(declared.reread().unwrap().mtp.is_empty());
        model.mtp.iter_mut().for_each(|mtp| shrink(&mut mtp.layer));
        assert_eq!(model.declare().unwrap().reread().unwrap().mtp.len(), count);
    }
}

struct Zeros(usize);

impl moe_model::WeightSource for Zeros {
    fn make(&self) -> moe_model::Result<Vec<u8>> {
        Ok(vec![0; self.0])
    }
}

/// Tensors of layers that the config doesn't count are nobody's.
#[test]
fn prediction_layers_must_be_counted_and_whole() {
    let case = "families/deepseek_v3/mtp/model";
    let key = "num_nextn_predict_layers";
    for (count, what) in [(0, "no such tensor"), (1, "no such tensor"), (3, "is missing")] {
        let error = try_with_config(case, |c| _ = c.insert(key.into(), serde_json::json!(count)))
            .unwrap_err();
        assert!(error.to_string().contains(what), "{count}: {error}");
    }
    // transformers counts one by default, and has none.
    let model = with_config("families/deepseek_v3/base/model", |c| _ = c.remove(key));
    assert!(model.mtp.is_empty());
}

/// What would silently be another function is refused by its name.
#[test]
fn other_routing_than_the_family_has_is_refused() {
    for (case, key, value) in [
        ("deepseek_v3/base", "scoring_func", serde_json::json!("softmax")),
        ("deepseek_v3/base", "topk_method", serde_json::json!("greedy")),
        ("deepseek_v3/base", "moe_layer_freq", serde_json::json!(2)),
        ("deepseek_v2/base", "topk_method", serde_json::json!("noaux_tc")),
        ("deepseek_v2/base", "scoring_func", serde_json::json!("sigmoid")),
        ("deepseek_v3/base", "n_group", serde_json::json!(8)),
        ("deepseek_v3/base", "n_group", serde_json::json!(3)),
        ("deepseek_v3/base", "topk_group", serde_json::json!(5)),
        ("deepseek_v3/base", "topk_group", serde_json::json!(1)),
        ("llama/base", "partial_rotary_factor", serde_json::json!(0.5)),
    ] {
        let edit = |c: &mut serde_json::Map<_, _>| _ = c.insert(key.into(), value.clone());
        let error =
            try_with_config(&format!("families/{case}/model"), edit).unwrap_err().to_string();
        assert!(error.contains(if key == "topk_group" { "" } else { key }), "{error}");
    }
}

/// An empty or null `rope_scaling` says nothing; what stands in `rope_parameters` must survive it.
#[test]
fn an_empty_rope_scaling_does_not_hide_rope_parameters() {
    for empty in [serde_json::json!(null), serde_json::json!({})] {
        let model = with_config("families/llama/yarn/model", |c| {
            _ = c.insert("rope_scaling".into(), empty.clone())
        });
        let again = model.declare().unwrap().reread().unwrap();
        assert_eq!(model.rope, again.rope);
        assert!(matches!(again.rope.scaling, moe_model::RopeScaling::Yarn { .. }));
    }
}

/// transformers 4 looks for the pretraining context among the parameters only.
#[test]
fn the_effective_rope_parameters_are_written_out() {
    let key = "original_max_position_embeddings";
    let model = with_config("families/llama/llama3_old/model", |c| {
        _ = c.insert(key.into(), serde_json::json!(24))
    });
    let config = model.declare().unwrap().config;
    for parameters in ["rope_scaling", "rope_parameters"] {
        assert_eq!(config[parameters][key], 24, "{parameters}");
    }
}

/// A stale second name of the expert count would win in some loaders.
#[test]
fn every_name_of_the_expert_count_is_kept_up_to_date() {
    let mut model = with_config("families/mixtral/base/model", |c| {
        _ = c.insert("num_experts".into(), serde_json::json!(99))
    });
    for layer in &mut model.layers {
        let moe_model::Ffn::Moe(moe) = &mut layer.ffn else { continue };
        moe.experts.pop();
    }
    let config = model.declare().unwrap().config;
    assert_eq!(config["num_experts"], config["num_local_experts"]);
}

#[test]
fn caveats_are_those_of_what_a_model_has() {
    let caveats = |case: &str| -> Vec<String> {
        let model = Model::open(&golden("families").join(case).join("model")).unwrap();
        model.caveats().map(str::to_owned).collect()
    };
    for (case, word) in [
        ("deepseek_v2/hub", "mscale_all_dim"),
        ("deepseek_v2/yarn", "mscale_all_dim"),
        ("deepseek_v2/bias", "mlp_bias"),
        ("qwen2_moe/sliding", "layer_types"),
    ] {
        let found = caveats(case);
        assert!(found.len() == 1 && found[0].contains(word), "{case}: {found:?}");
    }
    for case in ["deepseek_v2/base", "deepseek_v2/greedy", "deepseek_v3/base", "qwen2_moe/base"] {
        assert_eq!(caveats(case), [""; 0], "{case}");
    }
}

/// What `golden/families/strict.py` found by asking transformers.
#[test]
fn strict_types_are_those_of_transformers() {
    let found = std::fs::read(golden("families/strict.json")).unwrap();
    let found: std::collections::BTreeMap<String, moe_model::Strict> =
        serde_json::from_slice(&found).unwrap();
    assert!(found.keys().eq(families().keys()));
    for (name, family) in families() {
        assert_eq!(family.strict, found[name], "{name}");
    }
    for case in cases() {
        let model = Model::open(&case).unwrap();
        assert_eq!(model.family.strict.refused(&model.config), [""; 0], "{}", case.display());
        let declared = model.declare().unwrap().config;
        assert_eq!(model.family.strict.refused(&declared), [""; 0], "{}", case.display());
    }
    // Whole numbers get a point where one is wanted.
    let model = with_config("families/qwen3_moe/base/model", |c| {
        _ = c.insert("initializer_range".into(), 1.into())
    });
    assert_eq!(model.declare().unwrap().config["initializer_range"].to_string(), "1.0");
}

/// AutoConfig takes such a config for model_type ministral, whose windows differ by layer.
#[test]
fn a_list_of_layer_types_says_which_layers_of_a_mistral_have_a_window() {
    let (full, sliding) = ("full_attention", "sliding_attention");
    for (types, windows) in [
        ([full, full], [None, None]),
        ([full, sliding], [None, Some(6)]),
        ([sliding; 2], [Some(6); 2]),
    ] {
        let model = with_config("families/mistral/base/model", |c| {
            _ = c.insert("layer_types".into(), types.into())
        });
        let found: Vec<_> = model.layers.iter().map(|layer| layer.attention.window()).collect();
        assert_eq!(found, windows);
        let declared = model.declare().unwrap();
        assert_eq!(
            declared.config.contains_key("layer_types"),
            windows[0] != windows[1],
            "{types:?}"
        );
        let again: Vec<_> = declared
            .reread()
            .unwrap()
            .layers
            .iter()
            .map(|layer| layer.attention.window())
            .collect();
        assert_eq!(again, windows);
    }
}

#[test]
fn layers_that_slide_without_a_window_are_refused_with_a_remedy() {
    let edit = |c: &mut serde_json::Map<String, serde_json::Value>| {
        c.insert("layer_types".into(), ["full_attention", "sliding_attention"].into());
        c.insert("sliding_window".into(), serde_json::Value::Null);
    };
    let error = try_with_config("families/mistral/base/model", edit).unwrap_err();
    let remedy = error.to_string();
    assert!(remedy.contains("layer_types") && remedy.contains("set the window"), "{remedy}");
}

#[test]
fn code_of_a_model_is_left_with_its_family_and_a_tokenizers_is_not() {
    let map = serde_json::json!({ "AutoConfig": "c.C", "AutoModelForCausalLM": "m.M", "AutoTokenizer": ["t.T", null] });
    let mut model = with_config("families/llama/base/model", |c| {
        c.insert("auto_map".into(), map.clone());
        c.insert("transformers_weights".into(), "model.safetensors".into());
    });
    let config = model.declare().unwrap().config;
    assert_eq!(config["auto_map"], map);
    assert!(!config.contains_key("transformers_weights"));
    model.family = &families()["mistral"];
    assert_eq!(
        model.declare().unwrap().config["auto_map"],
        serde_json::json!({ "AutoTokenizer": ["t.T", null] })
    );
}
