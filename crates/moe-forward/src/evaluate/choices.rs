//! Which experts tokens were routed to, and which of these are rare.

use candle_core::Tensor;
use moe_checkpoint::Result;
use moe_math::routing::Routing;

use crate::observer::Observer;

/// The routing of all tokens in all layers.
#[derive(Default)]
pub(super) struct TokenChoices {
    /// Number of tokens in total, including those that haven't been routed yet.
    pub tokens: usize,
    pub layers: Vec<LayerChoices>,
}

/// The routing of all tokens in a layer.
pub(super) struct LayerChoices {
    layer: usize,
    experts: usize,
    /// Number of experts per token.
    top_k: usize,
    /// The chosen experts with their gates, token by token.
    chosen: Vec<(u32, f32)>,
}

impl TokenChoices {
    /// Returns, for each of `tokens` tokens, the share of its gates over all layers that goes to
    /// rare experts: in each layer the quarter of experts that the fewest tokens choose. All zeros
    /// for a model without experts.
    pub fn rare_mass(&self, tokens: usize) -> Vec<f64> {
        let mut mass = vec![0.0; tokens];
        for layer in &self.layers {
            let is_rare = layer.rare_experts();
            for (mass, chosen) in mass.iter_mut().zip(layer.chosen.chunks_exact(layer.top_k)) {
                let all: f64 = chosen.iter().map(|(_, gate)| f64::from(*gate)).sum();
                let rare = chosen.iter().filter(|(expert, _)| is_rare[*expert as usize]);
                let rare: f64 = rare.map(|(_, gate)| f64::from(*gate)).sum();
                *mass += if all > 0.0 { rare / all / self.layers.len() as f64 } else { 0.0 };
            }
        }
        mass
    }
}

impl LayerChoices {
    /// Returns for each expert whether it is among the quarter that the fewest tokens choose.
    fn rare_experts(&self) -> Vec<bool> {
        let mut counts = vec![0u64; self.experts];
        self.chosen.iter().for_each(|(expert, _)| counts[*expert as usize] += 1);
        let mut order: Vec<usize> = (0..self.experts).collect();
        order.sort_by_key(|expert| counts[*expert]);
        let mut is_rare = vec![false; self.experts];
        order[..self.experts / 4].iter().for_each(|expert| is_rare[*expert] = true);
        is_rare
    }
}

impl Observer for TokenChoices {
    fn routed(&mut self, layer: usize, _: &Tensor, routing: &Routing) -> Result<()> {
        if self.layers.last().is_none_or(|last| last.layer != layer) {
            // Reserved for all tokens at once: while a vector grows, it holds twice as much.
            let chosen = Vec::with_capacity(self.tokens * routing.top_k);
            self.layers.push(LayerChoices {
                layer,
                experts: routing.experts,
                top_k: routing.top_k,
                chosen,
            });
        }
        let last = self.layers.last_mut().expect("it was just pushed");
        last.chosen.extend(routing.selected.iter().copied().zip(routing.weights.iter().copied()));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tokens_rare_mass_is_a_share_of_its_gates() {
        let first = [
            [(0, 0.5), (1, 0.5)],
            [(0, 0.9), (3, 0.1)],
            [(1, 0.6), (2, 0.4)],
            [(1, 1.0), (2, 1.0)],
        ]
        .concat();
        let layer = |layer, top_k, chosen| LayerChoices { layer, experts: 4, top_k, chosen };
        let choices = TokenChoices {
            tokens: 4,
            layers: vec![layer(0, 2, first), layer(1, 1, vec![(0, 1.0); 4])],
        };
        // Expert 3 is the rare one of layer 0; in layer 1 three have none, and the first of them is
        // it.
        let mass = choices.rare_mass(4);
        assert!(
            (mass[1] - 0.05).abs() < 1e-7 && [0, 2, 3].iter().all(|token| mass[*token] == 0.0),
            "{mass:?}"
        );
        assert_eq!(TokenChoices::default().rare_mass(2), [0.0; 2]);
    }
}
