//! Tests which neurons an initialisation redraws, deals out or leaves as they are.

use moe_passes::Identity;

use super::{dense, mixture, network, neurons, plan, plan_error, relative_difference};
use crate::common::{golden, values};

/// One set of ⌊r·m⌉ neurons is redrawn in gate, up and down alike; all others are those of the
/// dense network.
#[test]
fn dropped_neurons_are_one_set_with_the_moments_of_the_matrix() {
    let dense = dense();
    let plan =
        plan("experts = 4\ntop-k = 2\ninit = 'drop'\ndrop-fraction = 0.25\nseed = 3", &dense);
    assert!(matches!(Identity::of(&plan.effects), Identity::Changed { .. }));
    let (ffn, moe) = (network(&dense, 1), mixture(&plan, 1));
    let mut sets = Vec::new();
    let originals = neurons(ffn);
    for expert in &moe.experts {
        let redrawn = neurons(expert);
        let changed: Vec<usize> = (0..ffn.width())
            .filter(|n| {
                let same: Vec<bool> =
                    originals[*n].iter().zip(&redrawn[*n]).map(|(a, b)| a == b).collect();
                assert!(
                    same.iter().all(|s| *s == same[0]),
                    "neuron {n} is redrawn in some projections only"
                );
                !same[0]
            })
            .collect();
        assert_eq!(changed.len(), ffn.width() / 4);
        for (pick, original) in [(0, &ffn.gate), (1, &ffn.up), (2, &ffn.down)] {
            let drawn: Vec<f64> =
                changed.iter().flat_map(|n| redrawn[*n][pick].clone()).map(f64::from).collect();
            let all: Vec<f64> = values(&original.weight).into_iter().map(f64::from).collect();
            let moments = |x: &[f64]| {
                let mean = x.iter().sum::<f64>() / x.len() as f64;
                (mean, (x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / x.len() as f64).sqrt())
            };
            let ((mean, std), (drawn_mean, drawn_std)) = (moments(&all), moments(&drawn));
            let error = std / (drawn.len() as f64).sqrt();
            assert!((drawn_mean - mean).abs() < 5.0 * error, "mean {drawn_mean}, not {mean}");
            assert!((drawn_std - std).abs() < 5.0 * error, "std {drawn_std}, not {std}");
        }
        sets.push(changed);
    }
    assert_ne!(sets[0], sets[1], "experts have sets of their own");
}

/// Every neuron goes to one expert, or the shared one; with all experts and even weights the
/// function is kept.
#[test]
fn partitions_deal_out_every_neuron_once() {
    let (dense, tokens) = (dense(), golden("models/dense.tokens.json"));
    let ffn = network(&dense, 2);
    for by in ["random", "weights"] {
        for target in ["mixtral", "qwen2_moe"] {
            let options = format!(
                "experts = 4\ntop-k = 4\ninit = 'partition'\npartition-by = '{by}'\ntarget = '{target}'\nrouter = 'zeros'"
            );
            let plan = plan(&options, &dense);
            assert!(
                matches!(Identity::of(&plan.effects), Identity::Approximate { .. }),
                "{:?}",
                Identity::of(&plan.effects)
            );
            let difference = relative_difference(&dense, &plan, &tokens);
            assert!(difference < 1e-4, "{options}: {difference}");
            let moe = mixture(&plan, 2);
            let mut rows: Vec<Vec<u8>> = Vec::new();
            let shared = moe.shared.iter().map(|s| &s.expert);
            for expert in moe.experts.iter().chain(shared) {
                let bytes = expert.gate.weight.read().unwrap();
                rows.extend(bytes.chunks(bytes.len() / expert.width()).map(<[u8]>::to_vec));
            }
            let bytes = ffn.gate.weight.read().unwrap();
            let mut wanted: Vec<Vec<u8>> =
                bytes.chunks(bytes.len() / ffn.width()).map(<[u8]>::to_vec).collect();
            rows.sort();
            wanted.sort();
            assert_eq!(rows, wanted, "{options}");
        }
    }
}

#[test]
fn chosen_layers_get_experts_and_the_others_stay() {
    let (dense, tokens) = (dense(), golden("models/dense.tokens.json"));
    for (layers, converted) in
        [("every:2", vec![1, 3]), ("0,2-3", vec![0, 2, 3]), ("all", vec![0, 1, 2, 3])]
    {
        let plan = plan(
            &format!("experts = 4\ntop-k = 2\ntarget = 'qwen2_moe'\nlayers = '{layers}'"),
            &dense,
        );
        let found: Vec<usize> = plan.model.moes().map(|(layer, _)| layer).collect();
        assert_eq!(found, converted);
        assert_eq!(Identity::of(&plan.effects), Identity::Exact);
        assert!(relative_difference(&dense, &plan, &tokens) < 1e-5, "{layers}");
        let recorded: Vec<usize> =
            plan.layers.iter().filter(|l| l.router.is_some()).map(|l| l.layer).collect();
        assert_eq!(recorded, converted);
    }
    let refused = plan_error("experts = 4\ntop-k = 2\nlayers = 'every:2'", &dense);
    let words = ["mixtral", "dense layers", "qwen2_moe"];
    assert!(words.iter().all(|word| refused.contains(word)), "{refused}");
}
