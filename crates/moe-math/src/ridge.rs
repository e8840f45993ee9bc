//! A linear map fitted to samples and shrunk towards a known one.

use candle_core::{Device, Error, Result, Tensor};
use faer::prelude::Solve;
use faer::{Mat, MatRef, Side};

use crate::least_squares::{f64_on_cpu, f64_zeros};

/// Σ h hᵀ, Σ y hᵀ and Σ ‖y‖² of samples (h, y). They determine the W that minimizes Σ ‖y − W h‖² +
/// λ ‖W − W₀‖², and the error of any W.
#[derive(Debug)]
pub struct Ridge {
    /// `[inputs, inputs]`
    gram: Tensor,
    /// `[outputs, inputs]`
    cross: Tensor,
    /// Σ ‖y‖²
    energy: f64,
}

impl Ridge {
    /// Starts without samples.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub fn new(inputs: usize, outputs: usize) -> Result<Self> {
        let gram = f64_zeros(inputs, inputs)?;
        Ok(Self { gram, cross: f64_zeros(outputs, inputs)?, energy: 0.0 })
    }

    /// Adds samples: `h` is `[samples, inputs]`, `y` is `[samples, outputs]`. Products are in their
    /// dtype, and their sums in f64, so pass a few thousand samples at once.
    ///
    /// # Errors
    /// If the device fails.
    pub fn add(&mut self, h: &Tensor, y: &Tensor) -> Result<()> {
        self.gram = (&self.gram + f64_on_cpu(&h.t()?.matmul(h)?)?)?;
        self.cross = (&self.cross + f64_on_cpu(&y.t()?.matmul(h)?)?)?;
        self.energy += f64_on_cpu(y)?.sqr()?.sum_all()?.to_scalar::<f64>()?;
        Ok(())
    }

    /// Mean over the diagonal of Σ h hᵀ; λ is a multiple of it.
    ///
    /// # Errors
    /// If the device fails.
    pub fn mean_diagonal(&self) -> Result<f64> {
        let n = self.gram.dim(0)?;
        let gram = self.gram.flatten_all()?.to_vec1::<f64>()?;
        Ok((0..n).map(|i| gram[i * n + i]).sum::<f64>() / n.max(1) as f64)
    }

    /// W = (Σ y hᵀ + λ W₀) (Σ h hᵀ + λ I)⁻¹, `[outputs, inputs]` in f64. λ is `relative` times the
    /// mean diagonal; `start` is W₀, of the same shape and dtype. Runs on one thread, so that the
    /// result doesn't depend on the number of threads.
    ///
    /// # Errors
    /// If Σ h hᵀ + λ I is singular or not finite.
    pub fn solve(&self, relative: f64, start: &Tensor) -> Result<Tensor> {
        let (outputs, inputs) = self.cross.dims2()?;
        let lambda = relative * self.mean_diagonal()?;
        let gram = self.gram.flatten_all()?.to_vec1::<f64>()?;
        let right = (&self.cross + (start * lambda)?)?.flatten_all()?.to_vec1::<f64>()?;
        let gram = MatRef::from_row_major_slice(&gram, inputs, inputs);
        let damped =
            Mat::from_fn(inputs, inputs, |i, j| gram[(i, j)] + if i == j { lambda } else { 0.0 });
        let factor = damped.llt(Side::Lower).map_err(|_| {
            Error::Msg(format!(
                "with λ = {relative} of its mean diagonal the Gram matrix is singular"
            ))
        })?;
        // Columns of the right-hand side are rows of W.
        let mut solved =
            MatRef::from_row_major_slice(&right, outputs, inputs).transpose().to_owned();
        factor.solve_in_place(&mut solved);
        let values = (0..outputs)
            .flat_map(|o| (0..inputs).map(move |i| (o, i)))
            .map(|(o, i)| solved[(i, o)]);
        Tensor::from_vec(values.collect(), (outputs, inputs), &Device::Cpu)
    }

    /// √(Σ ‖y − W h‖² / Σ ‖y‖²), with `w` as `[outputs, inputs]` in f64; 0 without samples.
    ///
    /// # Errors
    /// If the device fails.
    pub fn relative_error(&self, w: &Tensor) -> Result<f64> {
        let error = self.energy - 2.0 * inner_product(w, &self.cross)?
            + inner_product(&w.matmul(&self.gram)?, w)?;
        Ok(if self.energy > 0.0 { (error.max(0.0) / self.energy).sqrt() } else { 0.0 })
    }
}

fn inner_product(a: &Tensor, b: &Tensor) -> Result<f64> {
    (a * b)?.sum_all()?.to_scalar()
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;
    use crate::sampling::{generator, normal};

    fn random(rows: usize, columns: usize, stream: u64) -> Tensor {
        let values = normal(rows * columns, 1.0, &mut generator(5, stream));
        Tensor::from_vec(values, (rows, columns), &Device::Cpu)
            .unwrap()
            .to_dtype(DType::F64)
            .unwrap()
    }

    fn largest(t: Result<Tensor>) -> f64 {
        t.unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
    }

    /// The gradient of the objective vanishes at the solution, and the errors match the samples.
    #[test]
    fn the_solution_is_a_minimum() {
        let (h, y, start) = (random(40, 6, 0), random(40, 3, 1), random(3, 6, 2));
        let mut ridge = Ridge::new(6, 3).unwrap();
        for part in [0, 25] {
            let rows = |t: &Tensor| t.narrow(0, part, if part == 0 { 25 } else { 15 }).unwrap();
            ridge.add(&rows(&h), &rows(&y)).unwrap();
        }
        for relative in [0.0, 0.1, 10.0] {
            let w = ridge.solve(relative, &start).unwrap();
            let left = (&y - h.matmul(&w.t().unwrap()).unwrap()).unwrap();
            let lambda = relative * ridge.mean_diagonal().unwrap();
            let gradient =
                left.t().unwrap().matmul(&h).unwrap() - ((&w - &start).unwrap() * lambda).unwrap();
            assert!(largest(gradient) < 1e-10);
            let square =
                |t: &Tensor| t.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap();
            let expected = (square(&left) / square(&y)).sqrt();
            assert!((ridge.relative_error(&w).unwrap() - expected).abs() < 1e-12);
        }
        assert!(largest(ridge.solve(1e9, &start).unwrap() - &start) < 1e-6, "a great λ gives W₀");
    }

    #[test]
    fn a_singular_system_is_an_error() {
        let mut ridge = Ridge::new(3, 1).unwrap();
        ridge
            .add(&Tensor::zeros((4, 3), DType::F64, &Device::Cpu).unwrap(), &random(4, 1, 0))
            .unwrap();
        let start = Tensor::zeros((1, 3), DType::F64, &Device::Cpu).unwrap();
        assert!(ridge.solve(0.0, &start).is_err());
        assert!(ridge.solve(f64::NAN, &start).is_err());
    }
}
