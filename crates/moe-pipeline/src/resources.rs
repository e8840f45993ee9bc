//! Sizes in bytes, peak memory, and the facts of a run that aren't part of its result.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use candle_core::{Device, DeviceLocation};
use moe_checkpoint::{Error, Kind, Result, Seal, json};
use moe_forward::Storage;
use moe_math::Compute;
use moe_model::Model;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use crate::live::{self, peak_live_bytes};
use crate::portable::portable;
use crate::progress::Timings;

/// The kind of the device; another kind rounds differently.
pub(crate) fn device_kind(device: &Device) -> &'static str {
    match device {
        Device::Cpu => "cpu",
        Device::Cuda(_) => "cuda",
        Device::Metal(_) => "metal",
    }
}

/// A number of bytes, written as `5GB` (10⁹), `8GiB` (2³⁰) or a plain number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
pub struct ByteSize(pub u64);

const UNITS: [(&str, u64); 10] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("B", 1),
];

impl FromStr for ByteSize {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (number, unit) = UNITS
            .iter()
            .find_map(|(suffix, unit)| Some((text.strip_suffix(suffix)?, *unit)))
            .unwrap_or((text, 1));
        let number: Option<f64> =
            number.trim().parse().ok().filter(|x: &f64| x.is_finite() && *x > 0.0);
        number.map(|x| Self((x * unit as f64) as u64)).filter(|size| size.0 > 0).ok_or_else(|| {
            Error::new(Kind::Usage, format!("{text:?} is not a size"))
                .remedy("write it as 5GB, 8GiB, 500MiB or in bytes")
        })
    }
}

impl fmt::Display for ByteSize {
    /// In decimal units, as disks and model hubs count.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)];
        match units.iter().find(|(_, unit)| self.0 as f64 >= *unit) {
            Some((name, unit)) => write!(f, "{:.2} {name}", self.0 as f64 / unit),
            None => write!(f, "{} B", self.0),
        }
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_any(SizeVisitor)
    }
}

/// Accepts a size as text, or a number of bytes as an integer.
struct SizeVisitor;

impl serde::de::Visitor<'_> for SizeVisitor {
    type Value = ByteSize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a size such as \"5GB\" or a number of bytes")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<ByteSize, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_i64<E: serde::de::Error>(self, bytes: i64) -> Result<ByteSize, E> {
        bytes.to_string().parse().map_err(E::custom)
    }

    fn visit_u64<E: serde::de::Error>(self, bytes: u64) -> Result<ByteSize, E> {
        bytes.to_string().parse().map_err(E::custom)
    }
}

/// Tokens that go through a layer together in a sweep over calibration text, if memory allows.
const BLOCK_TOKENS: usize = 8192;
/// The same number on a GPU, which small products wouldn't keep busy.
const DEVICE_BLOCK_TOKENS: usize = 65_536;
/// With smaller blocks, each layer's weights would be read for too little work.
const MIN_BLOCK_TOKENS: usize = 512;
/// States that a layer holds for a token: its input, its normalized input, its output, and an
/// expert's output.
const STATES_AT_WORK: usize = 4;

/// The storage for hidden states of a sweep over `tokens`: memory (the device's, where there is
/// one) or, where they need more than a quarter of the budget, a scratch file in `dir`. Blocks of
/// tokens are as large as another quarter holds.
///
/// # Errors
/// [`Kind::Usage`] for a budget that not even the smallest block fits in.
pub(crate) fn storage(
    model: &Model,
    tokens: usize,
    budget: Option<ByteSize>,
    compute: &Compute,
    dir: &Path,
) -> Result<Storage> {
    let (max_tokens, budget, option) = if compute.device.is_cpu() {
        (BLOCK_TOKENS, budget, "--memory-budget")
    } else {
        (DEVICE_BLOCK_TOKENS, compute.memory().map(ByteSize), "--device-memory")
    };
    let Some(budget) = budget else {
        return Ok(Storage { block_tokens: Some(max_tokens), scratch: None });
    };
    let state = (model.hidden * 4) as u64;
    let fitting = (budget.0 / 4 / (state * STATES_AT_WORK as u64)) as usize;
    let block = fitting.clamp(MIN_BLOCK_TOKENS, max_tokens);
    let at_work = (block.min(tokens) * STATES_AT_WORK) as u64 * state;
    if at_work > budget.0 {
        let what = format!(
            "hidden states of {block} tokens take {}, the budget is {budget}",
            ByteSize(at_work)
        );
        return Err(Error::new(Kind::Usage, what).remedy(format!("raise {option}")));
    }
    // The inputs of a layer, its outputs, and those of its experts.
    let scratch = (tokens as u64 * state * 3 > budget.0 / 4).then(|| dir.to_owned());
    Ok(Storage { block_tokens: Some(block), scratch })
}

