//! Text of which as much joins the calibration as experts lack.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::calibrate::CalibrationOptions;

/// A pool of text: of its sequences those join the calibration that cold experts see tokens of.
#[derive(Debug, Clone)]
pub struct Pool {
    /// The text.
    pub text: CalibrationOptions,
    /// Tokens that each expert should have.
    pub least: usize,
    /// Most tokens that join; None for as many as the calibration has.
    pub most: Option<usize>,
}

/// What a pool gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PoolStats {
    /// Sequences and tokens of the pool.
    pub scanned: [usize; 2],
    /// Those that joined the calibration.
    pub joined: [usize; 2],
    /// Experts of all layers that fall short of their tokens, before and after, by the original's
    /// routing.
    pub short: [usize; 2],
}
