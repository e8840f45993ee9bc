//! Distillation from checkpoint to checkpoint: exact results are exact, and measured ones agree
//! with other code.

use std::path::Path;

use moe_checkpoint::{Checkpoint, Error, Kind};
use moe_forward::{Batch, ObserverOptions, StatisticsObserver, Sweep};
use moe_math::Compute;
use moe_math::statistics::Quantity;
use moe_model::Model;
use moe_passes::distill::{DistilledLayer, PartSource};
use moe_passes::{DistillOptions, Identity, Pass, UpcycleOptions};
use moe_pipeline::{Quiet, Receipt, convert, verify};
use serde::de::DeserializeOwned;

use crate::common::{golden, run_again, values};

fn run<P: Pass + DeserializeOwned>(
    input: &Path,
    output: &Path,
    toml: &str,
) -> Result<Receipt, Error> {
    let options: P = toml::from_str(toml).unwrap_or_else(|e| panic!("{toml}: {e}"));
    Ok(convert(&[&options], input, output, &run_again(), &Quiet)?.receipt)
}

/// Writes `sequences` of 16 ids each, below `vocab`, to a file. Returns options that name it and
/// train nothing.
fn ids(dir: &Path, sequences: usize, vocab: usize) -> String {
    let id = |at: usize| (at * at * 7 + 3 * at + at / 16) % vocab;
    let line = |s: usize| {
        format!("{{\"input_ids\": {:?}}}\n", (16 * s..16 * s + 16).map(id).collect::<Vec<_>>())
    };
    let path = dir.join("ids.jsonl");
    std::fs::write(&path, (0..sequences).map(line).collect::<String>()).unwrap();
    format!("data = [{:?}]\nsequence-length = 16\nsteps = 0\n", path.display().to_string())
}

/// Options that name texts of two domains.
fn texts(key: &str, what: &str) -> String {
    let paths = ["english", "code"]
        .map(|name| golden(&format!("text/{name}.{what}.txt")).display().to_string());
    format!("{key} = {paths:?}\n{key}-tokens = ")
}

/// Options for `tokens` of calibration text from each of two domains.
fn calibration(tokens: usize) -> String {
    format!("{}{tokens}\nsequence-length = 128\n", texts("data", "calibration"))
}

/// The same, with half as many held-out tokens.
fn text(tokens: usize) -> String {
    format!("{}{}{}\n", calibration(tokens), texts("held-out", "heldout"), tokens / 2)
}

fn kl(receipt: &Receipt) -> f64 {
    receipt.held_out.as_ref().unwrap().result.all.against.as_ref().unwrap().kl
}

fn layers(receipt: &Receipt) -> Vec<DistilledLayer> {
    receipt.layers.iter().map(|layer| layer.details().unwrap()).collect()
}

/// `found` has every tensor of `dense` under its name, with its bytes, and no others.
#[track_caller]
fn assert_same_bytes(dense: &Path, found: &Path, what: &str) {
    let (dense, found) = (Checkpoint::open(dense).unwrap(), Checkpoint::open(found).unwrap());
    let names = |c: &Checkpoint| c.tensors().keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&dense), names(&found), "{what}");
    for (name, tensor) in dense.tensors() {
        let read = |t: &moe_checkpoint::Stored| {
            let mut bytes = vec![0; t.bytes() as usize];
            t.read_at(0, &mut bytes).unwrap();
            bytes
        };
        assert_eq!(read(tensor), read(&found.tensors()[name]), "{what}: {name}");
    }
}

