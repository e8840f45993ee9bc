//! Linear maps.

use crate::weight::Weight;

/// A linear map `y = x Wᵀ + b`.
#[derive(Debug, Clone)]
pub struct Linear {
    /// `[out, in]`.
    pub weight: Weight,
    /// `[out]`.
    pub bias: Option<Weight>,
}

impl Linear {
    /// The weight, and the bias if there is one.
    pub fn weights(&self) -> impl Iterator<Item = &Weight> {
        std::iter::once(&self.weight).chain(&self.bias)
    }

    pub(super) fn same_source(&self, other: &Self) -> bool {
        let biases = match (&self.bias, &other.bias) {
            (Some(own), Some(other)) => own.same_source(other),
            (None, None) => true,
            _ => false,
        };
        biases && self.weight.same_source(&other.weight)
    }

    pub(super) fn weights_mut(&mut self) -> impl Iterator<Item = &mut Weight> {
        std::iter::once(&mut self.weight).chain(&mut self.bias)
    }
}
