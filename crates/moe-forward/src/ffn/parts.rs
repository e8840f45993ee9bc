//! Runs a computation on parts of its rows, and halves the parts if the device runs out of memory.

use std::ops::Range;

use candle_core::{Result as CandleResult, Tensor};
use moe_checkpoint::Result;
use moe_math::device::is_out_of_memory;

/// Number of tokens that a block's activations are computed for at a time.
pub(super) const TOKEN_BLOCK: usize = 4096;

/// Returns the rows of `tensor` with the indices `rows`.
pub(super) fn select_rows(tensor: &Tensor, rows: &[u32]) -> CandleResult<Tensor> {
    tensor.index_select(&Tensor::from_slice(rows, rows.len(), tensor.device())?, 0)
}

/// Applies `f` to [`TOKEN_BLOCK`] rows of `x` at a time, and concatenates the results.
pub(super) fn in_blocks(
    x: &Tensor,
    f: impl Fn(&Tensor) -> CandleResult<Tensor>,
) -> CandleResult<Tensor> {
    let mut parts = Vec::new();
    in_parts(
        x.dim(0)?,
        TOKEN_BLOCK,
        |part| f(&x.narrow(0, part.start, part.len())?),
        |error| error,
        |_, part| {
            parts.push(part);
            Ok(())
        },
    )?;
    Tensor::cat(&parts, 0)
}

/// Calls `run` on ranges of at most `max_rows` of `rows` rows, in order, and passes each result to
/// `take`. If the device runs out of memory, the range is halved and tried again. `fail` converts
/// candle's other errors.
pub(super) fn in_parts<T, E>(
    rows: usize,
    max_rows: usize,
    run: impl Fn(Range<usize>) -> CandleResult<T>,
    fail: impl Fn(candle_core::Error) -> E,
    mut take: impl FnMut(Range<usize>, T) -> Result<(), E>,
) -> Result<(), E> {
    let mut from = 0;
    let mut count = max_rows;
    while from < rows {
        let part = from..rows.min(from + count);
        match run(part.clone()) {
            Err(error) if part.len() > 1 && is_out_of_memory(&error) => {
                count = part.len().div_ceil(2)
            }
            found => {
                from = part.end;
                take(part, found.map_err(&fail)?)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_without_memory_gets_half() {
        let full =
            || candle_core::Error::msg("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")");
        let mut taken = Vec::new();
        let run = |part: Range<usize>| if part.len() > 3 { Err(full()) } else { Ok(part.start) };
        let take = |part: Range<usize>, first| {
            taken.push((first, part.end));
            Ok(())
        };
        in_parts(10, 8, run, |error| error, take).unwrap();
        assert_eq!(taken, [(0, 2), (2, 4), (4, 6), (6, 8), (8, 10)]);
        // If one row alone doesn't fit, that is an error; other errors are returned at once.
        assert!(in_parts(2, 2, |_| Err::<(), _>(full()), |error| error, |_, ()| Ok(())).is_err());
        let other = |part: Range<usize>| {
            if part.len() > 1 { Err(candle_core::Error::msg("no")) } else { Ok(()) }
        };
        assert!(in_parts(2, 2, other, |error| error, |_, ()| Ok(())).is_err());
    }
}
