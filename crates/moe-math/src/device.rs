//! Choosing a compute device, with a sentence instead of a panic where there is none.

use std::fmt;
use std::str::FromStr;

use candle_core::{DType, Device};

use crate::meter::{Meter, Work};

/// Where numerics run, as the user asks for it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first GPU, if this build and this machine have one; otherwise the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The CUDA device of this number.
    Cuda(usize),
    /// Apple's GPU.
    Metal,
}

/// A device that can't be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// Not a device's name.
    #[error("unknown device {0:?}\n  remedy: give auto, cpu, cuda:0 (or another number) or metal")]
    Unknown(String),
    /// The program was built without this backend.
    #[error("this moe-convert was built without {0}\n  remedy: {1}")]
    NotBuilt(&'static str, &'static str),
    /// A library that the backend needs is not on this machine.
    #[error("{device} needs {library}, which can't be loaded here: {reason}\n  remedy: {remedy}")]
    MissingLibrary {
        /// The device asked for.
        device: DeviceChoice,
        /// The shared library.
        library: &'static str,
        /// What the loader says.
        reason: String,
        /// What to install or set.
        remedy: &'static str,
    },
    /// The driver is there, the device is not.
    #[error("{device} can't be opened: {reason}\n  remedy: check nvidia-smi, or run with --device cpu")]
    Unavailable {
        /// The device asked for.
        device: DeviceChoice,
        /// What the driver says.
        reason: String,
    },
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceChoice::Auto => f.write_str("auto"),
            DeviceChoice::Cpu => f.write_str("cpu"),
            DeviceChoice::Cuda(number) => write!(f, "cuda:{number}"),
            DeviceChoice::Metal => f.write_str("metal"),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        match text {
            "auto" => Ok(DeviceChoice::Auto),
            "cpu" => Ok(DeviceChoice::Cpu),
            "cuda" => Ok(DeviceChoice::Cuda(0)),
            "metal" => Ok(DeviceChoice::Metal),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|n| n.parse().ok())
                .map(DeviceChoice::Cuda)
                .ok_or_else(|| DeviceError::Unknown(text.to_owned())),
        }
    }
}

/// A device and the element type that numerics use on it.
#[derive(Debug, Clone)]
pub struct Compute {
    /// Where tensors live.
    pub device: Device,
    /// What matrix products are computed in.
    pub dtype: DType,
    /// Bytes of a GPU's memory that work may take; none: what is free.
    pub device_memory: Option<u64>,
    /// Where the time goes.
    pub meter: Meter,
}

impl Compute {
    /// f32 on the CPU.
    pub fn cpu() -> Self {
        Self { device: Device::Cpu, dtype: DType::F32, device_memory: None, meter: Meter::default() }
    }

    /// Runs `stage`, whose time and work the meter takes down.
    pub fn stage<T>(&self, name: &'static str, work: Work, stage: impl FnOnce() -> T) -> T {
        self.meter.stage(name, work, || {
            let result = stage();
            if self.meter.waits {
                // A device that fails here fails in the next stage, which can say so.
                let _ = self.device.synchronize();
            }
            result
        })
    }

    /// Bytes that things which are worked on together may take: `on_host` on a CPU; on a GPU a third of what there is, since
    /// what is made of them takes as much again, and no more than candle's kernels can count elements of.
    pub fn batch_bytes(&self, on_host: usize) -> usize {
        const COUNTABLE: u64 = 64 << 30;
        self.memory().map_or(on_host, |bytes| usize::try_from((bytes / 3).min(COUNTABLE)).unwrap_or(usize::MAX))
    }

    /// Bytes of a GPU's memory that work may take: what is free, and no more than [`Self::device_memory`]. None on a CPU, and where
    /// nobody knows.
    pub fn memory(&self) -> Option<u64> {
        if self.device.is_cpu() {
            return None;
        }
        let free = free_memory(&self.device);
        self.device_memory.map_or(free, |budget| Some(free.map_or(budget, |free| budget.min(free))))
    }
}

/// Memory of a GPU that nobody has, in bytes; none where it can't be told.
#[cfg(feature = "cuda")]
fn free_memory(device: &Device) -> Option<u64> {
    let Device::Cuda(cuda) = device else { return None };
    // What was freed counts as used until then.
    device.synchronize().ok()?;
    let (free, _) = cuda.cuda_stream().context().mem_get_info().ok()?;
    Some(free as u64)
}

#[cfg(not(feature = "cuda"))]
fn free_memory(_: &Device) -> Option<u64> {
    None
}

