//! Routing tokens to experts: softmax over experts, then top-k.

use candle_core::{DType, Result, Tensor};

/// Where each token goes.
#[derive(Debug, Clone, PartialEq)]
pub struct Routing {
    /// Number of experts.
    pub experts: usize,
    /// Experts that a token goes to.
    pub top_k: usize,
    /// `[tokens, top_k]`, in descending order of weight; of equal ones the lower index comes first.
    pub selected: Vec<u32>,
    /// `[tokens, top_k]`: the weights that are really applied.
    pub weights: Vec<f32>,
}

impl Routing {
    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.selected.len() / self.top_k.max(1)
    }

    /// Tokens that each expert gets.
    pub fn counts(&self) -> Vec<u64> {
        let mut counts = vec![0; self.experts];
        for &expert in &self.selected {
            counts[expert as usize] += 1;
        }
        counts
    }

    /// For each expert, the positions in `selected` that go to it, in order.
    pub fn slots_by_expert(&self) -> Vec<Vec<u32>> {
        let mut slots = vec![Vec::new(); self.experts];
        for (slot, &expert) in self.selected.iter().enumerate() {
            slots[expert as usize].push(slot as u32);
        }
        slots
    }
}

/// Softmax in f32, then top-k, optionally divided by the sum of the selected.
///
/// `logits` is `[tokens, experts]`. This is rule A of transformers' Mixtral, Qwen-MoE and OLMoE.
///
/// # Errors
/// What the device returns.
pub fn softmax_top_k(logits: &Tensor, top_k: usize, normalize: bool) -> Result<Routing> {
    let (tokens, experts) = logits.dims2()?;
    let probabilities = candle_nn::ops::softmax_last_dim(&logits.to_dtype(DType::F32)?.contiguous()?)?;
    let probabilities: Vec<f32> = probabilities.flatten_all()?.to_vec1()?;
    let mut selected = Vec::with_capacity(tokens * top_k);
    let mut weights = Vec::with_capacity(tokens * top_k);
    let mut order: Vec<u32> = Vec::with_capacity(experts);
    for row in probabilities.chunks_exact(experts) {
        order.clear();
        order.extend(0..experts as u32);
        let descending = |a: &u32, b: &u32| row[*b as usize].total_cmp(&row[*a as usize]).then(a.cmp(b));
        if top_k < experts {
            order.select_nth_unstable_by(top_k, descending);
        }
        order[..top_k].sort_unstable_by(descending);
        let sum: f32 = order[..top_k].iter().map(|e| row[*e as usize]).sum();
        let scale = if normalize { 1.0 / sum } else { 1.0 };
        selected.extend_from_slice(&order[..top_k]);
        weights.extend(order[..top_k].iter().map(|e| row[*e as usize] * scale));
    }
    Ok(Routing { experts, top_k, selected, weights })
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn route<const N: usize>(logits: &[[f32; 4]; N], top_k: usize, normalize: bool) -> Routing {
        let logits = Tensor::new(logits, &Device::Cpu).unwrap();
        softmax_top_k(&logits, top_k, normalize).unwrap()
    }

    #[test]
    fn weights_are_probabilities_or_their_shares() {
        // softmax of ln(1, 2, 3, 4) is (1, 2, 3, 4) / 10.
        let logits = [[1f32.ln(), 2f32.ln(), 3f32.ln(), 4f32.ln()]];
        let plain = route(&logits, 2, false);
        assert_eq!(plain.selected, [3, 2]);
        assert!((plain.weights[0] - 0.4).abs() < 1e-6 && (plain.weights[1] - 0.3).abs() < 1e-6);
        let shares = route(&logits, 2, true);
        assert!((shares.weights[0] - 4.0 / 7.0).abs() < 1e-6 && (shares.weights[1] - 3.0 / 7.0).abs() < 1e-6);
    }

    #[test]
    fn ties_go_to_the_lower_index_and_all_experts_may_be_selected() {
        assert_eq!(route(&[[0.0; 4]], 2, true).selected, [0, 1]);
        assert_eq!(route(&[[0.0, 1.0, 0.0, 1.0]], 4, true).selected, [1, 3, 0, 2]);
    }

    #[test]
    fn slots_and_counts_agree() {
        let routing = route(&[[0.0, 1.0, 2.0, 3.0], [3.0, 2.0, 1.0, 0.0]], 2, true);
        assert_eq!(routing.counts(), [1, 1, 1, 1]);
        assert_eq!(routing.slots_by_expert(), [vec![2], vec![3], vec![1], vec![0]]);
    }
}
