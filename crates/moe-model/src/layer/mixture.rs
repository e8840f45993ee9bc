//! Experts and their mixtures.

use super::linear::Linear;
use super::router::Router;
use crate::weight::Weight;

/// A gated feed-forward network, `down(act(gate x) ∘ (up x))`: a dense layer's block or one expert.
#[derive(Debug, Clone)]
pub struct Expert {
    /// `[width, hidden]`.
    pub gate: Linear,
    /// `[width, hidden]`.
    pub up: Linear,
    /// `[hidden, width]`.
    pub down: Linear,
}

impl Expert {
    /// Intermediate width in neurons.
    pub fn width(&self) -> usize {
        self.gate.weight.shape()[0]
    }

    /// Whether all projections of both come from the same source: see [`Weight::same_source`].
    pub fn same_source(&self, other: &Self) -> bool {
        self.linears().into_iter().zip(other.linears()).all(|(a, b)| a.same_source(b))
    }

    /// The three projections.
    pub fn linears(&self) -> [&Linear; 3] {
        [&self.gate, &self.up, &self.down]
    }

    /// Number of elements of the three matrices, without biases.
    pub fn elements(&self) -> usize {
        self.linears().iter().map(|linear| linear.weight.elements()).sum()
    }

    pub(super) fn weights_mut(&mut self) -> impl Iterator<Item = &mut Weight> {
        [&mut self.gate, &mut self.up, &mut self.down].into_iter().flat_map(Linear::weights_mut)
    }
}

/// An expert that every token goes through.
#[derive(Debug, Clone)]
pub struct SharedExpert {
    /// The feed-forward network.
    pub expert: Expert,
    /// `[1, hidden]`: the expert's output is multiplied by `σ(gate · x)`; None for no such factor.
    pub gate: Option<Weight>,
}

/// A mixture of experts.
#[derive(Debug, Clone)]
pub struct Moe {
    /// Chooses the experts of each token, and their weights.
    pub router: Router,
    /// The routed experts, all of one width.
    pub experts: Vec<Expert>,
    /// The shared expert, if there is one.
    pub shared: Option<SharedExpert>,
}

impl Moe {
    pub(super) fn weights_mut(&mut self) -> Vec<&mut Weight> {
        let router = std::iter::once(&mut self.router.weight).chain(&mut self.router.bias);
        let experts = self.experts.iter_mut().flat_map(Expert::weights_mut);
        let mut weights: Vec<_> = router.chain(experts).collect();
        if let Some(SharedExpert { expert, gate }) = &mut self.shared {
            weights.extend(expert.weights_mut().chain(gate));
        }
        weights
    }
}
