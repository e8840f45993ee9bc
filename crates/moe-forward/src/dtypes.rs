//! Converts element types to candle's.

use candle_core::DType;
use moe_checkpoint::{Dtype, Error, Kind, Result};
use moe_model::Weight;

/// Returns candle's type for floats, including 8-bit floats; None for other element types.
pub fn float_dtype(dtype: Dtype) -> Option<DType> {
    match dtype {
        Dtype::F32 => Some(DType::F32),
        Dtype::F16 => Some(DType::F16),
        Dtype::BF16 => Some(DType::BF16),
        Dtype::F8_E4M3 => Some(DType::F8E4M3),
        _ => None,
    }
}

/// Returns candle's type of a plain weight, which new weights like it can be made in.
///
/// # Errors
/// [`Kind::Unsupported`] for anything but F32, F16 and BF16.
pub fn candle_dtype(weight: &Weight) -> Result<DType> {
    match weight.dtype() {
        Dtype::F32 => Ok(DType::F32),
        Dtype::F16 => Ok(DType::F16),
        Dtype::BF16 => Ok(DType::BF16),
        other => {
            Err(Error::new(Kind::Unsupported, format!("no new weights can be made in {other}"))
                .tensor(weight.name())
                .remedy("start from the unquantized checkpoint"))
        }
    }
}
