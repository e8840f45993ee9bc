//! Merging from checkpoint to checkpoint: written, read again, and refused where it can't work.

use std::path::Path;

use moe_checkpoint::{Error, Kind};
use moe_math::Compute;
use moe_model::{Model, Moe};
use moe_passes::{MergeOptions, Pass, Sources};
use moe_pipeline::{
    FoundResult, ObserveOptions, Quiet, convert, find_result, observe, recipe_schema, verify,
};

use crate::common::{calibration_text, golden, run};

fn options(toml: &str) -> MergeOptions {
    toml::from_str(toml).unwrap()
}

/// Options that merge to 24 experts of the built-in MoE, by 512 tokens of text.
fn with_data(toml: &str) -> MergeOptions {
    options(&format!(
        "{toml}\ndata = [{:?}]\ndata-tokens = 512\nsequence-length = 128",
        calibration_text("english")
    ))
}

fn merge(options: &MergeOptions, output: &Path) -> Result<Model, Error> {
    convert(&[options], &golden("models/moe"), output, &run(), &Quiet)?;
    Model::open(output)
}

fn moe(model: &Model, layer: usize) -> &Moe {
    model.layers[layer].ffn.moe().unwrap()
}

/// Kept router rows and experts that weren't merged have the source's bytes; the layer has no other
/// experts.
fn assert_shrunk(source: &Model, merged: &Model, clusters: &[(usize, Vec<Vec<usize>>)]) {
    for (layer, clusters) in clusters {
        let (before, after) = (moe(source, *layer), moe(merged, *layer));
        assert_eq!(
            (after.experts.len(), after.router.weight.shape()[0]),
            (clusters.len(), clusters.len())
        );
        let rows = before.router.weight.read().unwrap();
        let row = rows.len() / before.experts.len();
        let kept: Vec<u8> =
            clusters.iter().flat_map(|cluster| &rows[cluster[0] * row..][..row]).copied().collect();
        assert_eq!(after.router.weight.read().unwrap(), kept);
        for (cluster, expert) in clusters.iter().zip(&after.experts) {
            let original = &before.experts[cluster[0]];
            for (a, b) in expert.linears().into_iter().zip(original.linears()) {
                assert_eq!(a.weight.dtype(), b.weight.dtype());
                let same = a.weight.read().unwrap() == b.weight.read().unwrap();
                assert!(
                    cluster.len() > 1 || same,
                    "layer {layer}: expert {} stands alone",
                    cluster[0]
                );
            }
        }
    }
}

#[test]
fn every_method_shrinks_the_file() {
    let source = Model::open(&golden("models/moe")).unwrap();
    let schema = recipe_schema();
    let words = &schema["$defs"]["merge"]["properties"]["algorithm"]["anyOf"][0]["enum"];
    let algorithms: Vec<String> = serde_json::from_value(words.clone()).unwrap();
    for method in algorithms {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("merged");
        let merged =
            merge(&with_data(&format!("algorithm = {method:?}\nexperts = 16")), &output).unwrap();
        let receipt: serde_json::Value = serde_json::from_slice(
            &std::fs::read(output.join(moe_pipeline::RECEIPT_FILE)).unwrap(),
        )
        .unwrap();
        let of_layer = |record: &serde_json::Value| {
            let clusters = serde_json::from_value(record["details"]["clusters"].clone()).unwrap();
            (record["layer"].as_u64().unwrap() as usize, clusters)
        };
        let clusters: Vec<(usize, Vec<Vec<usize>>)> =
            receipt["layers"].as_array().unwrap().iter().map(of_layer).collect();
        assert_eq!(clusters.len(), 4, "{method}");
        for layer in receipt["layers"].as_array().unwrap() {
            let share = |key: &str| layer["details"][key].as_f64().unwrap();
            let figures = (share("retained_mass"), share("lost_choices"));
            match method.as_str() {
                // Some neurons find no match.
                "dern" => {
                    assert!(figures.0 < 1.0 && figures.0 > 0.5 && figures.1 > 0.0, "{figures:?}")
                }
                _ => assert_eq!(figures, (1.0, 0.0), "{method}: no expert is lost"),
            }
        }
        assert_shrunk(&source, &merged, &clusters);
        assert_eq!(verify(&output, &Quiet).unwrap().experts, 4 * 16, "{method}");
    }
}

#[test]
fn the_same_options_give_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str| {
        merge(&with_data("experts = 12"), &dir.path().join(name)).unwrap();
        std::fs::read(dir.path().join(name).join("model.safetensors")).unwrap()
    };
    assert!(write("a") == write("b"));
}

