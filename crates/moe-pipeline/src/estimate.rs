//! How long a run will take, said before it starts.

use std::sync::OnceLock;

use moe_checkpoint::Result;
use moe_forward::ForwardWork;
use moe_math::Compute;
use moe_model::Model;

use crate::peaks::Peaks;

/// The share of a large matrix product's speed that whole sweeps have, small products, statistics
/// and everything else included: what docs/benchmarks/machine.md has of
/// passes at real sizes on a CPU.
const SHARE: f64 = 0.5;
/// Bytes of the result that are made, hashed and written in a second.
const WRITTEN: f64 = 600e6;

/// Operations of a second on any machine that this runs on.
const SLOWEST: f64 = 4e9;
/// Fewer operations take less than a second anywhere, and aren't worth measuring the machine for.
const SMALL: f64 = 1e9;

/// Seconds on a CPU for each logit of two models whose distributions are compared: both logarithms
/// in f64, and their divergence, which one thread takes. Of a vocabulary of 150,000 this takes
/// longer than all products of a small model.
const COMPARED_SECONDS: f64 = 25e-9;

/// What a run takes time for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cost {
    /// Operations of products.
    pub flops: f64,
    /// Bytes that are written.
    pub bytes: u64,
    /// Logits of the result that are compared with the source's.
    pub compared_logits: f64,
}

impl Cost {
    /// About how many seconds it takes.
    ///
    /// # Errors
    /// What the device returns, whose speed is measured.
    pub fn seconds(self, compute: &Compute) -> Result<f64> {
        let speed = if self.flops < SMALL { SLOWEST } else { product_speed(compute)? };
        // A GPU compares them as fast as it reads them.
        let comparing =
            if compute.device.is_cpu() { self.compared_logits * COMPARED_SECONDS } else { 0.0 };
        Ok(self.flops / (SHARE * speed) + comparing + self.bytes as f64 / WRITTEN)
    }
}

/// Operations of a forward pass of a source and its result, as measuring them takes.
pub(crate) fn measuring([source, result]: [&Model; 2], tokens: usize, sequence: usize) -> f64 {
    let head = 2.0 * (tokens * source.hidden * source.vocab) as f64;
    let of = |model| ForwardWork::of(model, tokens, sequence).total() + head;
    of(source) + of(result)
}

/// Measured once.
fn product_speed(compute: &Compute) -> Result<f64> {
    static SPEED: OnceLock<f64> = OnceLock::new();
    if let Some(speed) = SPEED.get() {
        return Ok(*speed);
    }
    let measured = Peaks::product(compute, 1024).map_err(|e| {
        moe_checkpoint::Error::new(
            moe_checkpoint::Kind::Numeric,
            "cannot measure the speed of this device",
        )
        .source(e)
    })?;
    Ok(*SPEED.get_or_init(|| measured))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comparing_distributions_takes_time_beside_products() {
        let of = |compared_logits| {
            Cost { flops: 0.0, bytes: 600_000_000, compared_logits }.seconds(&Compute::cpu())
        };
        let [without, with] = [0.0, 512.0 * 150_000.0].map(|logits| of(logits).unwrap());
        assert!(
            (without - 1.0).abs() < 1e-9 && (with - without - 1.92).abs() < 1e-9,
            "{without} {with}"
        );
    }
}
