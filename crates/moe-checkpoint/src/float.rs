//! Floats that aren't finite. JSON can't express them, and serde writes null instead.

use serde::{Deserialize, Deserializer};

/// A float, or a container of floats.
pub trait Floats: Sized {
    /// The same type with options of floats, None for null.
    type Read<'de>: Deserialize<'de>;

    /// Replaces None by infinity.
    fn of(read: Self::Read<'_>) -> Self;
}

impl Floats for f64 {
    type Read<'de> = Option<f64>;

    fn of(read: Option<f64>) -> Self {
        read.unwrap_or(f64::INFINITY)
    }
}

impl<F: Floats> Floats for Vec<F> {
    type Read<'de> = Vec<F::Read<'de>>;

    fn of(read: Vec<F::Read<'_>>) -> Self {
        read.into_iter().map(F::of).collect()
    }
}

/// An optional finite number, then a number that may have been infinite.
impl Floats for (Option<f64>, f64) {
    type Read<'de> = (Option<f64>, Option<f64>);

    fn of((of, read): (Option<f64>, Option<f64>)) -> Self {
        (of, f64::of(read))
    }
}

impl<const N: usize> Floats for [f64; N]
where
    for<'de> [Option<f64>; N]: Deserialize<'de>,
{
    type Read<'de> = [Option<f64>; N];

    fn of(read: [Option<f64>; N]) -> Self {
        read.map(f64::of)
    }
}

/// A key that is left out for None; null is a float that isn't finite.
impl<T: Floats> Floats for Option<T> {
    type Read<'de> = T::Read<'de>;

    fn of(read: T::Read<'_>) -> Self {
        Some(T::of(read))
    }
}

/// For `#[serde(deserialize_with = …)]` on floats that may have been infinite or NaN: reads null as
/// infinity. Options also need `default`.
///
/// # Errors
/// If `deserializer` fails.
pub fn or_infinite<'de, F: Floats, D: Deserializer<'de>>(deserializer: D) -> Result<F, D::Error> {
    F::Read::deserialize(deserializer).map(F::of)
}