/// Upcycles `dense` and distills the result to its width again. Returns the receipt's promise.
fn there_and_back(dense: &Path, upcycle: &str, distill: &str) -> (Identity, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let model = Model::open(dense).unwrap();
    let width = model.layers[0].ffn.dense().unwrap().width();
    let (moe, back) = (dir.path().join("moe"), dir.path().join("back"));
    run::<UpcycleOptions>(dense, &moe, upcycle).unwrap_or_else(|e| panic!("{upcycle}: {e}"));
    let text = ids(dir.path(), 10, model.vocab);
    let toml = format!("width = {width}\ndown = \"measured\"\n{text}{distill}");
    let receipt =
        run::<DistillOptions>(&moe, &back, &toml).unwrap_or_else(|e| panic!("{upcycle}: {e}"));
    verify(&back, &Quiet).unwrap();
    (receipt.identity, dir)
}

/// A dense golden that is upcycled with each of these lines comes back bit for bit.
fn comes_back(family: &str, target: &str, lines: &[&str]) {
    let dense = golden(&format!("families/{family}/base/model"));
    for line in lines {
        for select in ["neurons", "experts"] {
            let upcycle = format!("{line}\ntarget = {target:?}");
            let distill = format!("select = {select:?}\ntarget = {family:?}");
            let (identity, dir) = there_and_back(&dense, &upcycle, &distill);
            assert_eq!(identity, Identity::Exact, "{family}, {line}");
            assert_same_bytes(
                &dense,
                &dir.path().join("back"),
                &format!("{family}, {line}, {select}"),
            );
        }
    }
}

const COPIES: &str = "experts = 8\ntop-k = 2";
const SHARDS: &str = "experts = 8\ntop-k = 4\ngranularity = 2";

#[test]
fn upcycling_and_distilling_gives_the_dense_weights_back_bit_for_bit() {
    let any =
        [COPIES, SHARDS, "experts = 5\ntop-k = 3", "experts = 6\ntop-k = 2\nrouter = 'zeros'"];
    comes_back("mistral", "mixtral", &any);
    comes_back("llama", "mixtral", &any);
    let unnormalised =
        "experts = 8\ntop-k = 2\nnorm-topk-prob = false\nrouter = 'zeros'\nrouter-std = 0.0";
    let all = "experts = 4\ntop-k = 4\nnorm-topk-prob = false";
    let wide = "experts = 12\ntop-k = 8\ngranularity = 4\nrouter = 'orthogonal'";
    comes_back("qwen3", "qwen3_moe", &[COPIES, SHARDS, unnormalised, all, wide]);
    let shared = |share: &str| format!("{COPIES}\nshared-fraction = {share}");
    let (none, half, whole) = (shared("0.0"), shared("0.5"), shared("1.0"));
    comes_back("qwen2", "qwen2_moe", &[COPIES, SHARDS, unnormalised, &none, &half, &whole]);
    comes_back("llama", "qwen2_moe", &[COPIES, SHARDS]);
}

/// Inexact results aren't called exact: gates that vary are measured, and scales that round are
/// approximate.
#[test]
fn what_cannot_come_back_exactly_says_so() {
    let qwen3 = golden("families/qwen3/base/model");
    let (identity, _dir) = there_and_back(&qwen3, "experts = 4\ntop-k = 2\nnoise-std = 0.01", "");
    assert!(matches!(identity, Identity::Changed { .. }), "{identity:?}");
    let varying = "experts = 4\ntop-k = 2\nnorm-topk-prob = false\nrouter-std = 1.0";
    let (identity, _dir) = there_and_back(&qwen3, varying, "");
    assert!(matches!(identity, Identity::Changed { .. }), "{identity:?}");
    let rounding =
        "experts = 6\ntop-k = 4\nnorm-topk-prob = false\nrouter = 'zeros'\nrouter-std = 0.0";
    let (identity, _dir) = there_and_back(&qwen3, rounding, "");
    assert!(matches!(identity, Identity::Approximate { .. }), "{identity:?}");
}

