use super::*;

#[test]
fn names_round_trip_and_nonsense_is_refused() {
    for name in ["auto", "cpu", "cuda:0", "cuda:7", "metal"] {
        assert_eq!(name.parse::<DeviceChoice>().unwrap().to_string(), name);
    }
    assert_eq!("CUDA:1".parse(), Ok(DeviceChoice::Cuda(1)));
    for name in ["gpu", "cuda:", "cuda:x", "cuda:-1", ""] {
        let error = name.parse::<DeviceChoice>().unwrap_err();
        assert!(error.remedy().starts_with("give auto, cpu"), "{name}");
    }
}

#[test]
fn auto_always_gives_a_device() {
    open_device(DeviceChoice::Auto).unwrap();
}

/// A machine whose GPUs are really the CPU, with the results of opening them and running a kernel.
struct Pretended {
    cuda: Result<(), DeviceError>,
    metal: Result<(), DeviceError>,
    launch: Result<(), &'static str>,
}

impl Devices for Pretended {
    fn open_cuda(&self, number: usize) -> Result<Device, DeviceError> {
        assert_eq!(number, 0);
        self.cuda.clone().map(|()| Device::Cpu)
    }

    fn open_metal(&self) -> Result<Device, DeviceError> {
        self.metal.clone().map(|()| Device::Cpu)
    }

    fn launch(&self, device: &Device) -> Result<(), String> {
        self.launch.map_err(str::to_owned)?;
        Machine.launch(device)
    }
}

const NOT_BUILT: DeviceError = DeviceError::NotBuilt("CUDA", "build it");

fn no_driver() -> DeviceError {
    let (library, reason) = ("libcuda.so.1", "no such file".to_owned());
    DeviceError::MissingLibrary {
        device: DeviceChoice::Cuda(0),
        library,
        reason,
        remedy: "install it",
    }
}

#[test]
fn auto_falls_back_to_the_cpu_and_says_why() {
    let note = |cuda, metal, launch| {
        find(DeviceChoice::Auto, &Pretended { cuda, metal, launch }).unwrap().note
    };
    assert_eq!(note(Ok(()), Err(NOT_BUILT), Ok(())), None, "a GPU that works");
    assert_eq!(note(Err(NOT_BUILT), Ok(()), Ok(())), None, "Apple's, which works");
    assert_eq!(note(Err(NOT_BUILT), Err(NOT_BUILT), Ok(())), None, "a build for CPUs");
    let no_binary = "DriverError(CUDA_ERROR_NO_BINARY_FOR_GPU, ...)";
    let old_driver = ["cuda:0 can't run a kernel", "update the NVIDIA driver"];
    for (cuda, launch, words) in [
        (Err(no_driver()), Ok(()), ["libcuda.so.1", "install it"]),
        (Ok(()), Err(no_binary), ["NO_BINARY", "compute capability 8.0"]),
        (Ok(()), Err("CUDA_ERROR_UNSUPPORTED_PTX_VERSION"), old_driver),
    ] {
        let note = note(cuda, Err(NOT_BUILT), launch).expect("a note");
        assert!(note.starts_with("computing on the CPU: ") && note.contains("remedy"), "{note}");
        assert!(words.iter().all(|word| note.contains(word)), "{note}");
    }
}

#[test]
fn a_device_that_was_asked_for_fails_with_a_remedy() {
    let error = |cuda, launch| {
        let machine = Pretended { cuda, metal: Err(NOT_BUILT), launch };
        let error = find(DeviceChoice::Cuda(0), &machine).unwrap_err();
        format!("{error}, remedy: {}", error.remedy())
    };
    for (error, words) in [
        (error(Err(no_driver()), Ok(())), ["libcuda.so.1", "remedy: install it"]),
        (
            error(Ok(()), Err("CUDA_ERROR_OUT_OF_MEMORY")),
            ["can't run a kernel", "remedy: free the GPU's memory"],
        ),
        (error(Ok(()), Err("CUDA_ERROR_UNKNOWN")), ["UNKNOWN", "remedy: check nvidia-smi"]),
    ] {
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }
    let works = Pretended { cuda: Ok(()), metal: Err(NOT_BUILT), launch: Ok(()) };
    assert!(find(DeviceChoice::Cuda(0), &works).unwrap().note.is_none());
}

#[test]
fn a_panic_of_a_driver_becomes_a_reason() {
    let formatted =
        |symbol: &str| quietly(|| -> candle_core::Result<()> { panic!("no symbol {symbol}") });
    assert_eq!(formatted("cuInit").unwrap_err(), "no symbol cuInit");
    let plain = quietly(|| -> candle_core::Result<()> { panic!("no driver") });
    assert_eq!(plain.unwrap_err(), "no driver");
}
