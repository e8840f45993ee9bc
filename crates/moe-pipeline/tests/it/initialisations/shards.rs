//! Tests that experts of shards compute the dense network's function, and give it back.

use moe_model::{Expert, Model, Weight};
use moe_passes::Identity;

use super::{dense, mixture, network, neuron, plan, relative_difference};
use crate::common::{golden, values};

/// Options, whether they promise the dense function exactly, and how far off it is at most.
const VIRTUAL_GROUPS: [(&str, bool, f64); 8] = [
    ("experts = 8\ntop-k = 2\ngranularity = 2", true, 1e-5),
    ("experts = 8\ntop-k = 4\ngranularity = 2\nrouter = 'orthogonal'", true, 1e-5),
    ("experts = 8\ntop-k = 4\ngranularity = 4", true, 1e-5),
    ("experts = 6\ntop-k = 2\ngranularity = 2\nrouter = 'zeros'", true, 1e-5),
    ("experts = 8\ntop-k = 8\ngranularity = 8", true, 1e-5),
    ("experts = 8\ntop-k = 4\ngranularity = 2\ntarget = 'qwen2_moe'", true, 1e-5),
    (
        "experts = 8\ntop-k = 4\ngranularity = 2\ntarget = 'qwen2_moe'\nshared-experts = 2",
        true,
        1e-5,
    ),
    // 3 doesn't divide 512, and ×3 rounds in bf16: granularity 3 is tested on a golden below.
    (
        "experts = 8\ntop-k = 4\ngranularity = 2\ntarget = 'qwen2_moe'\nnorm-topk-prob = false\nrouter = 'zeros'",
        false,
        1e-3,
    ),
];

#[test]
fn shards_in_virtual_groups_compute_the_dense_function() {
    let (dense, tokens) = (dense(), golden("models/dense.tokens.json"));
    for (options, exact, tolerance) in VIRTUAL_GROUPS {
        let plan = plan(options, &dense);
        let identity = Identity::of(&plan.effects);
        assert_eq!(identity == Identity::Exact, exact, "{options}: {identity:?}");
        let difference = relative_difference(&dense, &plan, &tokens);
        assert!(difference < tolerance, "{options}: {difference}");
    }
}

/// For shards without normalised gates the scale is c = E·G/T (2 families).
#[test]
fn scales_of_unnormalised_shards_follow_the_table() {
    for (family, shared) in [("qwen2", "\nshared-fraction = 0.0"), ("qwen3", "")] {
        let mut dirs: Vec<_> = std::fs::read_dir(golden("families").join(family))
            .unwrap()
            .map(|e| e.unwrap().path())
            .collect();
        dirs.retain(|d| d.is_dir());
        dirs.sort();
        let dense = Model::open(&dirs[0].join("model")).unwrap();
        let divisor =
            (2..=5).find(|g| network(&dense, 0).width().is_multiple_of(*g)).expect("a divisor");
        let options = format!(
            "experts = {}\ntop-k = {}\ngranularity = {divisor}\nnorm-topk-prob = false\nrouter = 'zeros'{shared}",
            divisor * 4,
            divisor * 2
        );
        let plan = plan(&options, &dense);
        // E = 4 copies, T = 2 of them active: c = E·G/T.
        let expected = 4.0 * divisor as f32 / 2.0;
        let expert = neuron(&mixture(&plan, 0).experts[0], 0);
        let original = neuron(network(&dense, 0), 0);
        for (found, wanted) in expert[2].iter().zip(&original[2]) {
            assert!(
                (found - wanted * expected).abs() <= 4e-3 * (wanted * expected).abs(),
                "{found} {wanted}"
            );
        }
        let difference = relative_difference(&dense, &plan, &dirs[0].join("tokens.json"));
        assert!(difference < 2e-2, "{family}: {difference}");
    }
}

/// The experts of a group, put together, are the dense network bit for bit; the rows of a group are
/// equal.
#[test]
fn shards_give_the_dense_network_back() {
    let dense = dense();
    let g = 4;
    let plan = plan("experts = 8\ntop-k = 4\ngranularity = 4", &dense);
    for layer in 0..dense.layers.len() {
        let (ffn, moe) = (network(&dense, layer), mixture(&plan, layer));
        for group in moe.experts.chunks(g) {
            let rows = |pick: fn(&Expert) -> &Weight| {
                group.iter().flat_map(|e| pick(e).read().unwrap()).collect::<Vec<u8>>()
            };
            assert_eq!(rows(|e| &e.gate.weight), ffn.gate.weight.read().unwrap());
            assert_eq!(rows(|e| &e.up.weight), ffn.up.weight.read().unwrap());
            // Columns, and a scale of 4, which is exact in every encoding.
            let (width, parts) =
                (ffn.width() / g, group.iter().map(|e| values(&e.down.weight)).collect::<Vec<_>>());
            let whole = values(&ffn.down.weight);
            for (at, wanted) in whole.iter().enumerate() {
                let (row, column) = (at / ffn.width(), at % ffn.width());
                let found = parts[column / width][row * width + column % width];
                assert_eq!((found / g as f32).to_bits(), wanted.to_bits());
            }
        }
        let router = values(&moe.router.weight);
        let rows: Vec<&[f32]> = router.chunks(dense.hidden).collect();
        assert!(
            rows.chunks(g).all(|group| group.iter().all(|row| *row == group[0])),
            "a group shares its row"
        );
        assert_ne!(rows[0], rows[g], "groups have rows of their own");
    }
}

/// 2410.07524 §3.3 computed by hand: the cube root of E·G²/K (softmax before top-k) or of G (after
/// it), on all projections.
#[test]
fn nvidia_scales_are_cube_roots() {
    let dense = dense();
    for (options, s) in [
        ("experts = 8\ntop-k = 4\ngranularity = 2", 2.0f64),
        (
            "experts = 8\ntop-k = 4\ngranularity = 2\ntarget = 'qwen2_moe'\nnorm-topk-prob = false\nshared-fraction = 0.0",
            4.0,
        ),
    ] {
        let plan = plan(&format!("{options}\nscale-placement = 'nvidia'"), &dense);
        assert!(matches!(Identity::of(&plan.effects), Identity::Changed { .. }));
        let (original, expert) =
            (neuron(network(&dense, 0), 0), neuron(&mixture(&plan, 0).experts[0], 0));
        for (found, wanted) in expert.iter().flatten().zip(original.iter().flatten()) {
            let wanted = f64::from(*wanted) * s.cbrt();
            assert!((f64::from(*found) - wanted).abs() <= 4e-3 * wanted.abs(), "{found} {wanted}");
        }
    }
}
