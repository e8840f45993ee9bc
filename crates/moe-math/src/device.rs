//! Choosing a compute device. If it can't be used, the error says why; nothing panics.

use std::fmt;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device};

use crate::meter::{Meter, Work};

/// The device that the user asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first GPU, if this build and this machine have one; otherwise the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The CUDA device with this number.
    Cuda(usize),
    /// Apple's GPU.
    Metal,
}

/// The reason why a device can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// Not the name of a device.
    #[error("unknown device {0:?}")]
    Unknown(String),
    /// The program was built without this backend; the second text is the remedy.
    #[error("this moe-convert was built without {0}")]
    NotBuilt(&'static str, &'static str),
    /// A library that the backend needs is not on this machine.
    #[error("{device} needs {library}, which can't be loaded here: {reason}")]
    MissingLibrary {
        /// The device that was asked for.
        device: DeviceChoice,
        /// Name of the shared library.
        library: &'static str,
        /// The loader's message.
        reason: String,
        /// The remedy for the user, such as a library to install.
        remedy: &'static str,
    },
    /// The device exists, but can't run this build's kernels.
    #[error("{device} can't run a kernel: {reason}")]
    NoKernel {
        /// The device that was asked for.
        device: DeviceChoice,
        /// The driver's message.
        reason: String,
        /// The remedy for the user.
        remedy: &'static str,
    },
    /// The driver exists, but the device doesn't.
    #[error("{device} can't be opened: {reason}")]
    Unavailable {
        /// The device that was asked for.
        device: DeviceChoice,
        /// The driver's message.
        reason: String,
    },
}

impl DeviceError {
    /// What the user can do.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Unknown(_) => "give auto, cpu, cuda:0 (or another number) or metal",
            Self::NotBuilt(_, remedy)
            | Self::MissingLibrary { remedy, .. }
            | Self::NoKernel { remedy, .. } => remedy,
            Self::Unavailable { .. } => "check nvidia-smi, or run with --device cpu",
        }
    }
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
        let name = text.to_ascii_lowercase();
        match name.as_str() {
            "auto" => Ok(DeviceChoice::Auto),
            "cpu" => Ok(DeviceChoice::Cpu),
            "cuda" => Ok(DeviceChoice::Cuda(0)),
            "metal" => Ok(DeviceChoice::Metal),
            _ => name
                .strip_prefix("cuda:")
                .and_then(|n| n.parse().ok())
                .map(DeviceChoice::Cuda)
                .ok_or_else(|| DeviceError::Unknown(text.to_owned())),
        }
    }
}

/// The dtype that routers are computed in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RouterDtype {
    /// f32, from f32 copies of states and weights.
    #[default]
    F32,
    /// The dtype that the reference implementation of the model's family uses when it runs in the
    /// dtype of the checkpoint.
    Model,
}

impl RouterDtype {
    /// "model" for `RouterDtype::Model`, as records store it; None for f32, which they leave out.
    pub fn other_than_f32(self) -> Option<&'static str> {
        (self == Self::Model).then_some("model")
    }
}

/// A device and the element type that numerics use on it.
#[derive(Debug, Clone)]
pub struct Compute {
    /// The device that tensors are on.
    pub device: Device,
    /// The dtype of matrix products.
    pub dtype: DType,
    /// The dtype of routers.
    pub router_dtype: RouterDtype,
    /// Maximum bytes of GPU memory to use; None for all that is free.
    pub device_memory: Option<u64>,
    /// Measures the time of each stage.
    pub meter: Meter,
}

impl Compute {
    /// f32 on the CPU.
    pub fn cpu() -> Self {
        let router_dtype = RouterDtype::F32;
        Self {
            device: Device::Cpu,
            dtype: DType::F32,
            router_dtype,
            device_memory: None,
            meter: Meter::default(),
        }
    }

    /// Runs `stage`; the meter records its time and `work`.
    pub fn stage<T>(&self, name: &'static str, work: Work, stage: impl FnOnce() -> T) -> T {
        self.meter.stage(name, work, || {
            let result = stage();
            if self.meter.waits {
                // The next stage meets the same failure, and can return it.
                let _ = self.device.synchronize();
            }
            result
        })
    }

    /// Returns the maximum size in bytes of a batch: `on_host` on a CPU. On a GPU it is a third of
    /// the available memory, since results take as much again, and at most the number of elements
    /// that candle's kernels can count.
    pub fn batch_bytes(&self, on_host: usize) -> usize {
        const COUNTABLE: u64 = 64 << 30;
        self.memory().map_or(on_host, |bytes| {
            usize::try_from((bytes / 3).min(COUNTABLE)).unwrap_or(usize::MAX)
        })
    }