/// Every golden of every MoE family becomes a sound and readable dense model of a family that the
/// family file names.
#[test]
fn every_moe_family_becomes_dense_or_says_why_not() {
    let out = tempfile::tempdir().unwrap();
    let mut distilled = 0;
    for family in std::fs::read_dir(golden("families"))
        .unwrap()
        .filter_map(|e| e.unwrap().path().read_dir().ok())
    {
        for case in family.map(|e| e.unwrap().path().join("model")).filter(|model| model.is_dir()) {
            let model = Model::open(&case).unwrap();
            if model.moes().next().is_none() {
                continue;
            }
            let output = out.path().join("out");
            let toml = format!("{}down = \"measured\"", ids(out.path(), 10, model.vocab));
            let name = case.display();
            match run::<DistillOptions>(&case, &output, &toml) {
                Ok(_) => {
                    verify(&output, &Quiet).unwrap_or_else(|e| panic!("{name}: {e}"));
                    let dense = Model::open(&output).unwrap();
                    assert!(dense.moes().next().is_none() && dense.mtp.is_empty(), "{name}");
                    assert!(model.family.distills_to.contains(&dense.family.model_type), "{name}");
                    distilled += 1;
                }
                Err(error) => {
                    let text = error.to_string();
                    let known = [
                        "normalises queries and keys",
                        "quantized",
                        "with biases",
                        "cannot express",
                    ];
                    assert!(
                        error.kind() == Kind::Unsupported && known.iter().any(|w| text.contains(w)),
                        "{name}: {text}"
                    );
                }
            }
        }
    }
    assert!(distilled >= 20, "{distilled}");
}

/// Gates agree with `observe`'s sums over the same tokens; down columns are the experts' times
/// these gates.
#[test]
fn measured_gates_are_means_over_all_tokens() {
    let out = tempfile::tempdir().unwrap();
    let moe = golden("models/moe");
    let source = Model::open(&moe).unwrap();
    let text = ids(out.path(), 16, source.vocab);
    let toml = format!(
        "{text}down = \"measured\"\nselect = \"experts\"\nwidth = 192\nforcing = \"teacher\""
    );
    let receipt = run::<DistillOptions>(&moe, &out.path().join("out"), &toml).unwrap();
    // Windows 7 and 15 are held out.
    let lines = std::fs::read_to_string(out.path().join("ids.jsonl")).unwrap();
    let sequence = |line: &str| -> Vec<u32> {
        line.split(['[', ']']).nth(1).unwrap().split(", ").map(|id| id.parse().unwrap()).collect()
    };
    let deciding: Vec<Vec<u32>> = lines
        .lines()
        .enumerate()
        .filter(|(i, _)| i % 8 != 7)
        .map(|(_, line)| sequence(line))
        .collect();
    let batch = Batch::new(deciding.iter().map(Vec::as_slice));
    let group_of = vec![0; batch.tokens()].into();
    let options = ObserverOptions { groups: 1, group_of, left_out: false, sample_every: 0 };
    let mut observer = StatisticsObserver::new(&source, options);
    let compute = Compute::cpu();
    let mut sweep = Sweep::new(&source, &batch, &compute).unwrap();
    let dense = Model::open(&out.path().join("out")).unwrap();
    for (index, found) in layers(&receipt).into_iter().enumerate() {
        sweep.layer(index, &mut observer).unwrap();
        let sums = observer.take().unwrap().unwrap().remove(0);
        let tokens = sums.scalar(Quantity::SeenTokens);
        for (gate, sum) in found.gates.iter().zip(sums.get(Quantity::Gates)) {
            assert!((gate - sum / tokens).abs() < 1e-6, "layer {index}");
        }
        assert!((found.gates.iter().sum::<f64>() - 1.0).abs() < 1e-6, "normalised gates sum to 1");
        // The best expert as a whole, and half of the next.
        let reap = moe_math::saliency::reap(&sums);
        for (score, wanted) in found.scores.iter().zip(&reap) {
            assert!((score - wanted).abs() < 1e-4 * wanted.max(1e-3), "layer {index}");
        }
        let mut best = moe_math::saliency::greatest(&reap, 2);
        best.sort_by(|a, b| reap[*b].total_cmp(&reap[*a]));
        let whole = found
            .parts
            .iter()
            .find(|part| part.from == PartSource::Expert { expert: best[0] })
            .unwrap();
        assert_eq!((found.parts.len(), whole.neurons, found.zeros), (2, 128, 0));
        let expert = &source.layers[index].ffn.moe().unwrap().experts[best[0]];
        let network = dense.layers[index].ffn.dense().unwrap();
        let first = if best[0] < best[1] { 0 } else { 64 };
        let (theirs, ours) = (values(&expert.down.weight), values(&network.down.weight));
        for (theirs, ours) in theirs.chunks_exact(128).zip(ours.chunks_exact(192)) {
            for (theirs, ours) in theirs.iter().zip(&ours[first..]) {
                assert!(
                    (f64::from(*ours) - f64::from(*theirs) * found.gates[best[0]]).abs()
                        < 4e-3 * f64::from(ours.abs())
                );
            }
        }
        let (theirs, ours) = (values(&expert.gate.weight), values(&network.gate.weight));
        assert_eq!(theirs, ours[first * source.hidden..][..theirs.len()], "rows are copied");
    }
}

