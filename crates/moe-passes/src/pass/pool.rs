//! Text from which sequences join the calibration for experts that lack tokens.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::calibrate::CalibrationOptions;

/// A pool of text, from which those sequences join the calibration that have tokens for cold
/// experts.
#[derive(Debug, Clone)]
pub struct Pool {
    /// The text of the pool.
    pub text: CalibrationOptions,
    /// The number of tokens that each expert should have.
    pub least: usize,
    /// The maximum number of tokens that join; None for as many as the calibration has.
    pub most: Option<usize>,
}

/// The effect of a pool of text on the calibration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PoolStats {
    /// Number of sequences and tokens of the pool.
    pub scanned: [usize; 2],
    /// Number of sequences and tokens that joined the calibration.
    pub joined: [usize; 2],
    /// Number of experts, over all layers, with fewer tokens than asked for, before and after, by
    /// the original's routing.
    pub short: [usize; 2],
}
