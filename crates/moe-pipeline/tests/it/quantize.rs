//! Quantizing from checkpoint to checkpoint: written, read again as other programs wrote it, and
//! refused where it can't work.

use std::path::{Path, PathBuf};

use moe_checkpoint::Error;
use moe_checkpoint::quantization::{Integers, Scheme};
use moe_forward::quantized_values;
use moe_math::Compute;
use moe_model::{Encoding, Expert, Model};
use moe_passes::PoolStats;
use moe_passes::QuantizeOptions;
use moe_passes::quantize::{ExpertRecord, Fallback, QuantizedLayer};
use moe_pipeline::{ByteSize, ConvertOptions, Quiet, Receipt, convert, verify};

use crate::common::{calibration_text, golden, run_again};

fn options(toml: &str) -> QuantizeOptions {
    toml::from_str(toml).unwrap()
}

/// Options with 1,024 tokens of English as calibration text.
fn with_data(toml: &str) -> QuantizeOptions {
    options(&format!(
        "{toml}\ndata = [{:?}]\ndata-tokens = 1024\nsequence-length = 128",
        calibration_text("english")
    ))
}

fn quantize(
    options: &QuantizeOptions,
    model: &Path,
    output: &Path,
) -> Result<(Model, Receipt), Error> {
    let receipt = convert(&[options], model, output, &run_again(), &Quiet)?.receipt;
    Ok((Model::open(output)?, receipt))
}

fn experts(model: &Model) -> impl Iterator<Item = &Expert> {
    model.moes().flat_map(|(_, moe)| &moe.experts)
}

fn values(expert: &Expert) -> Vec<f32> {
    expert
        .linears()
        .iter()
        .flat_map(|linear| quantized_values(&linear.weight).unwrap().unwrap())
        .collect()
}

/// √(Σ (w − ŵ)² / Σ w²) over all experts.
fn distance(source: &Model, quantized: &Model) -> f64 {
    let (mut error, mut all) = (0.0, 0.0);
    for (a, b) in experts(source).zip(experts(quantized)) {
        let plain = a.linears().map(|linear| {
            moe_forward::to_f32(&linear.weight, &Compute::cpu())
                .unwrap()
                .flatten_all()
                .unwrap()
                .to_vec1::<f32>()
                .unwrap()
        });
        for (w, q) in plain.concat().iter().zip(values(b)) {
            error += f64::from(w - q).powi(2);
            all += f64::from(*w).powi(2);
        }
    }
    (error / all).sqrt()
}

/// Options of schemes, and how far from the weights their values are at most.
const SCHEMES: [(&str, f64); 10] = [
    ("scheme = \"w8a16\"\nsolver = \"rtn\"", 0.012),
    ("scheme = \"w4a16\"\nsolver = \"rtn\"\ngroup-size = 32", 0.11),
    ("scheme = \"w4a16\"\nsolver = \"rtn\"\ngroup-size = 32\nasymmetric = true", 0.10),
    ("scheme = \"w3a16\"\nsolver = \"rtn\"\ngroup-size = -1", 0.32),
    ("scheme = \"w2a16\"\nsolver = \"rtn\"\ngroup-size = 64", 0.65),
    ("scheme = \"w4a16\"\nsolver = \"rtn\"\nformat = \"gptq\"\ngroup-size = 32", 0.11),
    (
        "scheme = \"w3a16\"\nsolver = \"rtn\"\nformat = \"gptq\"\ngroup-size = 32\nasymmetric = true",
        0.22,
    ),
    ("scheme = \"fp8\"", 0.03),
    ("scheme = \"fp8-block\"", 0.03),
    ("scheme = \"fp8-block\"\nformat = \"compressed-tensors\"", 0.03),
];

#[test]
fn every_scheme_is_written_verified_and_read_again() {
    let out = tempfile::tempdir().unwrap();
    let source = Model::open(&golden("models/moe")).unwrap();
    for (toml, most) in SCHEMES {
        let output = out.path().join("out");
        let (model, receipt) = quantize(&options(toml), &golden("models/moe"), &output).unwrap();
        verify(&output, &Quiet).unwrap();
        let found = distance(&source, &model);
        assert!(found > most / 3.0 && found < most, "{toml}: {found}");
        // All tensors except experts are the source's, byte for byte.
        assert_eq!(receipt.result.tensors_copied, 38, "{toml}");
        let measured = receipt.measured.unwrap().difference;
        assert!(
            measured.max_logit_difference > 0.0 && measured.max_logit_difference.is_finite(),
            "{toml}"
        );
    }
}