    /// Bytes of GPU memory that may be used: what is free, and at most [`Self::device_memory`].
    /// None on a CPU, or if neither is known.
    pub fn memory(&self) -> Option<u64> {
        if self.device.is_cpu() {
            return None;
        }
        let free = free_memory(&self.device);
        self.device_memory.map_or(free, |budget| Some(free.map_or(budget, |free| budget.min(free))))
    }
}

/// Free memory of a GPU in bytes; None if it is unknown.
#[cfg(feature = "cuda")]
fn free_memory(device: &Device) -> Option<u64> {
    let Device::Cuda(cuda) = device else { return None };
    // Until then, freed memory still counts as used.
    device.synchronize().ok()?;
    let (free, _) = cuda.cuda_stream().context().mem_get_info().ok()?;
    Some(free as u64)
}

#[cfg(not(feature = "cuda"))]
fn free_memory(_: &Device) -> Option<u64> {
    None
}

/// Whether `error` or one of its sources says that the device is out of memory.
pub fn is_out_of_memory(error: &(dyn std::error::Error + 'static)) -> bool {
    // CUDA's name for it, and the words of cuBLAS and Metal. candle's errors hold them only as
    // text.
    const SIGNS: [&str; 4] = [
        "CUDA_ERROR_OUT_OF_MEMORY",
        "CUBLAS_STATUS_ALLOC_FAILED",
        "out of memory",
        "Insufficient Memory",
    ];
    let text = error.to_string();
    SIGNS.iter().any(|sign| text.contains(sign)) || error.source().is_some_and(is_out_of_memory)
}

/// A device that has run a kernel.
#[derive(Debug, Clone)]
pub struct FoundDevice {
    /// The device that was opened.
    pub device: Device,
    /// The reason why the CPU is used although this build supports a GPU, for the user to read;
    /// None otherwise.
    pub note: Option<String>,
}

/// Opens the device for `choice`.
///
/// # Errors
/// As for [`find_device`].
pub fn open_device(choice: DeviceChoice) -> Result<Device, DeviceError> {
    find_device(choice).map(|found| found.device)
}

/// Opens the device for `choice`, and runs one of candle's kernels and one of ours on it, since a
/// driver also lists GPUs that can't run this build.
///
/// # Errors
/// [`DeviceError`], but never for [`DeviceChoice::Auto`] or [`DeviceChoice::Cpu`].
pub fn find_device(choice: DeviceChoice) -> Result<FoundDevice, DeviceError> {
    find(choice, &Machine)
}

/// The devices of a machine. Tests implement it with fake ones.
trait Devices {
    fn open_cuda(&self, number: usize) -> Result<Device, DeviceError>;
    fn open_metal(&self) -> Result<Device, DeviceError>;
    /// Runs a kernel; returns the device's message if it can't.
    fn launch(&self, device: &Device) -> Result<(), String>;
}

/// The machine that the program runs on.
struct Machine;

impl Devices for Machine {
    fn open_cuda(&self, number: usize) -> Result<Device, DeviceError> {
        open_cuda(number)
    }

    fn open_metal(&self) -> Result<Device, DeviceError> {
        open_metal()
    }

    fn launch(&self, device: &Device) -> Result<(), String> {
        // cudarc panics on a missing symbol instead of returning an error.
        quietly(|| crate::kernels::launch(device))
    }
}

fn find(choice: DeviceChoice, machine: &dyn Devices) -> Result<FoundDevice, DeviceError> {
    let opened = match choice {
        DeviceChoice::Cpu => Ok(Device::Cpu),
        DeviceChoice::Cuda(number) => tried(choice, machine.open_cuda(number), machine),
        DeviceChoice::Metal => tried(choice, machine.open_metal(), machine),
        DeviceChoice::Auto => return Ok(find_any(machine)),
    };
    opened.map(|device| FoundDevice { device, note: None })
}

/// The first GPU that runs a kernel, or the CPU if there is none.
fn find_any(machine: &dyn Devices) -> FoundDevice {
    let cuda = tried(DeviceChoice::Cuda(0), machine.open_cuda(0), machine);
    let found = cuda.or_else(|cuda| {
        let metal = tried(DeviceChoice::Metal, machine.open_metal(), machine);
        // In a build with both, the note says why CUDA can't be used.
        metal.map_err(|metal| if matches!(cuda, DeviceError::NotBuilt(..)) { metal } else { cuda })
    });
    match found {
        Ok(device) => FoundDevice { device, note: None },
        Err(DeviceError::NotBuilt(..)) => FoundDevice { device: Device::Cpu, note: None },
        Err(error) => {
            let remedy = error.remedy();
            let note = Some(format!("computing on the CPU: {error}\n  remedy: {remedy}"));
            FoundDevice { device: Device::Cpu, note }
        }
    }
}

/// `opened`, if it can run a kernel.
fn tried(
    choice: DeviceChoice,
    opened: Result<Device, DeviceError>,
    machine: &dyn Devices,
) -> Result<Device, DeviceError> {
    let device = opened?;
    match machine.launch(&device) {
        Ok(()) => Ok(device),
        Err(reason) => {
            Err(DeviceError::NoKernel { device: choice, remedy: remedy_for(&reason), reason })
        }
    }
}

/// Advice for a kernel that doesn't run, by CUDA's name in `reason`.
fn remedy_for(reason: &str) -> &'static str {
    const REMEDIES: [(&str, &str); 6] = [
        (
            "UNSUPPORTED_PTX_VERSION",
            "update the NVIDIA driver to 580 or newer, which CUDA 13 needs, or run with --device cpu",
        ),
        ("NO_BINARY_FOR_GPU", TOO_OLD),
        ("INVALID_PTX", TOO_OLD),
        ("INVALID_IMAGE", TOO_OLD),
        (
            "OUT_OF_MEMORY",
            "free the GPU's memory (nvidia-smi lists who has it), or give --device cuda:N for another GPU",
        ),
        (
            "ALLOC_FAILED",
            "free the GPU's memory (nvidia-smi lists who has it), or give --device cuda:N for another GPU",
        ),
    ];
    const TOO_OLD: &str = "this build is for GPUs of compute capability 8.0 and newer (A100, RTX 30, L40, H100): run with --device cpu";
    let found = REMEDIES.iter().find(|(sign, _)| reason.contains(sign));
    found.map_or("check nvidia-smi, or run with --device cpu", |(_, remedy)| remedy)
}

