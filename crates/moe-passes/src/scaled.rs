//! Weights made from others elementwise, on demand: scaled, with noise, or random.

use candle_core::DType;
use moe_forward::{candle_dtype, not_finite};
use moe_math::{encoding, sampling};
use moe_model::{Error, Kind, Make, Result, Weight};

/// Seeded noise on a weight.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Noise {
    pub std: f64,
    pub fraction: f64,
    pub seed: u64,
    pub stream: u64,
}

/// `base · factor + noise`, in the encoding of `base`.
struct Scaled {
    base: Weight,
    factor: f64,
    noise: Option<Noise>,
}

/// `base · factor + noise`; the very bytes of `base` where that changes nothing.
pub(crate) fn scaled(base: &Weight, factor: f64, noise: Option<Noise>) -> Weight {
    if factor == 1.0 && noise.is_none() {
        return base.clone();
    }
    let made = Scaled { base: base.clone(), factor, noise };
    Weight::made(base.name(), base.dtype(), base.shape(), made)
}

impl Make for Scaled {
    fn make(&self) -> Result<Vec<u8>> {
        let fail = |e| numeric(self.base.name(), e);
        let dtype = candle_dtype(&self.base)?;
        let mut values = encoding::decode_f32(&self.base.read()?, dtype).map_err(fail)?;
        let factor = self.factor as f32;
        values.iter_mut().for_each(|x| *x *= factor);
        if let Some(Noise { std, fraction, seed, stream }) = self.noise {
            sampling::add_noise(&mut values, std, fraction, &mut sampling::generator(seed, stream));
        }
        let bytes = encoding::encode_f32(&values, dtype).map_err(fail)?;
        match encoding::first_non_finite(&bytes, dtype).map_err(fail)? {
            None => Ok(bytes),
            // Finite before, so it overflowed; otherwise it was no number to begin with.
            Some(position) => Err(match values[position].is_finite() {
                false => not_finite(&self.base, position as u64),
                true => {
                    Error::new(Kind::Numeric, format!("element {position} overflows {dtype:?} when scaled by {factor}"))
                        .tensor(self.base.name())
                        .remedy("convert the source to bfloat16 or float32 first")
                }
            }),
        }
    }
}

/// Entries from N(0, std²).
struct Normal {
    count: usize,
    dtype: DType,
    std: f64,
    seed: u64,
    stream: u64,
}

/// A matrix of `shape` with entries from N(0, std²), in the encoding of `like`.
pub(crate) fn normal(name: String, shape: &[usize], like: &Weight, std: f64, seed: u64, stream: u64) -> Result<Weight> {
    let made = Normal { count: shape.iter().product(), dtype: candle_dtype(like)?, std, seed, stream };
    Ok(Weight::made(name, like.dtype(), shape, made))
}

/// A matrix of zeros of `shape`, in the encoding of `like`.
pub(crate) fn zeros(name: String, shape: &[usize], like: &Weight) -> Result<Weight> {
    normal(name, shape, like, 0.0, 0, 0)
}

impl Make for Normal {
    fn make(&self) -> Result<Vec<u8>> {
        let values = match self.std {
            0.0 => vec![0.0; self.count],
            std => sampling::normal(self.count, std, &mut sampling::generator(self.seed, self.stream)),
        };
        encoding::encode_f32(&values, self.dtype).map_err(|e| numeric("router", e))
    }
}

fn numeric(name: &str, error: candle_core::Error) -> Error {
    Error::new(Kind::Numeric, "cannot make this weight").source(error).tensor(name)
}
