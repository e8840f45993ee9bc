//! The objective of training.

use crate::ffn::Capacity;

/// What the load-balancing loss is computed over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum BalanceOver {
    /// Each layer is balanced separately, and the loss is the mean over layers.
    #[default]
    Layers,
    /// All layers are balanced together, as in transformers: surplus of the first expert of one
    /// layer can be offset by a deficit of that of another layer.
    Model,
}

/// The loss that training minimizes: the weighted sum of these terms.
#[derive(Debug, Clone, PartialEq)]
pub struct Objective {
    /// Weight of the mean −log p of next tokens.
    pub cross_entropy: f64,
    /// Weight of the mean KL(teacher ‖ model).
    pub teacher: f64,
    /// Weight of the load-balancing loss.
    pub balance: f64,
    /// What the load-balancing loss is computed over.
    pub over: BalanceOver,
    /// Weight of the router z-loss.
    pub z: f64,
    /// Capacity of experts, as a multiple of their even share of a batch's choices; None for no
    /// limit.
    pub capacity_factor: Option<f64>,
}

impl Objective {
    /// The mean −log p of next tokens alone.
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