/// recipes/full/compare-samples.toml shows which of these is best: one text and one model are no
/// evidence.
#[test]
fn gptq_says_how_each_expert_fared() {
    let out = tempfile::tempdir().unwrap();
    for toml in [
        "calibrate-on = \"routed\"",
        "calibrate-on = \"all-experts\"",
        "calibrate-on = \"top-up\"",
        "per-expert = true",
    ] {
        let options = with_data(&format!("{toml}\nscheme = \"w3a16\"\ngroup-size = 32"));
        let (_, receipt) =
            quantize(&options, &golden("models/moe"), &out.path().join("out")).unwrap();
        assert_eq!(receipt.layers.len(), 4);
        for layer in &receipt.layers {
            let details: QuantizedLayer = layer.details().unwrap();
            assert_eq!(details.experts.len(), 24);
            for ExpertRecord { counts, effective, damping, error, .. } in &details.experts {
                assert!(error.is_some_and(|e| e > 0.0 && e < 0.5), "{error:?}");
                assert!(
                    *effective > 0.0
                        && *effective <= (counts.used + counts.topped_up) as f64 + 1e-6
                );
                assert!(damping.unwrap().iter().all(|d| (0.01..=1.0).contains(d)));
                if toml.contains("top-up") || toml.contains("per-expert") {
                    assert!(counts.used + counts.topped_up >= 64, "{counts:?}");
                }
            }
        }
    }
}

/// A copy of the built-in MoE; `edit` changes the bytes of one tensor.
fn edited(dir: &Path, tensor: &str, edit: impl FnOnce(&mut [u8])) -> PathBuf {
    let copy = dir.join("edited");
    std::fs::create_dir(&copy).unwrap();
    for file in std::fs::read_dir(golden("models/moe")).unwrap().map(|entry| entry.unwrap().path())
    {
        std::fs::copy(&file, copy.join(file.file_name().unwrap())).unwrap();
    }
    let weights = copy.join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let (_, entries) = moe_checkpoint::SourceFile::open(&weights).unwrap();
    let data = bytes.len() - entries.iter().map(|e| e.end).max().unwrap() as usize;
    let entry = entries.iter().find(|entry| entry.name == tensor).unwrap();
    edit(&mut bytes[data + entry.start as usize..data + entry.end as usize]);
    std::fs::write(&weights, bytes).unwrap();
    copy
}

/// A copy of the built-in MoE in which the router never chooses expert 3 of layer 1.
fn shunned(dir: &Path) -> PathBuf {
    edited(dir, "model.layers.1.mlp.gate.weight", |bytes| {
        // The opposite of the mean of all rows: the more a token prefers the others, the less it
        // prefers this expert.
        let row = |e: usize| -> Vec<f32> {
            let row = &bytes[e * 256..][..256];
            row.as_chunks().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect()
        };
        let rows: Vec<_> = (0..24).map(row).collect();
        for column in 0..128 {
            let mean = rows.iter().map(|row| row[column]).sum::<f32>() / 24.0;
            let value = half::bf16::from_f32(-8.0 * mean).to_le_bytes();
            bytes[3 * 256 + 2 * column..][..2].copy_from_slice(&value);
        }
    })
}

#[test]
fn what_reaches_an_expert_and_is_not_finite_is_named() {
    let dir = tempfile::tempdir().unwrap();
    // Weights that fit in a file, but whose products overflow.
    let model = edited(dir.path(), "model.layers.2.mlp.experts.5.gate_proj.weight", |bytes| {
        bytes
            .as_chunks_mut()
            .0
            .iter_mut()
            .for_each(|b| *b = half::bf16::from_f32(1e38).to_le_bytes());
    });
    let message = quantize(&with_data("group-size = 32"), &model, &dir.path().join("out"))
        .unwrap_err()
        .to_string();
    for word in ["down_proj", "expert 5", "layer 2", "not finite"] {
        assert!(message.contains(word), "{word}: {message}");
    }
    assert!(!dir.path().join("out").exists());
}

/// English alone leaves experts short of tokens; a few sequences of other text supply most of the
/// missing ones.
#[test]
fn a_pool_brings_cold_experts_tokens_of_their_own() {
    let out = tempfile::tempdir().unwrap();
    let measured = |toml: &str| {
        let options = with_data(&format!("scheme = \"w3a16\"\ngroup-size = 32\n{toml}"));
        let (_, receipt) =
            quantize(&options, &golden("models/moe"), &out.path().join("out")).unwrap();
        let topped_up: usize =
            receipt.coldest().iter().map(|(.., record)| record.counts.topped_up).sum();
        (topped_up, receipt)
    };
    let (topped_up, receipt) = measured("");
    assert!(receipt.pool.is_none());
    let pool = format!(
        "pool = [{:?}, {:?}]\npool-tokens = 4096",
        calibration_text("spanish"),
        calibration_text("arithmetic")
    );
    let (fewer, receipt) = measured(&pool);
    let PoolStats { scanned, joined, short } = receipt.pool.unwrap();
    assert_eq!(scanned, [64, 8192]);
    assert!(joined[0] > 0 && joined[1] <= 1024 && joined[1] == joined[0] * 128, "{joined:?}");
    assert!(short[1] < short[0], "{short:?}");
    assert!(fewer < topped_up, "tokens of their own take the place of others: {fewer} {topped_up}");
    assert!(receipt.texts.contains_key("arithmetic.calibration.txt"));
    // With less room, fewer sequences join.
    let (_, receipt) = measured(&format!("{pool}\npool-added-tokens = 256"));
    assert_eq!(receipt.pool.unwrap().joined, [2, 256]);
}

