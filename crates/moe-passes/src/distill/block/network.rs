//! The dense network that is trained, as a function of its matrices.

use candle_core::{Result as CandleResult, Tensor};
use moe_math::product::product;
use moe_math::swiglu;

/// down(silu(gate x) ∘ (up x))
pub(super) fn output(x: &Tensor, [gate, up, down]: &[Tensor; 3]) -> CandleResult<Tensor> {
    product(&swiglu(&product(x, gate)?, &product(x, up)?)?, down)
}