/// The directory that `output` lies in.
pub(crate) fn directory_of(output: &Path) -> &Path {
    output.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Peak memory before the last [`begin_step`].
static EARLIER_PEAK: AtomicU64 = AtomicU64::new(0);

/// Restarts the peaks of [`peak_memory_bytes`] and [`peak_live_bytes`]: a step of a recipe begins.
/// Where the system can't reset its peak, the peak of the process continues.
pub fn begin_step() {
    EARLIER_PEAK.fetch_max(peak_memory_bytes().unwrap_or(0), Relaxed);
    // "5" resets VmHWM to the memory held now (proc(5)).
    if std::fs::write("/proc/self/clear_refs", "5").is_ok() {
        live::begin_step();
    }
}

/// Peak resident memory of this process since the last step began: VmHWM, in bytes. `None` where
/// the system doesn't report it.
pub fn peak_memory_bytes() -> Option<u64> {
    of_this_process("VmHWM:")
}

/// Peak resident memory of this process over all steps, in bytes. `None` where the system doesn't
/// report it.
pub fn process_peak_memory_bytes() -> Option<u64> {
    peak_memory_bytes().map(|peak| peak.max(EARLIER_PEAK.load(Relaxed)))
}

/// Resident memory of this process now: VmRSS, in bytes. `None` where the system doesn't report it.
pub fn memory_bytes() -> Option<u64> {
    of_this_process("VmRSS:")
}

fn of_this_process(key: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix(key))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// Memory that programs can get without swapping, in bytes: MemAvailable. `None` where the system
/// doesn't report it.
pub(crate) fn available_memory_bytes() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// The record of values that differ from run to run: `run.json`, which the manifest doesn't list.
/// `is_run_record` of moe-checkpoint knows its keys.
#[derive(Debug, Clone, Serialize, schemars::JsonSchema)]
pub(crate) struct RunRecord {
    /// The path of the source.
    pub source: String,
    /// The device that computed: cpu, cuda:N or metal.
    pub device: String,
    /// The dtype of matrix products.
    pub dtype: String,
    /// The dtype of router computations. None for f32.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub router_dtype: Option<&'static str>,
    /// Number of threads.
    pub threads: usize,
    /// The name of the machine.
    pub host: String,
    /// The time at which this record was made, in seconds since 1970.
    pub unix_time: u64,
    /// Wall time of all stages.
    pub seconds: f64,
    /// Peak resident memory. None if the system doesn't report it.
    pub peak_memory_bytes: Option<u64>,
    /// The memory budget of the run. None without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_budget_bytes: Option<u64>,
    /// Peak of the bytes that the program had allocated. None if they weren't counted.
    pub peak_live_bytes: Option<u64>,
    /// The stages of the run.
    pub timings: Timings,
    /// SHA-256 of the log of a training. None without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub training_log_sha256: Option<String>,
}

impl RunRecord {
    pub fn now(
        source: &Path,
        compute: &Compute,
        memory_budget: Option<ByteSize>,
        timings: Timings,
    ) -> Self {
        let unix_time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Self {
            source: portable(source),
            device: match compute.device.location() {
                DeviceLocation::Cpu => "cpu".to_owned(),
                DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
                DeviceLocation::Metal { .. } => "metal".to_owned(),
            },
            dtype: compute.dtype.as_str().to_owned(),
            router_dtype: compute.router_dtype.other_than_f32(),
            threads: rayon::current_num_threads(),
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            unix_time: unix_time.map_or(0, |t| t.as_secs()),
            seconds: timings.total(),
            peak_memory_bytes: peak_memory_bytes(),
            memory_budget_bytes: memory_budget.map(|budget| budget.0),
            peak_live_bytes: peak_live_bytes(),
            timings,
            training_log_sha256: None,
        }
    }

    /// Formats the record as JSON with a hash, which shows whether it was edited.
    pub fn sealed(&self) -> String {
        Seal::JSON.close(&json::to_pretty(self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in
            [("8GiB", 8 << 30), ("5GB", 5_000_000_000), ("1.5 MiB", 3 << 19), ("77", 77), ("9B", 9)]
        {
            assert_eq!(text.parse::<ByteSize>().unwrap().0, bytes, "{text}");
        }
        for text in ["", "GB", "-1GB", "0", "1PB", "nan", "inf"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
        assert_eq!(ByteSize(1_234_567).to_string(), "1.23 MB");
    }

    /// An earlier step's peak isn't a later one's, but still counts for the process.
    #[test]
    #[cfg(target_os = "linux")]
    fn a_step_has_a_peak_of_its_own() {
        drop(std::hint::black_box(vec![1u8; 256 << 20]));
        begin_step();
        let (step, process) = (peak_memory_bytes().unwrap(), process_peak_memory_bytes().unwrap());
        assert!(process >= 256 << 20 && step + (64 << 20) < process, "{step} {process}");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn peak_memory_is_at_least_current_memory() {
        let held = std::hint::black_box(vec![1u8; 64 << 20]);
        assert!(peak_memory_bytes().unwrap() >= held.len() as u64);
    }
}
