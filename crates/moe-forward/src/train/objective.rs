//! What training minimises.

use crate::ffn::Capacity;

/// What the load-balancing loss is taken over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum BalanceOver {
    /// Each layer's load is balanced by itself; the loss is the mean over layers.
    #[default]
    Layers,
    /// The load of all layers is balanced together, as transformers has it: what one layer's first
    /// expert gets too much, another's may get too little.
    Model,
}

/// What is minimised: the weighted sum of these.
#[derive(Debug, Clone, PartialEq)]
pub struct Objective {
    /// Weight of the mean −log p of next tokens.
    pub cross_entropy: f64,
    /// Weight of the mean KL(teacher ‖ model).
    pub teacher: f64,
    /// Weight of the load-balancing loss.
    pub balance: f64,
    /// What that is taken over.
    pub over: BalanceOver,
    /// Weight of the router z-loss.
    pub z: f64,
    /// Experts take this many times their even share of a batch's choices, if not all.
    pub capacity_factor: Option<f64>,
}

impl Objective {
    /// The mean −log p of next tokens, and nothing else.
    pub const NEXT_TOKENS: Self = Self {
        cross_entropy: 1.0,
        teacher: 0.0,
        balance: 0.0,
        over: BalanceOver::Layers,
        z: 0.0,
        capacity_factor: None,
    };

    pub(super) fn capacity(&self) -> Option<Capacity> {
        self.capacity_factor.map(|factor| Capacity { factor })
    }
}
