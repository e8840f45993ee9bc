//! Finds values that are not finite, and the weight that caused them.

use candle_core::{DType, Tensor};
use moe_checkpoint::{Error, Kind, Result};
use moe_math::encoding::first_non_finite;
use moe_model::Weight;

use crate::context::Context;
use crate::dtypes::float_dtype;

/// Checks that all `values`, which were computed from `suspects` and from checked values, are
/// finite. The error names the first of `suspects` that has a value which isn't.
pub(crate) fn check<'w>(
    values: &Tensor,
    what: &str,
    suspects: impl IntoIterator<Item = &'w Weight>,
) -> Result<()> {
    // A sum is finite only if every term is.
    let sum = values.to_dtype(DType::F32).and_then(|v| v.sum_all()?.to_scalar::<f32>());
    if sum.context(|| what.to_owned())?.is_finite() {
        return Ok(());
    }
    // An error is certain now, so time doesn't matter any more.
    for weight in suspects {
        check_weight(weight)?;
    }
    // The sum of finite values may overflow. A value that isn't finite gives NaN when it is
    // subtracted from itself.
    let differences =
        values.to_dtype(DType::F32).and_then(|v| v.sub(&v)?.sum_all()?.to_scalar::<f32>());
    if differences.context(|| what.to_owned())? == 0.0 {
        return Ok(());
    }
    let remedy = match values.dtype() {
        DType::F32 => {
            "activations overflowed, even in f32: check that the config is that of these weights, and the text"
        }
        _ => "activations overflowed: compute in f32 (--dtype f32), or check the text",
    };
    Err(Error::new(
        Kind::Numeric,
        format!("{what}: not finite, though the weights that they are made with are"),
    )
    .remedy(remedy))
}

/// Checks that `weight` and its scales are finite.
pub(crate) fn check_weight(weight: &Weight) -> Result<()> {
    let Some(dtype) = float_dtype(weight.dtype()) else { return Ok(()) };
    let found = first_non_finite(&weight.read()?, dtype).context(|| weight.name().to_owned())?;
    match found {
        None => weight.scale().map_or(Ok(()), check_weight),
        Some(element) => Err(not_finite(weight, element as u64)),
    }
}

/// Returns the error that this `element` of `weight` is not finite.
pub fn not_finite(weight: &Weight, element: u64) -> Error {
    let error = Error::new(Kind::Numeric, format!("element {element} is not finite"))
        .tensor(weight.name())
        .remedy("the training or conversion that wrote it failed: get a sound checkpoint");
    match weight.stored() {
        Some(stored) => error.file(stored.path()),
        None => error,
    }
}
