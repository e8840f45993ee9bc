//! The scale of router logits at which their distributions have a wanted mean entropy.

use candle_core::{D, DType, Tensor};

/// The scale that was found, and its mean entropy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Temperature {
    /// s, the factor of the logits or of the router's rows: an inverse temperature.
    pub scale: f64,
    /// The mean entropy of softmax(s·z) over tokens, as a fraction of ln(experts).
    pub entropy_fraction: f64,
}

/// The reason why no scale gives the mean entropy.
#[derive(Debug, thiserror::Error)]
pub enum TemperatureError {
    /// The target isn't strictly between 0 and 1.
    #[error("an entropy of {0} times its maximum can't be reached")]
    Target(f64),
    /// There are no tokens, or fewer than two experts.
    #[error("logits of shape [{tokens}, {experts}] have no entropy to set")]
    Empty {
        /// Number of tokens.
        tokens: usize,
        /// Number of experts.
        experts: usize,
    },
    /// A logit is infinite or NaN.
    #[error("a router logit is not finite")]
    NotFinite,
    /// Equal logits stay equal at every scale.
    #[error(
        "no scale brings the mean entropy to {target} of its maximum: on average the largest logits are tied so often that \
         it stays above {floor}"
    )]
    Tied {
        /// The fraction of ln(experts) that was asked for.
        target: f64,
        /// The limit of the fraction as the scale grows.
        floor: f64,
    },
    /// If the device fails.
    #[error(transparent)]
    Device(#[from] candle_core::Error),
}

/// The scale s > 0 at which the mean entropy of softmax(s·z) over tokens is `target` · ln(experts),
/// with 0 < target < 1.
///
/// `logits` z is `[tokens, experts]`, of any float dtype; the computation is in f64 on its device,
/// in blocks of tokens. The mean entropy H falls strictly with s, dH/ds = −s · mean Var\[z\] under
/// softmax(s·z), so there is one s. Newton steps in ln s, with bisection as the fallback, find it
/// to 1e-12 nats. If logits are nearly tied, s can exceed the range of f32.
///
/// # Errors
/// [`TemperatureError`].
pub fn scale_to_entropy(logits: &Tensor, target: f64) -> Result<Temperature, TemperatureError> {
    let (tokens, experts) = logits.dims2()?;
    if !(target > 0.0 && target < 1.0) {
        return Err(TemperatureError::Target(target));
    }
    if tokens == 0 || experts < 2 {
        return Err(TemperatureError::Empty { tokens, experts });
    }
    let most = (experts as f64).ln();
    let flat = spread(logits, 0.0)?;
    if !flat.variance.is_finite() {
        return Err(TemperatureError::NotFinite);
    }
    let floor =
        mean_over_tokens(logits, |gaps| gaps.eq(0.0)?.to_dtype(DType::F64)?.sum(D::Minus1)?.log())?
            / most;
    if target <= floor {
        return Err(TemperatureError::Tied { target, floor });
    }
    // To second order at 0, H = ln(experts) − s² Var / 2.
    let start = (2.0 * (1.0 - target) * most / flat.variance).sqrt();
    let (scale, entropy) = solve(logits, target * most, start)?;
    Ok(Temperature { scale, entropy_fraction: entropy / most })
}

/// Maximum number of evaluations. Usually 2 to 25 are made; bisection of ln s alone would need
/// about 60.
const MAX_EVALUATIONS: usize = 200;

/// The s at which H(s) is `target` nats, and H(s).
fn solve(logits: &Tensor, target: f64, start: f64) -> candle_core::Result<(f64, f64)> {
    let (mut low, mut high, mut s, mut last_excess) = (0f64, f64::INFINITY, start, f64::INFINITY);
    let mut evaluations = 0;
    loop {
        evaluations += 1;
        let EntropyMoments { entropy, variance } = spread(logits, s)?;
        let excess = entropy - target;
        if excess.abs() <= 1e-12
            || high / low <= 1.0 + 2.0 * f64::EPSILON
            || evaluations == MAX_EVALUATIONS
        {
            return Ok((s, entropy));
        }
        *(if excess > 0.0 { &mut low } else { &mut high }) = s;
        // dH/d ln s = −s² Var. On plateaus of H a step is limited to a factor of e³.
        let newton = s * (excess / (s * s * variance)).clamp(-3.0, 3.0).exp();
        let is_slow = excess.abs() > last_excess.abs() / 2.0 && low > 0.0 && high.is_finite();
        s = if newton > low && newton < high && !is_slow {
            newton
        } else {
            low.sqrt() * high.sqrt()
        };
        last_excess = excess;
    }
}

/// Means over tokens under softmax(s·z).
struct EntropyMoments {
    /// In nats.
    entropy: f64,
    /// The variance of z.
    variance: f64,
}

fn spread(logits: &Tensor, s: f64) -> candle_core::Result<EntropyMoments> {
    Ok(EntropyMoments {
        entropy: mean_over_tokens(logits, |gaps| entropies(gaps, s))?,
        variance: mean_over_tokens(logits, |gaps| variances(gaps, s))?,
    })
}

/// H = ln Σ exp(y) − Σ p y of each token, y = s · gaps.
fn entropies(gaps: &Tensor, s: f64) -> candle_core::Result<Tensor> {
    let y = (gaps * s)?;
    let exp = y.exp()?;
    let total = exp.sum(D::Minus1)?;
    total.log()? - ((exp * y)?.sum(D::Minus1)? / total)?
}