/// Every layer has the original's inputs, and the fitted projection is nearer to the experts than
/// the one that isn't fitted.
#[test]
fn a_fitted_down_projection_has_the_least_error() {
    let out = tempfile::tempdir().unwrap();
    let moe = golden("models/moe");
    let made = |toml: &str| {
        let output = out.path().join("out");
        let toml =
            format!("width = 256\nsteps = 0\nforcing = \"teacher\"\n{}{toml}", calibration(1024));
        run::<DistillOptions>(&moe, &output, &toml).unwrap()
    };
    let ridge = made("");
    let measured = made("down = \"measured\"");
    for (fitted, measured) in layers(&ridge).into_iter().zip(layers(&measured)) {
        let fit = fitted.fit.as_ref().unwrap();
        let chosen = fit.tried.iter().find(|(lambda, _)| *lambda == fit.lambda).unwrap().1;
        assert!(fit.tried.iter().all(|(_, error)| chosen <= *error));
        assert!(fit.lambda.is_some() && fit.tried.len() >= 6);
        // The output of the stored network is the one that the sums predict, up to bf16.
        assert!(
            (fitted.output_error.unwrap() / chosen - 1.0).abs() < 0.01,
            "{:?} {chosen}",
            fitted.output_error
        );
        assert!(fitted.output_error < measured.output_error);
    }
}

/// The best experts by conditional probability, each divided by their number (2605.28207, 3.4):
/// four experts, so that nothing is rounded.
#[test]
fn uniform_gates_are_one_over_the_experts_taken() {
    let out = tempfile::tempdir().unwrap();
    let moe = golden("models/moe");
    let source = Model::open(&moe).unwrap();
    let text = ids(out.path(), 16, source.vocab);
    let options = "down = \"uniform\"\nselect = \"experts\"\ncriterion = \"cp\"\nwidth = 512\n";
    let receipt =
        run::<DistillOptions>(&moe, &out.path().join("out"), &format!("{text}{options}")).unwrap();
    assert!(matches!(receipt.identity, Identity::Changed { .. }));
    let dense = Model::open(&out.path().join("out")).unwrap();
    for (index, found) in layers(&receipt).into_iter().enumerate() {
        let mut best = moe_math::saliency::greatest(&found.scores, 4);
        best.sort_unstable();
        let experts = &source.layers[index].ffn.moe().unwrap().experts;
        let ours = values(&dense.layers[index].ffn.dense().unwrap().down.weight);
        for (place, expert) in best.iter().enumerate() {
            let theirs = values(&experts[*expert].down.weight);
            for (theirs, ours) in theirs.chunks_exact(128).zip(ours.chunks_exact(512)) {
                let quarters: Vec<f32> = theirs.iter().map(|value| value / 4.0).collect();
                assert_eq!(quarters, ours[128 * place..][..128], "layer {index}, expert {expert}");
            }
        }
    }
    let refused =
        run::<DistillOptions>(&moe, &out.path().join("no"), &format!("{text}down = \"uniform\""));
    assert_eq!(refused.err().unwrap().kind(), Kind::Usage);
}