#[test]
fn an_expert_without_tokens_is_calibrated_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let (model, out) = (shunned(dir.path()), dir.path().join("out"));
    let source = Model::open(&model).unwrap();
    let original = values_of_plain(experts(&source).nth(24 + 3).unwrap());
    for samples in ["routed", "all-experts", "top-up", "per-expert"] {
        let toml = format!("calibrate-on = {samples:?}\nscheme = \"w4a16\"\ngroup-size = 32");
        let (quantized, receipt) = quantize(&with_data(&toml), &model, &out).unwrap();
        let record = &receipt.layers[1].details::<QuantizedLayer>().unwrap().experts[3];
        assert!(record.counts.routed < 128, "{record:?}");
        let found = values(experts(&quantized).nth(24 + 3).unwrap());
        assert!(found.iter().all(|w| w.is_finite()));
        let far: f64 = original.iter().zip(&found).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        let all: f64 = original.iter().map(|w| f64::from(*w).powi(2)).sum();
        assert!((far / all).sqrt() < 0.25, "{samples}: {}", (far / all).sqrt());
        if samples == "routed" && record.counts.routed == 0 {
            assert_eq!(record.fallback, Some(Fallback::NoTokenOfItsOwn));
        }
        if samples == "top-up" || samples == "per-expert" {
            assert!(
                record.counts.topped_up > 0 && record.error.is_some() && record.fallback.is_none(),
                "{record:?}"
            );
        }
    }
}

fn values_of_plain(expert: &Expert) -> Vec<f32> {
    let plain = |weight| {
        moe_forward::to_f32(weight, &Compute::cpu())
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1::<f32>()
            .unwrap()
    };
    expert.linears().iter().flat_map(|linear| plain(&linear.weight)).collect()
}

#[test]
fn the_same_bytes_come_out_again_and_through_a_scratch_file() {
    let dir = tempfile::tempdir().unwrap();
    let options =
        with_data("per-expert = true\ngroup-size = 32\nact-order = true\nclip-search = true");
    let written = |name: &str, budget: Option<ByteSize>| {
        let output = dir.path().join(name);
        let run = ConvertOptions { memory_budget: budget, ..run_again() };
        convert(&[&options], &golden("models/moe"), &output, &run, &Quiet).unwrap();
        std::fs::read(output.join("model.safetensors")).unwrap()
    };
    let first = written("a", None);
    assert!(first == written("b", None));
    // A smaller budget holds neither states nor codes.
    assert!(first == written("c", Some(ByteSize(110_000_000))));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
}

#[test]
fn shared_experts_are_quantized_on_request() {
    let dir = tempfile::tempdir().unwrap();
    let model = golden("families/qwen2_moe/base/model");
    for include in [false, true] {
        let toml = format!(
            "solver = \"rtn\"\ngroup-size = -1{}",
            if include { "\ninclude = [\"shared\"]" } else { "" }
        );
        let (quantized, _) = quantize(&options(&toml), &model, &dir.path().join("out")).unwrap();
        let shared = quantized.moes().filter_map(|(_, moe)| moe.shared.as_ref());
        let encodings: Vec<bool> = shared
            .flat_map(|s| s.expert.linears())
            .map(|l| !matches!(l.weight.encoding(), Encoding::Plain))
            .collect();
        assert!(!encodings.is_empty() && encodings.iter().all(|quantized| *quantized == include));
    }
}

/// The values of all projections of the attention, quantized with `options` into `out`.
fn attention_values(options: &QuantizeOptions, out: &Path) -> Vec<Vec<f32>> {
    let (quantized, receipt) = quantize(options, &golden("models/moe"), out).unwrap();
    let linears: Vec<_> =
        quantized.layers.iter().flat_map(|layer| layer.attention.linears()).collect();
    assert!(
        linears.len() == 16
            && linears.iter().all(|l| matches!(l.weight.encoding(), Encoding::Packed(_)))
    );
    assert!(receipt.layers.iter().all(|layer| {
        let schemes = &layer.encodings.attention.as_ref().unwrap().schemes;
        matches!(schemes[..], [Scheme::Integers(Integers { bits: 3, .. })])
    }));
    linears.iter().map(|linear| quantized_values(&linear.weight).unwrap().unwrap()).collect()
}

