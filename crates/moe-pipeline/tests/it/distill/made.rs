//! Tests how a dense network is made of experts: gates, means, and projections that are fitted.

use std::path::Path;

use moe_checkpoint::Kind;
use moe_forward::{Batch, ObserverOptions, StatisticsObserver, Sweep};
use moe_math::Compute;
use moe_math::statistics::Quantity;
use moe_model::Model;
use moe_passes::distill::{DistilledLayer, DistilledPart, PartSource};
use moe_passes::{DistillOptions, Identity};

use super::{calibration, ids, layers, run};
use crate::common::{golden, values};

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
    let deciding = deciding(&out.path().join("ids.jsonl"));
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
        assert_made_of([best[0], best[1]], &found, [&source, &dense], index);
    }
}

/// The sequences of [`ids`] that decide: windows 7 and 15 are held out.
fn deciding(ids: &Path) -> Vec<Vec<u32>> {
    let sequence = |line: &str| -> Vec<u32> {
        line.split(['[', ']']).nth(1).unwrap().split(", ").map(|id| id.parse().unwrap()).collect()
    };
    let lines = std::fs::read_to_string(ids).unwrap();
    let deciding = lines.lines().enumerate().filter(|(i, _)| i % 8 != 7);
    deciding.map(|(_, line)| sequence(line)).collect()
}

/// Asserts that a layer of 192 neurons has the best expert as a whole and half of the next, and
/// that its columns are the best expert's times the gate of that.
fn assert_made_of(
    best: [usize; 2],
    found: &DistilledLayer,
    [source, dense]: [&Model; 2],
    layer: usize,
) {
    let is_best = |part: &&DistilledPart| part.from == PartSource::Expert { expert: best[0] };
    let whole = found.parts.iter().find(is_best).unwrap();
    assert_eq!((found.parts.len(), whole.neurons, found.zeros), (2, 128, 0));
    let expert = &source.layers[layer].ffn.moe().unwrap().experts[best[0]];
    let network = dense.layers[layer].ffn.dense().unwrap();
    let first = if best[0] < best[1] { 0 } else { 64 };
    let (theirs, ours) = (values(&expert.down.weight), values(&network.down.weight));
    for (theirs, ours) in theirs.chunks_exact(128).zip(ours.chunks_exact(192)) {
        assert_scaled(theirs, &ours[first..], found.gates[best[0]]);
    }
    let (theirs, ours) = (values(&expert.gate.weight), values(&network.gate.weight));
    assert_eq!(theirs, ours[first * source.hidden..][..theirs.len()], "rows are copied");
}

/// Asserts that `ours` are `theirs` times `factor`, up to rounding.
fn assert_scaled(theirs: &[f32], ours: &[f32], factor: f64) {
    for (theirs, ours) in theirs.iter().zip(ours) {
        assert!(
            (f64::from(*ours) - f64::from(*theirs) * factor).abs() < 4e-3 * f64::from(ours.abs())
        );
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
        let error = fitted.output_error.unwrap();
        assert!((error / chosen - 1.0).abs() < 0.01, "{error} {chosen}");
        assert!(error < measured.output_error.unwrap());
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

/// One mean of all experts, with equal weights or weighted by use.
#[test]
fn a_mean_is_of_all_experts() {
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
}

/// Layer 0 is dense, with 24 neurons; in the others a token uses 12 + 12.
#[test]
fn dense_layers_and_shared_experts_stay_unchanged() {
    let out = tempfile::tempdir().unwrap();
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