fn variances(gaps: &Tensor, s: f64) -> candle_core::Result<Tensor> {
    let p = candle_nn::ops::softmax(&(gaps * s)?, D::Minus1)?;
    let mean = (&p * gaps)?.sum_keepdim(D::Minus1)?;
    (p * gaps.broadcast_sub(&mean)?.sqr()?)?.sum(D::Minus1)
}

/// The mean over tokens of `f`, which maps gaps `[tokens, experts]` (z minus the maximum of its
/// row) to `[tokens]`.
fn mean_over_tokens(
    logits: &Tensor,
    f: impl Fn(&Tensor) -> candle_core::Result<Tensor>,
) -> candle_core::Result<f64> {
    const BLOCK_ELEMENTS: usize = 1 << 20;
    let (tokens, experts) = logits.dims2()?;
    let block = (BLOCK_ELEMENTS / experts).max(1);
    let mut sum = 0.0;
    for first in (0..tokens).step_by(block) {
        let z = logits.narrow(0, first, block.min(tokens - first))?.to_dtype(DType::F64)?;
        let gaps = z.broadcast_sub(&z.max_keepdim(D::Minus1)?)?;
        sum += f(&gaps)?.sum_all()?.to_scalar::<f64>()?;
    }
    Ok(sum / tokens as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::{generator, normal};
    use candle_core::Device;

    fn random(tokens: usize, experts: usize, std: f64) -> Tensor {
        let values = normal(tokens * experts, std, &mut generator(7, tokens as u64));
        Tensor::from_vec(values, (tokens, experts), &Device::Cpu).unwrap()
    }

    #[test]
    fn entropy_falls_as_the_scale_grows() {
        let logits = random(50, 8, 1.0);
        let scales: Vec<f64> = (0..40).map(|i| 1e-2 * 1.4f64.powi(i)).collect();
        let entropies: Vec<f64> =
            scales.iter().map(|s| spread(&logits, *s).unwrap().entropy).collect();
        assert!(entropies.windows(2).all(|w| w[1] < w[0]), "{entropies:?}");
        // Compares the derivative in Newton's steps with finite differences.
        for s in [0.1, 1.0, 5.0] {
            let h = 1e-5 * s;
            let entropy = |s| spread(&logits, s).unwrap().entropy;
            let difference = (entropy(s + h) - entropy(s - h)) / (2.0 * h);
            assert!(
                (difference + s * spread(&logits, s).unwrap().variance).abs() < 1e-7,
                "{s}: {difference}"
            );
        }
    }

    /// Two experts, logits 0 and 1: at s = ln 3 the probabilities are ¼ and ¾.
    #[test]
    fn a_scale_by_hand() {
        let logits = Tensor::new(&[[0f32, 1.0], [1.0, 0.0]], &Device::Cpu).unwrap();
        let target = (0.25 * 4f64.ln() + 0.75 * (4f64 / 3.0).ln()) / 2f64.ln();
        let found = scale_to_entropy(&logits, target).unwrap();
        assert!(
            (found.scale - 3f64.ln()).abs() < 1e-10
                && (found.entropy_fraction - target).abs() < 1e-12,
            "{found:?}"
        );
    }

    #[test]
    fn every_target_and_scale_of_logits_is_met() {
        // Logits of tokens differ in size by 12 orders of magnitude, so H has two steep parts and a
        // plateau.
        let mixed = Tensor::cat(&[random(40, 6, 1e6), random(41, 6, 1e-6)], 0).unwrap();
        for logits in [random(30, 8, 1e-20), random(30, 8, 1.0), random(30, 128, 1e20), mixed] {
            for target in [1e-6, 0.01, 0.3, 0.5, 0.9, 0.999_999] {
                let found = scale_to_entropy(&logits, target).unwrap();
                assert!((found.entropy_fraction - target).abs() < 1e-9, "{target}: {found:?}");
            }
        }
    }

    #[test]
    fn targets_that_no_scale_reaches_are_explained() {
        let error = |logits: &Tensor, target| scale_to_entropy(logits, target).unwrap_err();
        let equal = Tensor::ones((5, 4), DType::F32, &Device::Cpu).unwrap();
        assert!(
            matches!(error(&equal, 0.9), TemperatureError::Tied { floor, .. } if (floor - 1.0).abs() < 1e-12)
        );
        // Two of four tie for the maximum, so half of the entropy remains.
        let tied = Tensor::new(&[[1f32, 1.0, 0.0, 0.0]], &Device::Cpu).unwrap();
        assert!(
            matches!(error(&tied, 0.49), TemperatureError::Tied { floor, .. } if (floor - 0.5).abs() < 1e-12)
        );
        scale_to_entropy(&tied, 0.51).unwrap();
        for target in [0.0, 1.0, -1.0, f64::NAN] {
            assert!(matches!(error(&tied, target), TemperatureError::Target(_)));
        }
        assert!(matches!(
            error(&random(3, 1, 1.0), 0.5),
            TemperatureError::Empty { experts: 1, .. }
        ));
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let logits = Tensor::new(&[[1f32, bad]], &Device::Cpu).unwrap();
            assert!(matches!(error(&logits, 0.5), TemperatureError::NotFinite));
        }
    }
}