#[test]
fn statistics_without_samples_are_refused_and_with_them_are_enough() {
    let dir = tempfile::tempdir().unwrap();
    let stats = dir.path().join("stats");
    let see = |sample_every: usize| {
        let toml = format!(
            "all-experts-every = {sample_every}\ndata = [{:?}]\ndata-tokens = 256",
            calibration_text("code")
        );
        let options: ObserveOptions = toml::from_str(&toml).unwrap();
        observe(&golden("models/moe"), &options, &stats, true, None, &Compute::cpu(), &Quiet)
            .unwrap();
    };
    let of = |method: &str| {
        options(&format!(
            "experts = 12\nalgorithm = {method:?}\nstats = {:?}",
            stats.display().to_string()
        ))
    };
    see(0);
    for method in ["hc-smoe", "average"] {
        let error = merge(&of(method), &dir.path().join("refused")).unwrap_err().to_string();
        assert!(error.contains("--all-experts-every 1"), "{error}");
    }
    merge(&of("ream"), &dir.path().join("ream")).unwrap();
    merge(&of("dern"), &dir.path().join("dern")).unwrap();
    see(4);
    merge(&of("hc-smoe"), &dir.path().join("clustered")).unwrap();
}

fn refusal(model: &str, options: &MergeOptions) -> Error {
    let model = Model::open(&golden(model)).unwrap();
    options.plan(&Sources::new(&model, &Compute::cpu())).err().expect("a refusal")
}

#[test]
fn what_cannot_work_is_refused_before_anything_is_read() {
    for (toml, complaints) in [
        ("experts = 12\nalgorithm = \"m-smoe\"\ngroup-cap = 4", ["--group-cap is for", "ream"]),
        (
            "experts = 12\nalgorithm = \"ream\"\ndern-threshold = 0.5",
            ["--dern-threshold is for", "dern"],
        ),
        (
            "experts = 4\nalgorithm = \"ream\"\ngroup-cap = 4",
            ["can't hold 24 experts", "--group-cap 6"],
        ),
        (
            "experts = 12\nalgorithm = \"hc-smoe\"\nall-experts-every = 0",
            ["runs them on no token", "at least 1"],
        ),
        ("experts = 12\nalgorithm = \"dern\"\ndern-threshold = 1.5", ["not a cosine", "-1 to 1"]),
    ] {
        let message = refusal("models/moe", &with_data(toml)).to_string();
        assert!(complaints.iter().all(|c| message.contains(c)), "{toml}: {message}");
    }
}

#[test]
fn numbers_of_experts_that_a_model_cannot_have_are_refused() {
    for (model, toml, complaints) in [
        ("models/moe", "experts = 3", ["more than the 3", "keep 4 experts or more"]),
        ("families/deepseek_v3/base/model", "experts = 6", ["4 groups", "all 8 experts"]),
        ("families/deepseek_v3/base/model", "experts = 4", ["fewer than the 2", "all 8 experts"]),
    ] {
        let message = refusal(model, &with_data(toml)).to_string();
        assert!(complaints.iter().all(|c| message.contains(c)), "{toml}: {message}");
    }
}

#[test]
fn methods_without_the_text_that_they_need_are_refused() {
    let stats = options("experts = 12\nalgorithm = \"mergemoe\"\nstats = \"s\"");
    assert!(refusal("models/moe", &stats).to_string().contains("give --data instead of --stats"));
    let none = refusal("models/moe", &options("experts = 12"));
    assert!(none.to_string().contains("give --data TEXT"), "{none}");
}

#[test]
fn experts_in_fp8_blocks_are_refused_by_name() {
    let error = refusal("families/deepseek_v3/fp8/model", &with_data("experts = 3"));
    assert_eq!(error.kind(), Kind::Unsupported);
    let message = error.to_string();
    assert!(
        message.contains("experts.0.gate_proj.weight") && message.contains("unquantized"),
        "{message}"
    );
}

#[test]
fn a_finished_merge_is_recognised() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("out");
    let (input, options) = (golden("models/moe"), with_data("experts = 12"));
    merge(&options, &output).unwrap();
    assert_eq!(find_result(&[&options], &input, &output, &run()).unwrap(), FoundResult::Same);
    let other = with_data("experts = 13");
    assert!(matches!(
        find_result(&[&other], &input, &output, &run()).unwrap(),
        FoundResult::Other(_)
    ));
}
