//! How much a layer loses without an expert, by several criteria. Experts with greater values are
//! kept.

use crate::statistics::{CalibrationSums, Quantity};

/// Σ value / tokens for each expert; 0 if no token chose it.
fn mean(sums: &CalibrationSums, quantity: Quantity) -> Vec<f64> {
    let tokens = sums.get(Quantity::Tokens);
    sums.get(quantity)
        .iter()
        .zip(tokens)
        .map(|(sum, n)| if *n > 0.0 { sum / n } else { 0.0 })
        .collect()
}

/// REAP (2510.13999): the mean over an expert's tokens of g ‖f‖₂.
pub fn reap(sums: &CalibrationSums) -> Vec<f64> {
    mean(sums, Quantity::GatedNorms)
}

/// EAN: Σ ‖f‖₂ over an expert's tokens.
pub fn expert_activation_norm(sums: &CalibrationSums) -> Vec<f64> {
    sums.get(Quantity::Norms).to_vec()
}

/// The mean over an expert's tokens of ‖f‖₂ (2606.15716).
pub fn mean_activation_norm(sums: &CalibrationSums) -> Vec<f64> {
    mean(sums, Quantity::Norms)
}

/// The mean over an expert's tokens of ‖f‖₂² (2606.15716).
pub fn mean_square_activation_norm(sums: &CalibrationSums) -> Vec<f64> {
    mean(sums, Quantity::SquareNorms)
}

/// The number of tokens that chose an expert: SEER-MoE's hard count (2404.05089).
pub fn frequency(sums: &CalibrationSums) -> Vec<f64> {
    sums.get(Quantity::Tokens).to_vec()
}

/// Σ of the applied gates: SEER-MoE's soft count.
pub fn soft_frequency(sums: &CalibrationSums) -> Vec<f64> {
    sums.get(Quantity::Gates).to_vec()
}

/// The mean squared change of the layer's output, over all tokens and components, if an expert is
/// masked and its tokens are rerouted (NAEE, 2402.14800).
pub fn leave_one_out(sums: &CalibrationSums) -> Vec<f64> {
    let values = sums.scalar(Quantity::SeenTokens) * sums.sizes().hidden as f64;
    sums.get(Quantity::LeftOutErrors).iter().map(|error| error / values.max(1.0)).collect()
}

/// The mean over all tokens of 1 − cos between the layer's outputs with and without an expert.
pub fn leave_one_out_cosine(sums: &CalibrationSums) -> Vec<f64> {
    let tokens = sums.scalar(Quantity::SeenTokens);
    sums.get(Quantity::LeftOutCosines).iter().map(|cosine| cosine / tokens.max(1.0)).collect()
}

/// AIMER (2603.18492) over all weights of an expert: (‖W‖₁/N) / √(‖W‖_F²/N). Experts with GREATER
/// values are pruned first, so callers negate it. 0 if all weights are zero, NaN if one is not
/// finite.
pub fn aimer(weights: impl IntoIterator<Item = f32>) -> f64 {
    let (mut absolute, mut squares, mut count) = (0f64, 0f64, 0f64);
    for weight in weights {
        let weight = f64::from(weight);
        absolute += weight.abs();
        squares += weight * weight;
        count += 1.0;
    }
    if squares == 0.0 { 0.0 } else { absolute / count / (squares / count).sqrt() }
}

/// The round in which each expert drops out. In each round tokens vote for their first `top_k`
/// experts; the one with the fewest votes drops out (the higher index of equals), and its votes
/// pass to the tokens' next choices.
///
/// `scores` is `[tokens, experts]`, each token's ranking of the experts.
pub fn ranked_choice(scores: &[f32], experts: usize, top_k: usize) -> Vec<f64> {
    let ranks: Vec<Vec<u32>> = scores.chunks_exact(experts).map(descending).collect();
    let mut stays = vec![true; experts];
    let mut fallen_in = vec![0.0; experts];
    for round in 0..experts {
        let mut votes = vec![0u64; experts];
        for ranking in &ranks {
            ranking
                .iter()
                .filter(|e| stays[**e as usize])
                .take(top_k)
                .for_each(|e| votes[*e as usize] += 1);
        }
        let fewest =
            (0..experts).filter(|e| stays[*e]).min_by_key(|e| (votes[*e], std::cmp::Reverse(*e)));
        let falls = fewest.expect("one falls in each round");
        stays[falls] = false;
        fallen_in[falls] = round as f64;
    }
    fallen_in
}

/// Indices in descending order of value; of equals the lower index comes first.
fn descending(values: &[f32]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..values.len() as u32).collect();
    order.sort_by(|a, b| values[*b as usize].total_cmp(&values[*a as usize]).then(a.cmp(b)));
    order
}

/// The `count` experts with the greatest `saliency`, ascending; of equals the lower index is taken.
pub fn greatest(saliency: &[f64], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..saliency.len()).collect();
    order.sort_by(|a, b| saliency[*b].total_cmp(&saliency[*a]).then(a.cmp(b)));
    order.truncate(count);
    order.sort_unstable();
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statistics::MixtureSizes;

    #[test]
    fn an_expert_without_tokens_has_no_saliency() {
        let mut sums = CalibrationSums::new(MixtureSizes { experts: 2, hidden: 1, width: 1 });
        sums.of_mut(Quantity::Tokens, 0)[0] = 4.0;
        sums.of_mut(Quantity::GatedNorms, 0)[0] = 2.0;
        assert_eq!(reap(&sums), [0.5, 0.0]);
    }

    #[test]
    fn votes_pass_to_the_next_choice() {
        // First choices are 0, 0, 1, 1, 2, and the voter of 2 prefers 1 to 0. So 2 drops out, then
        // 0, and 1 stays.
        let scores = [3., 1., 2., 3., 1., 2., 1., 3., 2., 1., 3., 2., 1., 2., 3.];
        assert_eq!(ranked_choice(&scores, 3, 1), [1.0, 2.0, 0.0]);
        // With equal votes, the higher index drops out.
        assert_eq!(ranked_choice(&[1., 1.], 2, 2), [1.0, 0.0]);
    }

    #[test]
    fn aimer_is_one_if_all_weights_are_equally_large() {
        assert!((aimer([2.0, -2.0, 2.0]) - 1.0).abs() < 1e-12);
        assert!((aimer([3.0, 0.0, 0.0]) - 1.0 / 3f64.sqrt()).abs() < 1e-12);
        assert_eq!(aimer([0.0]), 0.0);
        assert!(aimer([1.0, f32::NAN]).is_nan() && aimer([1.0, f32::INFINITY]).is_nan());
    }

    #[test]
    fn greatest_takes_the_lower_index_of_equals() {
        assert_eq!(greatest(&[1.0, 3.0, 1.0, 2.0], 3), [0, 1, 3]);
    }
}
