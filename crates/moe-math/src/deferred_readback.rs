//! Small results that stay on a device until they are needed.

use candle_core::{DType, Result, Tensor};

/// Tensors that are read back together, so that the host waits for the device only once. Each comes
/// with a value that is already known about it.
pub struct DeferredReadback<T> {
    known: Vec<T>,
    tensors: Vec<Tensor>,
}

impl<T> Default for DeferredReadback<T> {
    fn default() -> Self {
        Self { known: Vec::new(), tensors: Vec::new() }
    }
}

impl<T> DeferredReadback<T> {
    /// Queues `tensor` to be read, with the value `known` that belongs to it.
    pub fn push(&mut self, known: T, tensor: Tensor) {
        self.known.push(known);
        self.tensors.push(tensor);
    }

    /// The numbers of all tensors since the last call, in the order in which they were added.
    ///
    /// # Errors
    /// If the device fails.
    pub fn take(&mut self) -> Result<Vec<(T, Vec<f32>)>> {
        let (known, tensors) = (std::mem::take(&mut self.known), std::mem::take(&mut self.tensors));
        if tensors.is_empty() {
            return Ok(Vec::new());
        }
        let sizes: Vec<usize> = tensors.iter().map(Tensor::elem_count).collect();
        let flat = tensors
            .iter()
            .map(|t| t.to_dtype(DType::F32)?.flatten_all())
            .collect::<Result<Vec<_>>>()?;
        let all = Tensor::cat(&flat, 0)?.to_vec1::<f32>()?;
        let mut rest = all.as_slice();
        let parts = sizes.into_iter().map(|size| {
            let (part, left) = rest.split_at(size);
            rest = left;
            part.to_vec()
        });
        Ok(known.into_iter().zip(parts).collect())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn parts_come_back_in_order_and_once() {
        let mut readback = DeferredReadback::default();
        assert!(readback.take().unwrap().is_empty());
        readback
            .push('a', Tensor::new(&[[1f32, 2.0], [3.0, 4.0]], &Device::Cpu).unwrap().t().unwrap());
        readback.push('b', Tensor::new(5f64, &Device::Cpu).unwrap());
        assert_eq!(readback.take().unwrap(), [('a', vec![1.0, 3.0, 2.0, 4.0]), ('b', vec![5.0])]);
        assert!(readback.take().unwrap().is_empty());
    }
}
