use super::*;
use candle_core::Device;

fn softmax<const N: usize>(logits: &[[f32; 4]; N], top_k: usize, normalize: bool) -> Routing {
    let logits = Tensor::new(logits, &Device::Cpu).unwrap();
    route(&logits, &RoutingRule::softmax(top_k, normalize)).unwrap()
}

/// Logits whose σ are `scores`.
fn logits(scores: &[f32]) -> Tensor {
    let logits: Vec<f32> = scores.iter().map(|s| (s / (1.0 - s)).ln()).collect();
    Tensor::from_vec(logits, (1, scores.len()), &Device::Cpu).unwrap()
}

fn sigmoid(top_k: usize) -> RoutingRule {
    RoutingRule { scoring: Scoring::Sigmoid, ..RoutingRule::softmax(top_k, false) }
}

fn assert_close(actual: &[f32], expected: &[f32]) {
    let close = actual.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6);
    assert!(close && actual.len() == expected.len(), "{actual:?} instead of {expected:?}");
}

#[test]
fn weights_are_probabilities_or_their_shares() {
    // softmax of ln(1, 2, 3, 4) is (1, 2, 3, 4) / 10.
    let logits = [[1f32.ln(), 2f32.ln(), 3f32.ln(), 4f32.ln()]];
    let plain = softmax(&logits, 2, false);
    assert_eq!(plain.selected, [3, 2]);
    assert_close(&plain.weights, &[0.4, 0.3]);
    assert_close(&softmax(&logits, 2, true).weights, &[4.0 / 7.0, 3.0 / 7.0]);
}

#[test]
fn ties_go_to_the_lower_index_and_all_experts_may_be_selected() {
    assert_eq!(softmax(&[[0.0; 4]], 2, true).selected, [0, 1]);
    assert_eq!(softmax(&[[0.0, 1.0, 0.0, 1.0]], 4, true).selected, [1, 3, 0, 2]);
}

#[test]
fn slots_and_counts_agree() {
    let routing = softmax(&[[0.0, 1.0, 2.0, 3.0], [3.0, 2.0, 1.0, 0.0]], 2, true);
    assert_eq!(routing.counts(), [1, 1, 1, 1]);
    assert_eq!(routing.slots_by_expert(), [vec![2], vec![3], vec![1], vec![0]]);
}

#[test]
fn a_bias_changes_the_choice_but_not_the_weights() {
    let logits = logits(&[0.5, 0.6, 0.7, 0.2]);
    let rule = RoutingRule { bias: Some(vec![0.0, 0.0, -0.3, 0.5]), scale: 2.0, ..sigmoid(2) };
    let routing = route(&logits, &rule).unwrap();
    assert_eq!(routing.selected, [1, 3]);
    assert_close(&routing.weights, &[1.2, 0.4]);
    let routing = route(&logits, &RoutingRule { normalize: true, ..rule }).unwrap();
    assert_close(&routing.weights, &[1.5, 0.5]);
}

/// The best expert is in the group that is second by the sum of its two best.
#[test]
fn groups_are_ranked_by_their_best_or_by_their_two_best() {
    let logits = logits(&[0.9, 0.1, 0.6, 0.7]);
    let with =
        |score| RoutingRule { groups: Some(Groups { count: 2, kept: 1, score }), ..sigmoid(2) };
    assert_eq!(route(&logits, &with(GroupScore::Max)).unwrap().selected, [0, 1]);
    assert_eq!(route(&logits, &with(GroupScore::TopTwoSum)).unwrap().selected, [3, 2]);
}

#[test]
fn gates_of_a_dtype_are_values_of_it() {
    let logits = Tensor::new(&[[0.3f32, -1.0, 0.7, 0.1]], &Device::Cpu).unwrap();
    for (dtype, scale) in [(DType::BF16, 256.0), (DType::F16, 2048.0)] {
        let rule = RoutingRule { gates: dtype, ..RoutingRule::softmax(2, true) };
        let (exact, found) = (
            route(&logits, &RoutingRule::softmax(2, true)).unwrap(),
            route(&logits, &rule).unwrap(),
        );
        // Between a half and one a step is 1/scale wide; below a half it is half as wide.
        for (gate, exact) in found.weights.iter().zip(&exact.weights) {
            let step = if *exact >= 0.5 { 1.0 / scale } else { 0.5 / scale };
            assert!(
                (gate / step).fract() == 0.0 && (gate - exact).abs() <= 0.5 * step,
                "{gate} for {exact}"
            );
        }
        assert_ne!(found.weights, exact.weights);
        let gates =
            gates(&logits, &rule, &found).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(gates, found.weights);
    }
}

