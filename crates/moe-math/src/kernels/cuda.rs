//! Starts kernels on a CUDA device, on candle's stream and in candle's memory.

use std::collections::VecDeque;
use std::ffi::c_void;
use std::sync::{Mutex, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::cublas::result::gemm_ex;
use candle_core::cuda_backend::cudarc::cublas::sys::{
    cublasComputeType_t, cublasGemmAlgo_t, cublasOperation_t, cudaDataType,
};
use candle_core::cuda_backend::cudarc::driver::result::memcpy_htod_async;
use candle_core::cuda_backend::cudarc::driver::{
    CudaEvent, CudaStream, DevicePtr, DevicePtrMut, DeviceRepr, LaunchConfig, PinnedHostSlice,
    PushKernelArg, SyncOnDrop,
};
use candle_core::cuda_backend::{CudaDType, WrapErr};
use candle_core::{CudaDevice, CudaStorage, DType, Layout, Result};
use half::bf16;

use super::{Arguments, Geometry, int, span};

/// The PTX that `build.rs` compiled from each source.
fn ptx(source: &str) -> &'static str {
    match source {
        "cholesky" => include_str!(concat!(env!("OUT_DIR"), "/cholesky.ptx")),
        "mix" => include_str!(concat!(env!("OUT_DIR"), "/mix.ptx")),
        "round" => include_str!(concat!(env!("OUT_DIR"), "/round.ptx")),
        _ => unreachable!("no kernels in {source}.cu"),
    }
}

/// Arguments that a kernel takes by value.
#[repr(transparent)]
struct ByValue<A>(A);

// SAFETY: `Arguments` are structures of numbers and pointers that C declares in the same way.
unsafe impl<A: Arguments> DeviceRepr for ByValue<A> {}

/// Queues the kernel of `arguments`.
pub(super) fn launch<A: Arguments>(device: &CudaDevice, arguments: A) -> Result<()> {
    let Geometry { blocks: [x, y], threads } = arguments.geometry();
    if x * y == 0 {
        return Ok(());
    }
    let size = |n: usize| {
        u32::try_from(n).map_err(|_| candle_core::Error::msg("a kernel with too many blocks"))
    };
    let shape = LaunchConfig {
        grid_dim: (size(x)?, size(y)?, 1),
        block_dim: (size(threads)?, 1, 1),
        shared_mem_bytes: 0,
    };
    let function = device.get_or_load_custom_func(arguments.kernel(), A::SOURCE, ptx(A::SOURCE))?;
    let arguments = ByValue(arguments);
    let mut launch = function.builder();
    launch.arg(&arguments);
    // SAFETY: `Arguments` promises that the kernel takes this structure, and that its pointers are
    // valid for what it does.
    unsafe { launch.launch(shape) }.w()?;
    Ok(())
}

/// The address of the elements of a contiguous tensor. Keep the guard until the kernel that reads
/// them is queued.
pub(super) fn read<'a, T: CudaDType + DeviceRepr + 'a>(
    storage: &'a CudaStorage,
    layout: &Layout,
    stream: &'a CudaStream,
) -> Result<(*const T, SyncOnDrop<'a>)> {
    let start = span(layout)?.start;
    let (address, used) = storage.as_cuda_slice::<T>()?.device_ptr(stream);
    Ok((((address as usize) + start * size_of::<T>()) as *const T, used))
}

/// Like `read`, for writing.
pub(super) fn write<'a>(
    storage: &'a mut CudaStorage,
    layout: &Layout,
    stream: &'a CudaStream,
) -> Result<(*mut f32, SyncOnDrop<'a>)> {
    let start = span(layout)?.start;
    let (address, used) = storage.as_cuda_slice_mut::<f32>()?.device_ptr_mut(stream);
    Ok((((address as usize) + start * size_of::<f32>()) as *mut f32, used))
}

/// Elements of a tensor in f32 or bf16.
#[derive(Clone, Copy)]
pub(super) struct Floats {
    pub address: *const c_void,
    /// cuBLAS's name for their type.
    pub kind: cudaDataType,
}