/// The baseline for training starts from random numbers with the standard deviation that configs
/// ask for, different for each seed and matrix.
#[test]
fn a_random_network_knows_nothing_of_the_experts() {
    let out = tempfile::tempdir().unwrap();
    let moe = golden("models/moe");
    let drawn = |seed: u64| {
        let text = ids(out.path(), 10, 2048);
        let toml =
            format!("{text}init = \"random\"\ndown = \"measured\"\nwidth = 200\nseed = {seed}");
        let receipt = run::<DistillOptions>(&moe, &out.path().join("out"), &toml).unwrap();
        assert!(
            layers(&receipt)
                .iter()
                .all(|layer| layer.parts[0].from == PartSource::Chance && layer.zeros == 0)
        );
        let model = Model::open(&out.path().join("out")).unwrap();
        let network = |layer: usize| {
            model.layers[layer].ffn.dense().unwrap().linears().map(|l| values(&l.weight))
        };
        [network(0), network(1)]
    };
    let (first, other) = (drawn(1), drawn(2));
    let all: Vec<&Vec<f32>> = first.iter().chain(&other).flatten().collect();
    for (index, matrix) in all.iter().enumerate() {
        let mean = |of: fn(f64) -> f64| {
            matrix.iter().map(|v| of(f64::from(*v))).sum::<f64>() / matrix.len() as f64
        };
        assert!(mean(|v| v).abs() < 1e-3 && (mean(|v| v * v).sqrt() - 0.02).abs() < 1e-3);
        assert!(all[..index].iter().all(|before| before[..100] != matrix[..100]));
    }
}

/// One mean of all experts, with equal weights or weighted by use; shared experts and dense layers
/// stay unchanged.
#[test]
fn means_and_what_stays_whole() {
    let out = tempfile::tempdir().unwrap();
    let moe = golden("models/moe");
    for init in ["mean", "usage-mean"] {
        let toml = format!(
            "width = 300\ninit = {init:?}\ndown = \"measured\"\n{}",
            ids(out.path(), 10, 2048)
        );
        let receipt = run::<DistillOptions>(&moe, &out.path().join("out"), &toml).unwrap();
        for layer in layers(&receipt) {
            assert_eq!((layer.parts.len(), layer.zeros), (2, 44), "two means of 128");
            assert!((layer.parts.iter().map(|part| part.factor).sum::<f64>() - 1.0).abs() < 1e-6);
        }
    }
    // Layer 0 is dense, with 24 neurons; in the others a token uses 12 + 12.
    let case = golden("families/deepseek_v3/base/model");
    let source = Model::open(&case).unwrap();
    let old = source.layers.iter().position(|layer| layer.ffn.dense().is_some()).unwrap();
    let (index, mixture) = source.moes().next().unwrap();
    let shared = &mixture.shared.as_ref().unwrap().expert;
    let network = source.layers[old].ffn.dense().unwrap();
    let width = network.width() + 3;
    let toml =
        format!("width = {width}\ndown = \"measured\"\n{}", ids(out.path(), 10, source.vocab));
    let receipt = run::<DistillOptions>(&case, &out.path().join("out"), &toml).unwrap();
    assert!(receipt.warnings.iter().any(|warning| warning.contains("filled up with zeros")));
    let dense = Model::open(&out.path().join("out")).unwrap();
    let now = |index: usize| dense.layers[index].ffn.dense().unwrap();
    let (before, after) = (values(&network.up.weight), values(&now(old).up.weight));
    assert_eq!(before, after[..before.len()]);
    assert_eq!(after[before.len()..], vec![0.0; 3 * source.hidden]);
    let (theirs, ours) = (values(&shared.down.weight), values(&now(index).down.weight));
    for (theirs, ours) in theirs.chunks_exact(shared.width()).zip(ours.chunks_exact(width)) {
        assert_eq!(
            theirs,
            &ours[..shared.width()],
            "a shared expert without a gate comes first, as it was"
        );
    }
}

