//! Batches as large as memory allows.

use moe_math::device::is_out_of_memory;
use moe_model::Result;

/// Goes through `items` in order, in batches of at least one item and at most `most` bytes. `make`
/// works on a batch; if the device runs out of memory, it gets half of it, and no larger batch from
/// then on. `take` gets what `make` returned.
pub(crate) fn in_batches<T, M>(
    items: &[T],
    most: usize,
    bytes: impl Fn(&T) -> usize,
    mut make: impl FnMut(&[T]) -> Result<M>,
    mut take: impl FnMut(&[T], M) -> Result<()>,
) -> Result<()> {
    let mut rest = items;
    let mut limit = usize::MAX;
    while !rest.is_empty() {
        let count = count_within(rest, most, &bytes).clamp(1, limit);
        let (batch, behind) = rest.split_at(count);
        match make(batch) {
            Ok(made) => take(batch, made)?,
            Err(error) if count > 1 && is_out_of_memory(&error) => {
                limit = count / 2;
                continue;
            }
            Err(error) => return Err(error),
        }
        rest = behind;
    }
    Ok(())
}

/// The number of `items`, from the first on, that take at most `most` bytes together.
fn count_within<T>(items: &[T], most: usize, bytes: impl Fn(&T) -> usize) -> usize {
    let mut filled = 0usize;
    let fitting = items.iter().take_while(|item| {
        filled = filled.saturating_add(bytes(item));
        filled <= most
    });
    fitting.count()
}

#[cfg(test)]
mod tests {
    use candle_core::Error as Candle;
    use moe_model::{Error, Kind};

    use super::*;

    #[test]
    fn batches_fill_what_there_is() {
        let mut batches = Vec::new();
        let take = |batch: &[usize], ()| {
            batches.push(batch.to_vec());
            Ok(())
        };
        in_batches(&[3, 3, 4, 9, 1], 10, |size| *size, |_| Ok(()), take).unwrap();
        assert_eq!(batches, [vec![3, 3, 4], vec![9, 1]]);
    }

    #[test]
    fn a_device_without_memory_gets_half() {
        let full =
            |what: &str| Error::new(Kind::Numeric, "cannot quantize").source(Candle::msg(what));
        let (mut tried, mut taken) = (Vec::new(), Vec::new());
        let make = |batch: &[usize]| {
            tried.push(batch.len());
            if batch.len() > 2 {
                Err(full("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")"))
            } else {
                Ok(batch[0])
            }
        };
        let take = |_: &[usize], first| {
            taken.push(first);
            Ok(())
        };
        in_batches(&[0, 1, 2, 3, 4, 5, 6, 7, 8], usize::MAX, |_| 1, make, take).unwrap();
        assert_eq!(tried, [9, 4, 2, 2, 2, 2, 1]);
        assert_eq!(taken, [0, 2, 4, 6, 8]);
        // An item that doesn't fit alone is an error, and so is any other error.
        let never = |_: &[usize]| Err::<(), _>(full("out of memory"));
        assert!(in_batches(&[1, 2], 2, |_| 1, never, |_, ()| Ok(())).is_err());
        let mut tries = 0;
        let broken = |_: &[usize]| {
            tries += 1;
            Err::<(), _>(full("a value is not finite"))
        };
        assert!(in_batches(&[1, 2], 2, |_| 1, broken, |_, ()| Ok(())).is_err());
        assert_eq!(tries, 1);
    }
}
