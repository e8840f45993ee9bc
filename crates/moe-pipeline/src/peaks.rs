//! Measures the machine's peak speeds, which the speed of a run is compared with.

use std::time::Instant;

use candle_core::{DType, Device, Result, Tensor};
use moe_math::Compute;
use moe_math::product::product;
use serde::Serialize;

/// Number of times that each speed is measured; the best counts.
const TRIES: usize = 5;

/// Number of f32 values that are copied on a CPU.
const CPU_COPIED: usize = 1 << 26;

/// The machine's own speed on the device of a run.
#[derive(Debug, Clone, Copy, Serialize, schemars::JsonSchema)]
pub struct Peaks {
    /// Floating-point operations per second of a large matrix product in the run's dtype.
    pub flops: f64,
    /// Bytes per second that a copy within the device's memory reads and writes.
    pub bytes: f64,
}

impl Peaks {
    /// Measures both peaks.
    ///
    /// # Errors
    /// Errors of the device.
    pub fn measure(compute: &Compute) -> Result<Self> {
        let (size, copied) =
            if compute.device.is_cpu() { (2048, CPU_COPIED) } else { (8192, 1 << 29) };
        let flops = Self::product(compute, size)?;
        let values = Tensor::zeros(copied, DType::F32, &compute.device)?;
        let bytes = 2.0 * 4.0 * copied as f64 / best(&compute.device, || values.copy())?;
        Ok(Self { flops, bytes })
    }

    /// Floating-point operations per second in a product of two square matrices of this size, in
    /// the run's dtype.
    ///
    /// # Errors
    /// Errors of the device.
    pub(crate) fn product(compute: &Compute, size: usize) -> Result<f64> {
        let matrix =
            || Tensor::rand(0f32, 1.0, (size, size), &compute.device)?.to_dtype(compute.dtype);
        let (a, b) = (matrix()?, matrix()?);
        Ok(2.0 * (size as f64).powi(3) / best(&compute.device, || product(&a, &b))?)
    }
}

/// Bytes of memory that measuring takes: the values that are copied, and the copy.
pub(super) fn bytes(compute: &Compute) -> u64 {
    if compute.device.is_cpu() { 2 * 4 * CPU_COPIED as u64 } else { 0 }
}

fn best(device: &Device, mut run: impl FnMut() -> Result<Tensor>) -> Result<f64> {
    let mut least = f64::INFINITY;
    for _ in 0..TRIES {
        device.synchronize()?;
        let start = Instant::now();
        let made = run()?;
        device.synchronize()?;
        least = least.min(start.elapsed().as_secs_f64());
        drop(made);
    }
    Ok(least)
}
