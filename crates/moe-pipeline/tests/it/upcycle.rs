//! Upcycling keeps the function: planned, written and read again, for every dense golden.

use std::path::{Path, PathBuf};

use moe_checkpoint::Checkpoint;
use moe_forward::{Batch, Silent, logit_difference};
use moe_math::Compute;
use moe_model::{Ffn, Kind, Model};
use moe_passes::{Identity, Pass, PlannedModel, Sources, UpcycleOptions};
use moe_pipeline::{ConvertOptions, Quiet, convert};

use crate::common::{golden, run};

fn options(toml: &str) -> UpcycleOptions {
    toml::from_str(toml).unwrap()
}

fn plan(toml: &str, dense: &Model) -> moe_checkpoint::Result<PlannedModel> {
    Ok(options(toml).plan(&Sources::new(dense, &Compute::cpu()))?.planned)
}

/// Checkpoint and tokens of every dense golden of `family`.
fn cases(family: &str) -> Vec<(PathBuf, PathBuf)> {
    let dirs =
        std::fs::read_dir(golden("families").join(family)).unwrap().map(|e| e.unwrap().path());
    let mut cases: Vec<_> =
        dirs.filter(|d| d.is_dir()).map(|d| (d.join("model"), d.join("tokens.json"))).collect();
    cases.sort();
    cases
}

/// Largest |Δlogit| over the largest logit of the dense model.
fn relative_difference(dense: &Model, moe: &Model, batch: &Batch) -> f64 {
    let d = logit_difference(dense, moe, batch, &Compute::cpu(), &mut Silent).unwrap();
    d.max_logit_difference / d.max_logit.max(1.0)
}

/// Feed-forward biases, and for qwen3 a window in some layers only, have no MoE family here.
fn cannot_be_held(model: &Path, error: &moe_checkpoint::Error) -> bool {
    let says = |what: &str| error.kind() == Kind::Unsupported && error.to_string().contains(what);
    (model.ends_with("llama/bias/model") && says("have no biases"))
        || (model.ends_with("qwen3/layer_types/model")
            && says("a sliding window in some layers only"))
}

fn check_all(family: &str, toml: &str, exact: bool, tolerance: f64) {
    for (dir, tokens) in cases(family) {
        let name = dir.display();
        let (dense, batch) = (Model::open(&dir).unwrap(), Batch::from_json(&tokens).unwrap());
        let planned = plan(toml, &dense).and_then(|plan| plan.model.declare().map(|d| (plan, d)));
        let (plan, declaration) = match planned {
            Ok(planned) => planned,
            Err(e) if cannot_be_held(&dir, &e) => continue,
            Err(e) => panic!("{name}: {e}"),
        };
        assert_eq!(
            Identity::of(&plan.effects) == Identity::Exact,
            exact,
            "{name}: {:?}",
            Identity::of(&plan.effects)
        );
        let moe = declaration.reread().unwrap_or_else(|e| panic!("{name}: {e}"));
        let difference = relative_difference(&dense, &moe, &batch);
        assert!(difference < tolerance, "{name}, {toml}: {difference}");
    }
}

#[test]
fn copies_compute_the_dense_function_for_any_expert_count_and_top_k() {
    for family in ["llama", "mistral", "qwen2", "qwen3"] {
        for (experts, top_k) in [(8, 2), (5, 3), (3, 1), (4, 4), (1, 1)] {
            check_all(family, &format!("experts = {experts}\ntop-k = {top_k}"), true, 1e-5);
        }
        check_all(family, "experts = 6\ntop-k = 2\nrouter = 'zeros'", true, 1e-5);
        check_all(family, "experts = 6\ntop-k = 2\nrouter-std = 1.0\nseed = 9", true, 1e-5);
    }
}

#[test]
fn the_shared_expert_takes_its_share_exactly_at_powers_of_two() {
    for share in ["0.0", "0.5", "1.0"] {
        check_all(
            "qwen2",
            &format!("experts = 5\ntop-k = 2\nshared-fraction = {share}"),
            true,
            1e-5,
        );
    }
    // ×1.4 and ×0.3 round in the stored dtype: at most one part in 256 for bf16, on every neuron.
    check_all("qwen2", "experts = 5\ntop-k = 2\nshared-fraction = 0.7", false, 2e-2);
}

/// Without normalisation the weights sum to k/N only where the router is almost zero: down is
/// scaled by N/k.
#[test]
fn unnormalised_routing_is_made_up_for_by_scale() {
    for family in ["qwen2", "qwen3"] {
        check_all(
            family,
            "experts = 8\ntop-k = 2\nnorm-topk-prob = false\nrouter = 'zeros'",
            false,
            1e-3,
        );
        check_all(
            family,
            "experts = 6\ntop-k = 4\nnorm-topk-prob = false\nrouter = 'zeros'",
            false,
            2e-2,
        );
        // All experts are selected, so weights sum to 1 with any router.
        check_all(family, "experts = 4\ntop-k = 4\nnorm-topk-prob = false", true, 1e-5);
    }
}

