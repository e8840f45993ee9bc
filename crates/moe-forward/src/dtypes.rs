//! candle's names of element types.

use candle_core::DType;
use moe_checkpoint::{Dtype, Error, Kind, Result};
use moe_model::Weight;

/// candle's name of an element type of floats, also of those that are codes.
pub fn float_dtype(dtype: Dtype) -> Option<DType> {
    match dtype {
        Dtype::F32 => Some(DType::F32),
        Dtype::F16 => Some(DType::F16),
        Dtype::BF16 => Some(DType::BF16),
        Dtype::F8_E4M3 => Some(DType::F8E4M3),
        _ => None,
    }
}

/// candle's name of a plain weight's element type: what new weights like it can be made in.
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
