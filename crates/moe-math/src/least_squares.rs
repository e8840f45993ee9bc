//! Linear least squares of least norm, over more samples than fit in memory.

use candle_core::{DType, Device, Result, Tensor};

use crate::symmetric::eigen;

/// Singular values of P below this share of the largest count as 0. With f32 activations, what lies
/// below is rounding.
const CUT: f64 = 1e-6;

/// Σ p pᵀ and Σ q pᵀ over samples (p, q). They determine the T that minimizes Σ ‖q − T p‖².
#[derive(Debug)]
pub struct LeastSquares {
    /// `[inputs, inputs]`
    gram: Tensor,
    /// `[outputs, inputs]`
    cross: Tensor,
}

impl LeastSquares {
    /// Starts without samples.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub fn new(inputs: usize, outputs: usize) -> Result<Self> {
        Ok(Self { gram: f64_zeros(inputs, inputs)?, cross: f64_zeros(outputs, inputs)? })
    }

    /// Adds samples: `p` is `[samples, inputs]`, `q` is `[samples, outputs]`. Both have one dtype
    /// and are on one device.
    ///
    /// # Errors
    /// If the device fails.
    pub fn add(&mut self, p: &Tensor, q: &Tensor) -> Result<()> {
        self.gram = (&self.gram + f64_on_cpu(&p.t()?.matmul(p)?)?)?;
        self.cross = (&self.cross + f64_on_cpu(&q.t()?.matmul(p)?)?)?;
        Ok(())
    }

    /// T = Q P⁺ of least norm, `[outputs, inputs]` row by row. With the eigenvectors V and
    /// eigenvalues λ of P Pᵀ it is Q Pᵀ V λ⁺ Vᵀ. λ below 1e-12 of the largest (singular values of P
    /// below 1e-6) count as 0. The relative error is about 1e-16 · κ(P)², at most 1e-4.
    ///
    /// # Errors
    /// If the eigenvalues can't be found.
    pub fn solve(&self) -> Result<Vec<f64>> {
        let n = self.gram.dim(0)?;
        let found = eigen(&self.gram.flatten_all()?.to_vec1::<f64>()?, n)?;
        let least = CUT * CUT * found.values.first().copied().unwrap_or(0.0);
        let kept = found.values.iter().take_while(|value| **value > least && **value > 0.0).count();
        let v = Tensor::from_slice(&found.vectors[..kept * n], (kept, n), &Device::Cpu)?;
        let inverse: Vec<f64> = found.values[..kept].iter().map(|value| 1.0 / value).collect();
        let inverse = Tensor::from_vec(inverse, (1, kept), &Device::Cpu)?;
        self.cross.matmul(&v.t()?)?.broadcast_mul(&inverse)?.matmul(&v)?.flatten_all()?.to_vec1()
    }
}

pub(crate) fn f64_zeros(rows: usize, columns: usize) -> Result<Tensor> {
    Tensor::zeros((rows, columns), DType::F64, &Device::Cpu)
}

pub(crate) fn f64_on_cpu(t: &Tensor) -> Result<Tensor> {
    t.to_device(&Device::Cpu)?.to_dtype(DType::F64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_of_zero_give_zero() {
        let mut squares = LeastSquares::new(3, 2).unwrap();
        squares
            .add(
                &Tensor::zeros((4, 3), DType::F64, &Device::Cpu).unwrap(),
                &Tensor::ones((4, 2), DType::F64, &Device::Cpu).unwrap(),
            )
            .unwrap();
        assert_eq!(squares.solve().unwrap(), [0.0; 6]);
    }
}
