//! Uploads weights to a device.

use candle_core::{CpuStorage, DType, Device, InplaceOp1, Layout, Result, Tensor, bail};

use super::span;

/// Makes a tensor from the `bytes` of its elements, in f32, f16 or bf16. On CUDA the bytes are
/// copied through page-locked buffers: for a copy from pageable memory, the host would wait for
/// everything queued before.
///
/// # Errors
/// For a shape of another size, or if the device fails.
pub(crate) fn upload(
    bytes: &[u8],
    dtype: DType,
    shape: &[usize],
    device: &Device,
) -> Result<Tensor> {
    let tensor = Tensor::zeros(shape, dtype, device)?;
    if bytes.len() != tensor.elem_count() * dtype.size_in_bytes() {
        bail!("{} bytes for {dtype:?} {shape:?}", bytes.len());
    }
    tensor.inplace_op1(&Upload(bytes))?;
    Ok(tensor)
}

struct Upload<'a>(&'a [u8]);

impl InplaceOp1 for Upload<'_> {
    fn name(&self) -> &'static str {
        "upload"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let place = span(layout)?;
        let bytes: &mut [u8] = match storage {
            CpuStorage::F32(values) => bytemuck::cast_slice_mut(&mut values[place]),
            CpuStorage::F16(values) => bytemuck::cast_slice_mut(&mut values[place]),
            CpuStorage::BF16(values) => bytemuck::cast_slice_mut(&mut values[place]),
            _ => bail!("no weight encoding"),
        };
        bytes.copy_from_slice(self.0);
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &mut candle_core::CudaStorage, layout: &Layout) -> Result<()> {
        use candle_core::backend::BackendStorage as _;
        use half::{bf16, f16};

        use super::cuda::{read, upload};
        let device = storage.device.clone();
        let stream = device.cuda_stream();
        match storage.dtype() {
            DType::F32 => upload(&device, self.0, read::<f32>(storage, layout, &stream)?.0.cast()),
            DType::F16 => upload(&device, self.0, read::<f16>(storage, layout, &stream)?.0.cast()),
            DType::BF16 => {
                upload(&device, self.0, read::<bf16>(storage, layout, &stream)?.0.cast())
            }
            _ => bail!("no weight encoding"),
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    #[test]
    fn bytes_become_their_values() {
        let values: Vec<bf16> = (0..6).map(|value| bf16::from_f32(value as f32)).collect();
        let tensor =
            upload(bytemuck::cast_slice(&values), DType::BF16, &[2, 3], &Device::Cpu).unwrap();
        assert_eq!(tensor.to_vec2::<bf16>().unwrap().concat(), values);
        assert!(upload(&[0; 4], DType::BF16, &[3], &Device::Cpu).is_err());
        assert!(upload(&[0; 8], DType::F64, &[1], &Device::Cpu).is_err());
    }
}
