//! Starting kernels on a CUDA device, on candle's stream and in candle's memory.

use candle_core::cuda_backend::cudarc::cublas::result::gemm_ex;
use candle_core::cuda_backend::cudarc::cublas::sys::{
    cublasComputeType_t, cublasGemmAlgo_t, cublasOperation_t, cudaDataType,
};
use candle_core::cuda_backend::cudarc::driver::{
    CudaStream, DevicePtr, DevicePtrMut, DeviceRepr, LaunchConfig, PushKernelArg, SyncOnDrop,
};
use candle_core::cuda_backend::{CudaDType, WrapErr};
use candle_core::{CudaDevice, CudaStorage, Layout, Result, bail};

use super::{Arguments, Geometry, int};

/// What `build.rs` compiled each source to.
fn ptx(source: &str) -> &'static str {
    match source {
        "cholesky" => include_str!(concat!(env!("OUT_DIR"), "/cholesky.ptx")),
        "mix" => include_str!(concat!(env!("OUT_DIR"), "/mix.ptx")),
        "round" => include_str!(concat!(env!("OUT_DIR"), "/round.ptx")),
        _ => unreachable!("no kernels in {source}.cu"),
    }
}

/// Kernels take their arguments by value.
#[repr(transparent)]
struct ByValue<A>(A);

// SAFETY: `Arguments` are structures of numbers and pointers that C declares alike.
unsafe impl<A: Arguments> DeviceRepr for ByValue<A> {}

/// Queues the kernel of `arguments`.
pub(super) fn launch<A: Arguments>(device: &CudaDevice, arguments: A) -> Result<()> {
    let Geometry { blocks: [x, y], threads } = arguments.geometry();
    if x * y == 0 {
        return Ok(());
    }
    let size = |n: usize| u32::try_from(n).map_err(|_| candle_core::Error::msg("a kernel with too many blocks"));
    let shape =
        LaunchConfig { grid_dim: (size(x)?, size(y)?, 1), block_dim: (size(threads)?, 1, 1), shared_mem_bytes: 0 };
    let function = device.get_or_load_custom_func(arguments.kernel(), A::SOURCE, ptx(A::SOURCE))?;
    let arguments = ByValue(arguments);
    let mut launch = function.builder();
    launch.arg(&arguments);
    // SAFETY: `Arguments` promises that the kernel takes this structure, whose pointers are good for what it does.
    unsafe { launch.launch(shape) }.w()?;
    Ok(())
}

/// Where the elements of a contiguous tensor lie; to be kept until the kernel that reads them is queued.
pub(super) fn read<'a, T: CudaDType + DeviceRepr + 'a>(
    storage: &'a CudaStorage,
    layout: &Layout,
    stream: &'a CudaStream,
) -> Result<(*const T, SyncOnDrop<'a>)> {
    let Some((start, _)) = layout.contiguous_offsets() else { bail!("a kernel takes contiguous tensors") };
    let (address, used) = storage.as_cuda_slice::<T>()?.device_ptr(stream);
    Ok((((address as usize) + start * size_of::<T>()) as *const T, used))
}

/// The same to write to.
pub(super) fn write<'a>(
    storage: &'a mut CudaStorage,
    layout: &Layout,
    stream: &'a CudaStream,
) -> Result<(*mut f32, SyncOnDrop<'a>)> {
    let Some((start, _)) = layout.contiguous_offsets() else { bail!("a kernel takes contiguous tensors") };
    let (address, used) = storage.as_cuda_slice_mut::<f32>()?.device_ptr_mut(stream);
    Ok((((address as usize) + start * size_of::<f32>()) as *mut f32, used))
}

/// An element type of matrices that cuBLAS multiplies.
pub(super) trait Element {
    const TYPE: cudaDataType;
}

impl Element for f32 {
    const TYPE: cudaDataType = cudaDataType::CUDA_R_32F;
}

impl Element for half::bf16 {
    const TYPE: cudaDataType = cudaDataType::CUDA_R_16BF;
}

/// Queues `sum` += Xᵀ X for `x` of `tokens` rows of `size`, with products and sums in f32.
pub(super) fn add_gram<T: Element>(
    device: &CudaDevice,
    sum: *mut f32,
    x: *const T,
    (tokens, size): (usize, usize),
) -> Result<()> {
    if tokens * size == 0 {
        return Ok(());
    }
    device.cuda_stream().context().bind_to_thread().w()?;
    let (one, tokens, size) = (1f32, int(tokens), int(size));
    let (one, blas) = (std::ptr::from_ref(&one).cast(), device.cublas_handle());
    // What lies by rows, cuBLAS takes for the transpose by columns; the sum is symmetric.
    let [plain, turned] = [cublasOperation_t::CUBLAS_OP_N, cublasOperation_t::CUBLAS_OP_T];
    let (kind, of_sum, x) = (T::TYPE, <f32 as Element>::TYPE, x.cast());
    let compute = cublasComputeType_t::CUBLAS_COMPUTE_32F;
    let way = cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT;
    // SAFETY: `x` holds tokens × size elements and `sum` size × size, both on this device and, until this is queued, theirs.
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
