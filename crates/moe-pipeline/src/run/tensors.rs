//! Writes the tensors of a result.

use std::sync::atomic::AtomicBool;

use moe_checkpoint::{Error, Kind, OutputDir, Result, WriteSummary, Writer};
use moe_forward::{float_dtype, not_finite};
use moe_math::encoding::first_non_finite;
use moe_model::Weight;

use super::planned::Planned;
use super::proof::check_stop;
use crate::progress::Progress;

/// A copied tensor that is larger than this is read again instead of kept in memory.
const MAX_COPIED_BYTES: u64 = 256 << 20;

/// Writes all tensors; stops early if `stop` is set.
pub(super) fn write(
    planned: &Planned<'_>,
    dir: &OutputDir,
    stop: &AtomicBool,
    progress: &dyn Progress,
) -> Result<WriteSummary> {
    let mut writer = dir.writer(planned.shards.clone())?;
    for copies in planned.declaration().tensors.chunk_by(|(_, a), (_, b)| is_copy(a, b)) {
        check_stop(stop)?;
        if let Some(place) = copies.first().and_then(|(name, _)| place(name)) {
            progress.status(&place);
        }
        push(&mut writer, copies)?;
        progress.advance(copies.iter().map(|(_, weight)| weight.bytes()).sum());
    }
    writer.finish()
}

/// Returns the layer of the tensor `name` and, if it is one expert's, the expert, for a status
/// line: they are the numbers in the name, in this order.
fn place(name: &str) -> Option<String> {
    let mut numbers = name.split('.').filter(|part| part.bytes().all(|b| b.is_ascii_digit()));
    let layer = format!("layer {}", numbers.next()?);
    Some(numbers.next().map_or(layer.clone(), |expert| format!("{layer}, expert {expert}")))
}

fn numeric(error: candle_core::Error) -> Error {
    Error::new(Kind::Numeric, "cannot check a tensor").source(error)
}

/// Whether `next` can be written from the bytes that were read for `weight`.
fn is_copy(weight: &Weight, next: &Weight) -> bool {
    weight.bytes() <= MAX_COPIED_BYTES && weight.stored().is_some() && weight.same_source(next)
}

/// Writes tensors that are made of the same bytes.
fn push(writer: &mut Writer, copies: &[(String, Weight)]) -> Result<()> {
    let (name, weight) = &copies[0];
    let Some(stored) = weight.stored() else {
        let bytes = weight.read()?;
        check_finite(weight, &bytes, 0)?;
        return writer.push(name, &bytes);
    };
    let names: Vec<&str> = copies.iter().map(|(name, _)| name.as_str()).collect();
    writer.push_copies(&names, stored.bytes(), |offset, buffer| {
        stored.read_at(offset, buffer)?;
        check_finite(weight, buffer, offset)
    })
}

/// Refuses `bytes` of `weight`, which begin at `offset`, where a value isn't finite. A probe sees a
/// few tokens; here every value is checked.
fn check_finite(weight: &Weight, bytes: &[u8], offset: u64) -> Result<()> {
    let Some(dtype) = float_dtype(weight.dtype()) else { return Ok(()) };
    match first_non_finite(bytes, dtype).map_err(numeric)? {
        Some(at) => Err(not_finite(weight, offset / dtype.size_in_bytes() as u64 + at as u64)),
        None => Ok(()),
    }
}