/// Runs `run`; a panic becomes an error and prints nothing.
fn quietly<T>(run: impl FnOnce() -> candle_core::Result<T>) -> Result<T, String> {
    // The hook belongs to the whole process: two threads that replaced and restored it at once
    // could leave the silent one in place.
    static HOOK: Mutex<()> = Mutex::new(());
    let _alone = HOOK.lock().unwrap_or_else(PoisonError::into_inner);
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
    std::panic::set_hook(hook);
    match result {
        Ok(result) => result.map_err(|error| chain(&error)),
        Err(panic) => Err(match (panic.downcast_ref::<String>(), panic.downcast_ref::<&str>()) {
            (Some(text), _) => text.clone(),
            (None, Some(text)) => (*text).to_owned(),
            (None, None) => "the driver could not be started".to_owned(),
        }),
    }
}

#[cfg(not(feature = "cuda"))]
fn open_cuda(_: usize) -> Result<Device, DeviceError> {
    Err(DeviceError::NotBuilt(
        "CUDA",
        "build it with scripts/build-cuda.sh, or run with --device cpu",
    ))
}

#[cfg(feature = "cuda")]
fn open_cuda(number: usize) -> Result<Device, DeviceError> {
    let device = DeviceChoice::Cuda(number);
    probe_cuda_libraries(device)?;
    // cudarc panics on a missing library or symbol instead of returning an error.
    quietly(|| one_stream(number)).map_err(|reason| DeviceError::Unavailable { device, reason })
}

/// Opens a device with one stream for all threads. candle's default is a stream for each thread,
/// and nothing orders them.
#[cfg(feature = "cuda")]
fn one_stream(number: usize) -> candle_core::Result<Device> {
    let device = Device::new_cuda_with_stream(number)?;
    if let Device::Cuda(cuda) = &device {
        // SAFETY: events order streams, and there is only one.
        unsafe { cuda.disable_event_tracking() };
    }
    Ok(device)
}

/// Checks the libraries that the CUDA build opens at run time, in the versions of the toolkit that
/// it was built with.
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
        // SAFETY: loading these libraries runs NVIDIA's own initializers, which is what opening the
        // device does anyway.
        if let Err(error) = unsafe { libloading::Library::new(library) } {
            return Err(DeviceError::MissingLibrary {
                device,
                library,
                reason: error.to_string(),
                remedy,
            });
        }
    }
    Ok(())
}

/// An error with its sources, since candle's Display alone doesn't name the library.
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
    Err(DeviceError::NotBuilt(
        "Metal",
        "build it with --features metal on macOS, or run with --device cpu",
    ))
}

#[cfg(feature = "metal")]
fn open_metal() -> Result<Device, DeviceError> {
    Device::new_metal(0)
        .map_err(|e| DeviceError::Unavailable { device: DeviceChoice::Metal, reason: chain(&e) })
}

#[cfg(test)]
mod tests;