/// Like [`read`], for a tensor in f32 or bf16.
pub(super) fn read_floats<'a>(
    storage: &'a CudaStorage,
    layout: &Layout,
    stream: &'a CudaStream,
) -> Result<(Floats, SyncOnDrop<'a>)> {
    Ok(match storage.dtype() {
        DType::BF16 => {
            let (address, used) = read::<bf16>(storage, layout, stream)?;
            (Floats { address: address.cast(), kind: cudaDataType::CUDA_R_16BF }, used)
        }
        _ => {
            let (address, used) = read::<f32>(storage, layout, stream)?;
            (Floats { address: address.cast(), kind: cudaDataType::CUDA_R_32F }, used)
        }
    })
}

/// Queues `sum` += Xᵀ X for `x` with `tokens` rows of width `size`, with products and sums in f32.
pub(super) fn add_gram(
    device: &CudaDevice,
    sum: *mut f32,
    Floats { address: x, kind }: Floats,
    (tokens, size): (usize, usize),
) -> Result<()> {
    if tokens * size == 0 {
        return Ok(());
    }
    device.cuda_stream().context().bind_to_thread().w()?;
    let (one, tokens, size) = (1f32, int(tokens), int(size));
    let (one, blas) = (std::ptr::from_ref(&one).cast(), device.cublas_handle());
    // cuBLAS takes a row-major matrix for its column-major transpose; the sum is symmetric.
    let [plain, turned] = [cublasOperation_t::CUBLAS_OP_N, cublasOperation_t::CUBLAS_OP_T];
    let of_sum = cudaDataType::CUDA_R_32F;
    let compute = cublasComputeType_t::CUBLAS_COMPUTE_32F;
    let way = cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT;
    // SAFETY: `x` holds tokens × size elements and `sum` size × size. Both are on this device, and
    // their owners keep them until this is queued.
    let queued = unsafe {
        gemm_ex(
            *blas.handle(),
            plain,
            turned,
            size,
            size,
            tokens,
            one,
            x,
            kind,
            size,
            x,
            kind,
            size,
            one,
            sum.cast(),
            of_sum,
            size,
            compute,
            way,
        )
    };
    queued.map_err(candle_core::Error::wrap)
}

/// Page-locked memory from which bytes are copied to a device, and the event that marks the copy's
/// end.
struct Staging {
    buffer: PinnedHostSlice<u8>,
    done: CudaEvent,
}

/// Bytes of a [`Staging`]. There are two: while a device copies from one, the host fills the other.
const STAGING_BYTES: usize = 32 << 20;

/// Buffers of each device to which something was copied.
static STAGED: Mutex<Vec<(usize, VecDeque<Staging>)>> = Mutex::new(Vec::new());

/// Queues a copy of `bytes` to `address`, which must have room for them. The host may free `bytes`
/// at once.
pub(super) fn upload(device: &CudaDevice, bytes: &[u8], address: *const c_void) -> Result<()> {
    let stream = device.cuda_stream();
    let context = stream.context();
    let mut staged = STAGED.lock().unwrap_or_else(PoisonError::into_inner);
    let number = context.ordinal();
    let place = staged.iter().position(|(of, _)| *of == number).unwrap_or_else(|| {
        staged.push((number, VecDeque::new()));
        staged.len() - 1
    });
    let buffers = &mut staged[place].1;
    while buffers.len() < 2 {
        // SAFETY: any bytes are valid values, and none is read before it is written.
        let buffer = unsafe { context.alloc_pinned::<u8>(STAGING_BYTES) }.w()?;
        buffers.push_back(Staging { buffer, done: context.new_event(None).w()? });
    }
    for (index, chunk) in bytes.chunks(STAGING_BYTES).enumerate() {
        buffers.rotate_left(1);
        let Staging { buffer, done } = &mut buffers[0];
        done.synchronize().w()?;
        let filled = &mut buffer.as_mut_slice().w()?[..chunk.len()];
        filled.copy_from_slice(chunk);
        let to = address as u64 + (index * STAGING_BYTES) as u64;
        // SAFETY: the caller promises room at `address`; the buffer is neither freed nor written
        // before `done`.
        unsafe { memcpy_htod_async(to, filled, stream.cu_stream()) }.w()?;
        done.record(&stream).w()?;
    }
    Ok(())
}
