//! How far what a converted block gives is from what the original gave.

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
    /// Adds tokens: what the original block gave for them and what the converted one gives,
    /// `[tokens, hidden]` each.
    ///
    /// # Errors
    /// What the device returns.
    pub fn add(&mut self, original: &Tensor, converted: &Tensor) -> Result<()> {
        let square = |t: &Tensor| t.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>();
        self.error += square(&(original - converted)?)?;
        self.all += square(original)?;
        Ok(())
    }

    /// √(Σ ‖y − y'‖² / Σ ‖y‖²); none where the original gave nothing.
    pub fn relative(&self) -> Option<f64> {
        (self.all > 0.0).then(|| (self.error / self.all).sqrt())
    }
}
