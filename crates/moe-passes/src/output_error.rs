//! The error of a converted block's output against the original's.

use candle_core::{DType, Result, Tensor};

/// Sums over the tokens that were compared.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct OutputError {
    /// Σ ‖y − y'‖²
    error: f64,
    /// Σ ‖y‖²
    all: f64,
}

impl OutputError {
    /// Adds the outputs of the original block and the converted one for further tokens, `[tokens,
    /// hidden]` each.
    ///
    /// # Errors
    /// Errors of the device.
    pub fn add(&mut self, original: &Tensor, converted: &Tensor) -> Result<()> {
        self.error += square_norm(&(original - converted)?)?;
        self.all += square_norm(original)?;
        Ok(())
    }

    /// √(Σ ‖y − y'‖² / Σ ‖y‖²); None where the original's outputs are all zero.
    pub fn relative(&self) -> Option<f64> {
        (self.all > 0.0).then(|| (self.error / self.all).sqrt())
    }
}

fn square_norm(t: &Tensor) -> Result<f64> {
    t.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar()
}
