//! How long a run will take, said before it starts.

use std::sync::OnceLock;

use moe_checkpoint::Result;
use moe_forward::ForwardWork;
use moe_math::Compute;

use crate::bench::Peaks;
use crate::prepare::Prepared;

/// The share of a large matrix product's speed that whole sweeps have, small products, statistics and everything else included: what
/// BENCHMARKS.md has of passes at real sizes on a CPU.
const SHARE: f64 = 0.5;
/// Bytes of the result that are made, hashed and written in a second.
const WRITTEN: f64 = 600e6;

/// Operations of a second on any machine that this runs on.
const SLOWEST: f64 = 4e9;
/// Fewer operations take less than a second anywhere, and aren't worth measuring the machine for.
const SMALL: f64 = 1e9;

/// About how many seconds `flops` operations and `bytes` that are written will take.
pub(crate) fn seconds(flops: f64, bytes: u64, compute: &Compute) -> Result<f64> {
    let speed = if flops < SMALL { SLOWEST } else { product_speed(compute)? };
    Ok(flops / (SHARE * speed) + bytes as f64 / WRITTEN)
}

/// Operations of a forward pass of the result and of its source, as measuring them takes.
pub(crate) fn measuring(prepared: &Prepared<'_>, tokens: usize, sequence: usize) -> f64 {
    let head = 2.0 * (tokens * prepared.source.hidden * prepared.source.vocab) as f64;
    let of = |model| ForwardWork::of(model, tokens, sequence).total() + head;
    of(&prepared.source) + of(prepared.result())
}

/// Measured once.
fn product_speed(compute: &Compute) -> Result<f64> {
    static SPEED: OnceLock<f64> = OnceLock::new();
    if let Some(speed) = SPEED.get() {
        return Ok(*speed);
    }
    let measured = Peaks::product(compute, 1024).map_err(|e| {
        moe_checkpoint::Error::new(moe_checkpoint::Kind::Numeric, "cannot measure the speed of this device").source(e)
    })?;
    Ok(*SPEED.get_or_init(|| measured))
}