/// With the teacher's states, each layer has the same inputs in all runs, so that its errors can be
/// compared.
#[test]
fn training_brings_every_layer_nearer_to_its_mixture_and_the_model_to_its_original() {
    let dir = tempfile::tempdir().unwrap();
    let text = text(1024);
    let run = |name: &str, training: &str| {
        let toml = format!(
            "forcing = \"teacher\"\ndown = \"measured\"\nno-baseline = true\n{training}\n{text}"
        );
        run::<DistillOptions>(&golden("models/moe"), &dir.path().join(name), &toml).unwrap()
    };
    let bytes =
        |name: &str| std::fs::read(dir.path().join(name).join("model.safetensors")).unwrap();
    let (plain, trained) = (run("plain", "steps = 0"), run("trained", "steps = 12"));
    for (before, after) in layers(&plain).iter().zip(layers(&trained)) {
        let (before, after_error) = (before.output_error.unwrap(), after.output_error.unwrap());
        let [first, kept] = after.trained[0].errors().unwrap();
        // This test runs the network in f32, the pass as it is stored.
        assert!(
            (first - before).abs() < 2e-2 && (kept - after_error).abs() < 2e-2,
            "{first} {before}, {kept} {after_error}"
        );
        // The weights with the best measurement are kept.
        assert!(kept < first, "{kept} {first}");
        assert_eq!((after.trained.len(), after.trained[0].steps), (1, 12));
        assert!(
            after.trained[0].looks.iter().skip(1).all(|look| look.loss.is_some_and(f64::is_finite))
        );
    }
    assert!(
        kl(&trained) < kl(&plain),
        "a stage that is kept is better: {} {}",
        kl(&trained),
        kl(&plain)
    );
    // A second sweep, through the layers that the first made.
    let again = run("again", "steps = 12\nstudent-steps = 4");
    for (once, twice) in layers(&trained).iter().zip(layers(&again)) {
        assert_eq!((&once.trained[0], twice.trained.len()), (&twice.trained[0], 2));
    }
    run("same", "steps = 12\nstudent-steps = 4");
    assert_eq!(bytes("again"), bytes("same"));
    // Each stage is measured on the held-out text, as the written result is in the end.
    let stages = |receipt: &Receipt| {
        let stages = &receipt.held_out.as_ref().unwrap().stages;
        stages
            .iter()
            .map(|s| (s.stage.clone(), s.kept, s.report.all.kl().unwrap()))
            .collect::<Vec<_>>()
    };
    assert!(stages(&plain).is_empty());
    let names = ["made", "trained", "trained-on-own-states"];
    assert_eq!(stages(&again).iter().map(|(stage, ..)| stage.as_str()).collect::<Vec<_>>(), names);
    let stage = |name: &str, kept, kl| (name.to_owned(), kept, kl);
    assert_eq!(
        stages(&again)[..2],
        [stage("made", true, kl(&plain)), stage("trained", true, kl(&trained))]
    );
    // A training that diverges is reported, and leaves the earlier weights.
    let wild = run("wild", "steps = 4\nrelative-learning-rate = 1e20");
    assert!(
        layers(&wild)
            .iter()
            .all(|layer| layer.trained[0].diverged.is_some() && layer.trained[0].best == 0)
    );
    assert!(
        wild.warnings.iter().any(|warning| warning.contains("lower --relative-learning-rate")),
        "{:?}",
        wild.warnings
    );
    assert_eq!(bytes("wild"), bytes("plain"));
    // A stage that doesn't help is taken back.
    assert_eq!(
        stages(&wild),
        [stage("made", true, kl(&plain)), stage("trained", false, kl(&plain))]
    );
    assert_eq!(kl(&wild), kl(&plain));
}
