//! Helpers that these tests share.

use std::path::{Path, PathBuf};

use moe_math::{Compute, encoding};
use moe_model::Weight;
use moe_pipeline::{ByteSize, ConvertOptions};

/// The file or folder `path` of the repository's goldens.
pub fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden").join(path)
}

/// Text of the domain `name`, for calibration.
pub fn calibration_text(name: &str) -> String {
    golden(&format!("text/{name}.calibration.txt")).display().to_string()
}

/// Options of a run on a CPU that writes a new result and compares it with its source on a few
/// tokens.
pub fn run() -> ConvertOptions {
    ConvertOptions {
        overwrite: false,
        resume: false,
        max_shard_size: ByteSize(5_000_000_000),
        probe_tokens: 8,
        compute: Compute::cpu(),
        memory_budget: None,
    }
}

/// The same, for a run that may replace an earlier result.
pub fn run_again() -> ConvertOptions {
    ConvertOptions { overwrite: true, ..run() }
}

/// The values of `weight`, which isn't quantized.
pub fn values(weight: &Weight) -> Vec<f32> {
    encoding::decode_f32(&weight.read().unwrap(), moe_forward::candle_dtype(weight).unwrap())
        .unwrap()
}