#[test]
fn attention_is_quantized_by_gptq_on_the_inputs_of_its_projections() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let toml = "scheme = \"w3a16\"\ngroup-size = 32\ninclude = [\"attention\"]";
    let gptq = attention_values(&with_data(toml), &out);
    let rtn = attention_values(&options(&format!("{toml}\nsolver = \"rtn\"")), &out);
    assert!(
        gptq.iter().zip(&rtn).all(|(gptq, rtn)| gptq != rtn),
        "every projection sees what reaches it"
    );
}

/// Latent attention has more projections.
#[test]
fn every_projection_of_latent_attention_is_quantized() {
    let dir = tempfile::tempdir().unwrap();
    let (out, ids) = (dir.path().join("out"), dir.path().join("ids.jsonl"));
    let line = |first: usize| {
        format!("{{\"input_ids\": {:?}}}\n", (first..first + 20).collect::<Vec<_>>())
    };
    std::fs::write(&ids, (1..6).map(line).collect::<String>()).unwrap();
    let data = ids.display().to_string();
    let toml = format!("group-size = -1\ninclude = [\"attention\"]\ndata = [{data:?}]");
    for (family, projections) in [("deepseek_v2/greedy", 4), ("deepseek_v3/base", 5)] {
        let model = golden(&format!("families/{family}/model"));
        let (quantized, _) = quantize(&options(&toml), &model, &out).unwrap();
        for layer in &quantized.layers {
            let linears = layer.attention.linears();
            assert_eq!(linears.len(), projections, "{family}");
            let mut encodings = linears.iter().map(|linear| linear.weight.encoding());
            assert!(encodings.all(|encoding| matches!(encoding, Encoding::Packed(_))));
        }
        verify(&out, &Quiet).unwrap();
    }
}

#[track_caller]
fn assert_refused(options: &QuantizeOptions, model: &str, words: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let message = quantize(options, &golden(model), &out).unwrap_err().to_string();
    assert!(words.iter().all(|word| message.contains(word)), "{message}");
    assert!(!out.exists());
}

const MOE: &str = "models/moe";

#[test]
fn groups_that_do_not_fit_are_refused() {
    let groups = ["groups of 96", "gate_proj", "--group-size 128 or 64 or 32"];
    assert_refused(&with_data("group-size = 96"), MOE, &groups);
    assert_refused(&with_data("group-size = 0"), MOE, &["--group-size"]);
    let whole_rows = options("solver = \"rtn\"\ngroup-size = -1\nformat = \"gptq\"");
    assert_refused(&whole_rows, "families/mixtral/base/model", &["32"]);
}

#[test]
fn data_is_wanted_where_it_is_looked_at() {
    assert_refused(&options(""), MOE, &["--data", "--solver rtn"]);
    assert_refused(&with_data("solver = \"rtn\""), MOE, &["doesn't look at data"]);
    assert_refused(&with_data("scheme = \"fp8\""), MOE, &["doesn't look at data"]);
    let few = ["1024 tokens are fewer than the 12800", "--top-up-below"];
    assert_refused(&with_data("top-up-below = 100.0"), MOE, &few);
    assert_refused(&options("solver = \"rtn\"\npool = [\"x\"]"), MOE, &["--pool"]);
}

#[test]
fn options_that_contradict_one_another_are_refused() {
    assert_refused(&options("scheme = \"fp8\"\nasymmetric = true"), MOE, &["no zero points"]);
    assert_refused(&options("scheme = \"fp8\"\nformat = \"gptq\""), MOE, &["--scheme w4a16"]);
    assert_refused(&options("solver = \"rtn\"\nformat = \"fp8\""), MOE, &["--scheme fp8-block"]);
    assert_refused(&with_data("damping = 0.0"), MOE, &["--damping"]);
    assert_refused(&with_data("shrinkage = -1.0"), MOE, &["--shrinkage"]);
}

#[test]
fn models_without_what_is_to_be_quantized_are_refused() {
    let rtn = options("solver = \"rtn\"");
    assert_refused(&rtn, "models/dense", &["no mixture of experts", "upcycle"]);
    let shared = options("solver = \"rtn\"\ninclude = [\"shared\"]");
    assert_refused(&shared, MOE, &["no shared experts"]);
    let fp8 = "families/deepseek_v3/fp8/model";
    assert_refused(&rtn, fp8, &["quantized already", "unquantized"]);
    let w4 = "quantize/checkpoints/qwen3_moe.w4";
    assert_refused(&rtn, w4, &["quantized already", "4-bit"]);
}
