//! Weights on integer grids: round to nearest, and GPTQ (Frantar et al. 2210.17323) with a Hessian
//! for each matrix.
//!
//! A weight W is `[N, K]`, with K its input width. Rows of W don't depend on each other; they share
//! only a [`Factor`] of the [`Hessian`] of the inputs.

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
pub use factor::{Damping, Factor, factorize};
pub use gptq::{GptqOptions, Problem, SolvedMatrix, solve};
pub use grid::{Codes, GridScheme, round_to_nearest};
pub use hessian::Hessian;
pub use objective::{energy, objective};
pub use real::Real;
pub use sum::{HessianSum, factorize_all};

/// The supported bit widths of codes.
pub const WIDTHS: [u32; 6] = [2, 3, 4, 5, 6, 8];

/// The reason why a matrix can't be quantized.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum QuantizeError {
    /// The bit width isn't supported.
    #[error("{0} bits a weight is not one of 2, 3, 4, 5, 6 and 8")]
    Bits(u32),
    /// Scales can't have this dtype.
    #[error("scales can't be stored as {0:?}")]
    ScaleDtype(candle_core::DType),
    /// Groups don't fill a row.
    #[error("groups of {group} don't fill rows of {width}")]
    Group {
        /// Number of columns of a group.
        group: usize,
        /// Number of columns of a row.
        width: usize,
    },
    /// The number of values doesn't match the shape.
    #[error("{found} values where {expected} belong")]
    Length {
        /// Number of values given.
        found: usize,
        /// Number of values that the shape requires.
        expected: usize,
    },
    /// A weight, an input or a Hessian holds NaN or infinity.
    #[error("a value is not finite")]
    NotFinite,
    /// No Cholesky factor exists, even with damping.
    #[error("the Hessian stays singular with {damping} of its mean diagonal added")]
    Singular {
        /// The last relative damping tried.
        damping: f64,
    },
    /// The device's error.
    #[error("the device can't solve it: {0}")]
    Device(String),
    /// The packed layout can't hold the codes.
    #[error("{0}")]
    Layout(&'static str),
}

fn checked_length(found: usize, expected: usize) -> Result<(), QuantizeError> {
    if found == expected { Ok(()) } else { Err(QuantizeError::Length { found, expected }) }
}