#[test]
fn noise_changes_the_function_and_the_plan_says_so() {
    let (dir, tokens) = cases("llama").remove(0);
    let (dense, batch) = (Model::open(&dir).unwrap(), Batch::from_json(&tokens).unwrap());
    let plan = plan("experts = 4\ntop-k = 2\nnoise-std = 0.05", &dense).unwrap();
    assert!(matches!(Identity::of(&plan.effects), Identity::Changed { .. }));
    assert!(relative_difference(&dense, &plan.model, &batch) > 1e-3);
    let Ffn::Moe(moe) = &plan.model.layers[0].ffn else { panic!("layer 0 is dense") };
    let bytes = |e: usize| moe.experts[e].gate.weight.read().unwrap();
    assert_ne!(bytes(0), bytes(1), "experts get noise of their own");
    assert_eq!(bytes(0), bytes(0), "making twice gives the same bytes");
}

#[test]
fn without_normalisation_a_large_router_loses_identity_and_the_plan_says_so() {
    let (dir, tokens) = cases("qwen3").remove(0);
    let (dense, batch) = (Model::open(&dir).unwrap(), Batch::from_json(&tokens).unwrap());
    let plan =
        plan("experts = 4\ntop-k = 2\nnorm-topk-prob = false\nrouter-std = 1.0", &dense).unwrap();
    assert!(
        matches!(Identity::of(&plan.effects), Identity::Changed { .. }),
        "{:?}",
        Identity::of(&plan.effects)
    );
    assert!(relative_difference(&dense, &plan.model, &batch) > 1e-3);
}

fn written(input: &Path, output: &Path, toml: &str, shard: &str) -> moe_pipeline::Conversion {
    let options_of_run =
        ConvertOptions { max_shard_size: shard.parse().unwrap(), probe_tokens: 16, ..run() };
    convert(&[&options(toml)], input, output, &options_of_run, &Quiet).unwrap()
}

/// The written result, in one shard or many, is the planned one; copied tensors have the source's
/// bytes.
#[test]
fn written_experts_are_the_dense_network_byte_for_byte() {
    let temporary = tempfile::tempdir().unwrap();
    let input = golden("models/dense");
    for (name, shard) in [("one", "5GB"), ("many", "300KB")] {
        let output = temporary.path().join(name);
        let done = written(&input, &output, "experts = 5\ntop-k = 2", shard);
        assert!(done.receipt.measured.unwrap().difference.max_logit_difference < 1e-4);
        let checkpoint = Checkpoint::open(&output).unwrap();
        assert_eq!(checkpoint.files().len() > 1, name == "many");
        let (dense, moe) = (Model::open(&input).unwrap(), Model::open(&output).unwrap());
        for (before, after) in dense.layers.iter().zip(&moe.layers) {
            let (Ffn::Dense(ffn), Ffn::Moe(moe)) = (&before.ffn, &after.ffn) else {
                panic!("wrong kind of layer")
            };
            for expert in &moe.experts {
                for (a, b) in ffn.linears().iter().zip(expert.linears()) {
                    assert_eq!(
                        a.weight.read().unwrap(),
                        b.weight.read().unwrap(),
                        "{}",
                        b.weight.name()
                    );
                }
            }
            assert_eq!(
                before.attention.grouped().unwrap().q.weight.read().unwrap(),
                after.attention.grouped().unwrap().q.weight.read().unwrap()
            );
        }
        assert_eq!(dense.embed.read().unwrap(), moe.embed.read().unwrap());
    }
}

#[test]
fn impossible_requests_are_refused_before_anything_is_read() {
    for (toml, model, complaint) in [
        ("experts = 2\ntop-k = 3", "dense", "more than the 2 experts"),
        ("experts = 0\ntop-k = 0", "dense", "at least one"),
        ("experts = 4\ntop-k = 2\ntarget = 'gpt2'", "dense", "remedy: give --target mixtral"),
        ("experts = 4\ntop-k = 2\ntarget = 'qwen3_moe'", "dense", "remedy: give --target mixtral"),
        ("experts = 4\ntop-k = 2\nnorm-topk-prob = false", "dense", "fixes norm_topk_prob"),
        ("experts = 4\ntop-k = 2\nnoise-fraction = 1.5", "dense", "from 0 to 1"),
        ("experts = 4\ntop-k = 2", "moe", "is an MoE already"),
    ] {
        let model = Model::open(&golden("models").join(model)).unwrap();
        let error = plan(toml, &model).err().unwrap();
        assert_eq!(error.kind(), Kind::Usage, "{error}");
        assert!(error.to_string().contains(complaint), "{complaint}: {error}");
    }
}
