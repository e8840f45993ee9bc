//! Weights on integer grids: round to nearest, and GPTQ (Frantar et al. 2210.17323) with a Hessian
//! for each matrix.
//!
//! A weight W is `[N, K]`, K its input width. The rows of W don't depend on each other; all that
//! they share is a [`Factor`] of the [`Hessian`] of the inputs.

mod cholesky;
mod chunk;
mod columns;
mod device;
mod factor;
mod gptq;
pub(crate) mod grid;
mod hessian;
mod kernel;
mod objective;
pub mod pack;
mod real;
mod sum;

pub use device::solve_on;
pub use factor::{Damping, Factor, factorise};
pub use gptq::{Options, Problem, Solved, solve};
pub use grid::{Codes, Scheme, round_to_nearest};
pub use hessian::Hessian;
pub use objective::{energy, objective};
pub use real::Real;
pub use sum::{HessianSum, factorise_all};

/// Bits that a code can have.
pub const WIDTHS: [u32; 6] = [2, 3, 4, 5, 6, 8];

/// What can't be quantized.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum QuantizeError {
    /// A width that no grid has.
    #[error("{0} bits a weight is not one of 2, 3, 4, 5, 6 and 8")]
    Bits(u32),
    /// A dtype that no scale has.
    #[error("scales can't be stored as {0:?}")]
    ScaleDtype(candle_core::DType),
    /// Groups that don't fill a row.
    #[error("groups of {group} don't fill rows of {width}")]
    Group {
        /// Columns of a group.
        group: usize,
        /// Columns of a row.
        width: usize,
    },
    /// Values that are not as many as their shape says.
    #[error("{found} values where {expected} belong")]
    Length {
        /// Values given.
        found: usize,
        /// Values that the shape calls for.
        expected: usize,
    },
    /// A weight, an input or a Hessian holds NaN or infinity.
    #[error("a value is not finite")]
    NotFinite,
    /// No Cholesky factor, whatever the damping.
    #[error("the Hessian stays singular with {damping} of its mean diagonal added")]
    Singular {
        /// The last relative damping that was tried.
        damping: f64,
    },
    /// What a device returned.
    #[error("the device can't solve it: {0}")]
    Device(String),
    /// A packed layout that can't hold the codes.
    #[error("{0}")]
    Layout(&'static str),
}

fn checked_length(found: usize, expected: usize) -> Result<(), QuantizeError> {
    if found == expected { Ok(()) } else { Err(QuantizeError::Length { found, expected }) }
}
