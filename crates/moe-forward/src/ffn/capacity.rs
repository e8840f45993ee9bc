//! How many tokens an expert takes.

use moe_math::routing::Routing;

/// Experts take so many times their even share of the tokens that are routed together; further
/// tokens go without them, as in Switch (2101.03961 §2.2).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Capacity {
    pub factor: f64,
}

impl Capacity {
    /// The maximum number of tokens of `routing` that an expert takes: ⌈factor · tokens · k /
    /// experts⌉ (Switch, eq. 3).
    pub fn tokens(self, routing: &Routing) -> usize {
        let share = self.factor * routing.selected.len() as f64 / routing.experts as f64;
        share.ceil().max(1.0) as usize
    }
}
