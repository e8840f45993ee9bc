//! The maximum number of tokens of an expert.

use moe_math::routing::Routing;

/// The capacity of experts, as a multiple of their even share of the tokens that are routed
/// together. Further tokens are processed without the expert, as in Switch (2101.03961 §2.2).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Capacity {
    pub factor: f64,
}

impl Capacity {
    /// Returns the maximum number of tokens of `routing` that an expert takes: ⌈factor · tokens · k
    /// / experts⌉ (Switch, eq. 3).
    pub fn tokens(self, routing: &Routing) -> usize {
        let share = self.factor * routing.selected.len() as f64 / routing.experts as f64;
        share.ceil().max(1.0) as usize
    }
}
