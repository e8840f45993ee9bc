//! Estimates how long a run will take, before it starts.

use std::sync::OnceLock;

use moe_checkpoint::Result;
use moe_forward::ForwardWork;
use moe_math::Compute;
use moe_model::Model;

use crate::peaks::Peaks;

/// The speed of whole sweeps, including small products and statistics, as a share of the speed of a
/// large matrix product. It comes from passes at real sizes on a CPU
/// (docs/benchmarks/machine.md).
const SHARE: f64 = 0.5;
/// Bytes of the result that are made, hashed and written per second.
const WRITTEN: f64 = 600e6;

/// Operations per second that any machine reaches.
const SLOWEST: f64 = 4e9;
/// Fewer operations take less than a second on any machine, so its speed isn't measured for them.
const SMALL: f64 = 1e9;

/// Seconds on a CPU for each logit when the distributions of two models are compared: both
/// logarithms in f64, and their divergence, on one thread. With a vocabulary of 150,000 this takes
/// longer than all products of a small model.
const COMPARED_SECONDS: f64 = 25e-9;

/// The work that a run's time goes into.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cost {
    /// Floating-point operations of matrix products.
    pub flops: f64,
    /// Bytes to write.
    pub bytes: u64,
    /// Logits of the result to compare with the source's.
    pub compared_logits: f64,
}

impl Cost {
    /// The estimated time in seconds.
    ///
    /// # Errors
    /// Errors of the device, whose speed is measured.
    pub fn seconds(self, compute: &Compute) -> Result<f64> {
        let speed = if self.flops < SMALL { SLOWEST } else { product_speed(compute)? };
        // A GPU compares logits as fast as it reads them.
        let comparing =
            if compute.device.is_cpu() { self.compared_logits * COMPARED_SECONDS } else { 0.0 };
        Ok(self.flops / (SHARE * speed) + comparing + self.bytes as f64 / WRITTEN)
    }
}

/// Operations of measuring: a forward pass of a source and of its result.
pub(crate) fn measuring([source, result]: [&Model; 2], tokens: usize, sequence: usize) -> f64 {
    let head = 2.0 * (tokens * source.hidden * source.vocab) as f64;
    let of = |model| ForwardWork::of(model, tokens, sequence).total() + head;
    of(source) + of(result)
}

/// Operations per second of a large product, measured once per process.
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
    fn comparing_distributions_adds_to_the_time_of_products() {
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