/// Whether `error`, or what caused it, is that the device has no memory left.
pub fn is_out_of_memory(error: &(dyn std::error::Error + 'static)) -> bool {
    // CUDA's name of it, and the words of cuBLAS and of Metal; candle's errors hold them as text.
    const SIGNS: [&str; 4] =
        ["CUDA_ERROR_OUT_OF_MEMORY", "CUBLAS_STATUS_ALLOC_FAILED", "out of memory", "Insufficient Memory"];
    let text = error.to_string();
    SIGNS.iter().any(|sign| text.contains(sign)) || error.source().is_some_and(is_out_of_memory)
}

/// Opens the device that `choice` stands for.
///
/// # Errors
/// [`DeviceError`], never for [`DeviceChoice::Auto`] or [`DeviceChoice::Cpu`].
pub fn open_device(choice: DeviceChoice) -> Result<Device, DeviceError> {
    match choice {
        DeviceChoice::Cpu => Ok(Device::Cpu),
        DeviceChoice::Auto => Ok(open_cuda(0).or_else(|_| open_metal()).unwrap_or(Device::Cpu)),
        DeviceChoice::Cuda(number) => open_cuda(number),
        DeviceChoice::Metal => open_metal(),
    }
}

#[cfg(not(feature = "cuda"))]
fn open_cuda(_: usize) -> Result<Device, DeviceError> {
    Err(DeviceError::NotBuilt("CUDA", "build it with scripts/build-cuda.sh, or run with --device cpu"))
}

#[cfg(feature = "cuda")]
fn open_cuda(number: usize) -> Result<Device, DeviceError> {
    let device = DeviceChoice::Cuda(number);
    probe_cuda_libraries(device)?;
    // cudarc panics, rather than returning an error, on a library or symbol that is missing.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let opened = std::panic::catch_unwind(|| one_stream(number));
    std::panic::set_hook(hook);
    let unavailable = |reason: String| DeviceError::Unavailable { device, reason };
    match opened {
        Ok(Ok(device)) => Ok(device),
        Ok(Err(error)) => Err(unavailable(chain(&error))),
        Err(panic) => Err(unavailable(match panic.downcast_ref::<String>() {
            Some(text) => text.clone(),
            None => "the CUDA driver could not be started".to_owned(),
        })),
    }
}

/// A device with one stream for all threads: candle's own default is one for each, and nothing orders them.
#[cfg(feature = "cuda")]
fn one_stream(number: usize) -> candle_core::Result<Device> {
    let device = Device::new_cuda_with_stream(number)?;
    if let Device::Cuda(cuda) = &device {
        // SAFETY: events order streams, and there is one.
        unsafe { cuda.disable_event_tracking() };
    }
    Ok(device)
}

/// The libraries that the CUDA build opens at run time, in the versions of the toolkit it was built with.
#[cfg(feature = "cuda")]
fn probe_cuda_libraries(device: DeviceChoice) -> Result<(), DeviceError> {
    const DRIVER: &str = "install the NVIDIA driver, or run with --device cpu";
    const TOOLKIT: &str = "install the CUDA 13 runtime libraries, or add their folder to LD_LIBRARY_PATH \
                           (from PyPI: <site-packages>/nvidia/cu13/lib)";
    const LIBRARIES: [(&str, &str); 4] = [
        ("libcuda.so.1", DRIVER),
        ("libcublas.so.13", TOOLKIT),
        ("libcublasLt.so.13", TOOLKIT),
        ("libcurand.so.10", TOOLKIT),
    ];
    for (library, remedy) in LIBRARIES {
        // SAFETY: loading these libraries runs NVIDIA's own initialisers, which is what opening the device does anyway.
        if let Err(error) = unsafe { libloading::Library::new(library) } {
            return Err(DeviceError::MissingLibrary { device, library, reason: error.to_string(), remedy });
        }
    }
    Ok(())
}

/// An error with its sources: candle's Display alone names no library.
#[cfg(any(feature = "cuda", feature = "metal"))]
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}

#[cfg(not(feature = "metal"))]
fn open_metal() -> Result<Device, DeviceError> {
    Err(DeviceError::NotBuilt("Metal", "build it with --features metal on macOS, or run with --device cpu"))
}

#[cfg(feature = "metal")]
fn open_metal() -> Result<Device, DeviceError> {
    Device::new_metal(0).map_err(|e| DeviceError::Unavailable { device: DeviceChoice::Metal, reason: chain(&e) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_nonsense_is_refused() {
        for name in ["auto", "cpu", "cuda:0", "cuda:7", "metal"] {
            assert_eq!(name.parse::<DeviceChoice>().unwrap().to_string(), name);
        }
        for name in ["gpu", "cuda:", "cuda:x", "cuda:-1", ""] {
            assert!(name.parse::<DeviceChoice>().unwrap_err().to_string().contains("remedy"), "{name}");
        }
    }

    #[test]
    fn auto_always_gives_a_device() {
        open_device(DeviceChoice::Auto).unwrap();
    }
}