#[test]
fn gates_are_the_weights_and_have_their_gradients() {
    let values = crate::sampling::normal(5 * 8, 1.0, &mut crate::sampling::generator(6, 0));
    let logits = candle_core::Var::from_vec(values, (5, 8), &Device::Cpu).unwrap();
    let groups = Groups { count: 4, kept: 2, score: GroupScore::TopTwoSum };
    let biased =
        RoutingRule { bias: Some(vec![0.1; 8]), groups: Some(groups), scale: 2.5, ..sigmoid(3) };
    for rule in [
        RoutingRule::softmax(3, false),
        RoutingRule::softmax(3, true),
        RoutingRule { normalize: true, ..biased.clone() },
        biased,
    ] {
        let routing = route(&logits, &rule).unwrap();
        let found = gates(&logits, &rule, &routing)
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1::<f32>()
            .unwrap();
        assert_close(&found, &routing.weights);
        // Without the choice, which is constant.
        assert!(crate::graph::differences(&[&logits], 1, |t| gates(&t[0], &rule, &routing)) < 1e-2);
    }
}

#[test]
fn negative_choice_scores_still_beat_dropped_groups() {
    let groups = Groups { count: 2, kept: 1, score: GroupScore::TopTwoSum };
    let rule = RoutingRule {
        groups: Some(groups),
        bias: Some(vec![-2.0, -2.0, -1.5, -1.6]),
        ..sigmoid(2)
    };
    assert_eq!(route(&logits(&[0.9, 0.8, 0.5, 0.6]), &rule).unwrap().selected, [3, 2]);
}

#[test]
fn masked_experts_are_routed_as_if_pruned() {
    let all = Tensor::new(&[[1.0f32, 3.0, 2.0, 0.0]], &Device::Cpu).unwrap();
    let rest = Tensor::new(&[[1.0f32, 2.0, 0.0]], &Device::Cpu).unwrap();
    for rule in [RoutingRule::softmax(2, false), sigmoid(2)] {
        let masked = route_masked(&all, &rule, Some(&[false, true, false, false])).unwrap();
        assert_eq!(masked.selected, [2, 0]);
        assert_close(&masked.weights, &route(&rest, &rule).unwrap().weights);
    }
    assert!(route_masked(&all, &sigmoid(2), Some(&[true, true, true, false])).is_err());
}

#[test]
fn a_group_has_the_score_of_its_remaining_experts() {
    let groups = Groups { count: 2, kept: 1, score: GroupScore::TopTwoSum };
    let rule = RoutingRule { groups: Some(groups), ..sigmoid(1) };
    let logits = logits(&[0.9, 0.8, 0.3, 0.4]);
    let select = |masked: [bool; 4], rule: &RoutingRule| {
        route_masked(&logits, rule, Some(&masked)).unwrap().selected
    };
    assert_eq!(select([true, false, false, false], &rule), [1]);
    assert_eq!(select([true, true, false, false], &rule), [3]);
    // The kept group has only one expert left, so the other group's best is added.
    assert_eq!(select([true, false, false, false], &RoutingRule { top_k: 2, ..rule }), [1, 3]);
}

#[test]
fn rules_that_cannot_work_are_refused() {
    let groups = |count, kept| RoutingRule {
        groups: Some(Groups { count, kept, score: GroupScore::Max }),
        ..sigmoid(1)
    };
    for rule in [
        sigmoid(5),
        groups(3, 1),
        groups(0, 0),
        groups(2, 3),
        RoutingRule { bias: Some(vec![0.0]), ..sigmoid(1) },
    ] {
        assert!(route(&logits(&[0.5; 4]), &rule).is_err(), "{rule:?}");
    }
}
