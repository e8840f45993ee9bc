//! The operations on f32 and f64 that the solver uses.

use faer::traits::RealField;
use pulp::Simd;

use super::kernel::STRIP;

/// Number of vectors that [`Real::feed`] sums side by side, so that it needn't wait for each sum.
const CHAINS: usize = 4;

/// The type that the solver computes in: f32, or f64 as a reference.
pub trait Real: RealField + Copy + Send + Sync + Default + 'static {
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// Rounds to the nearest value.
    fn from_f64(value: f64) -> Self;
    /// Converts exactly.
    fn from_f32(value: f32) -> Self;
    /// Converts exactly.
    fn to_f64(self) -> f64;
    /// Rounds to the nearest value.
    fn to_f32(self) -> f32;
    /// Rounds to the nearest integer, halves to the even one.
    fn round_even(self) -> Self;
    /// √x
    fn root(self) -> Self;
    /// Converts an integer between 0 and 255.
    fn byte(self) -> u8;
    /// Whether the value is neither NaN nor infinite.
    fn finite(self) -> bool;
    /// Adds Σ take · error to `sums`. Errors are `STRIP` values each, `step` strips apart.
    fn feed<S: Simd>(
        simd: S,
        sums: &mut [Self; STRIP],
        takes: &[Self],
        errors: &[[Self; STRIP]],
        step: usize,
    );
}

macro_rules! real {
    ($t:ty, $whole:expr, $wide:ident, $wide_mut:ident, $splat:ident, $mul_add:ident) => {
        impl Real for $t {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            #[inline(always)]
            fn from_f64(value: f64) -> Self {
                value as Self
            }
            #[inline(always)]
            fn from_f32(value: f32) -> Self {
                Self::from(value)
            }
            #[inline(always)]
            fn to_f64(self) -> f64 {
                f64::from(self)
            }
            #[inline(always)]
            fn to_f32(self) -> f32 {
                self as f32
            }
            #[inline(always)]
            fn round_even(self) -> Self {
                self.round_ties_even()
            }
            #[inline(always)]
            fn root(self) -> Self {
                self.sqrt()
            }
            #[inline(always)]
            fn byte(self) -> u8 {
                // The last bits of the sum with the power of two at which numbers are 1 apart. A
                // conversion would saturate, which is slow.
                (self + $whole).to_bits() as u8
            }
            #[inline(always)]
            fn finite(self) -> bool {
                self.is_finite()
            }
            #[inline(always)]
            fn feed<S: Simd>(
                simd: S,
                sums: &mut [Self; STRIP],
                takes: &[Self],
                errors: &[[Self; STRIP]],
                step: usize,
            ) {
                for (part, sums) in S::$wide_mut(sums).0.chunks_exact_mut(CHAINS).enumerate() {
                    let mut held = [sums[0], sums[1], sums[2], sums[3]];
                    for (errors, take) in errors.chunks(step).zip(takes) {
                        let (errors, take) = (
                            &S::$wide(&errors[0]).0[part * CHAINS..][..CHAINS],
                            simd.$splat(*take),
                        );
                        for i in 0..CHAINS {
                            held[i] = simd.$mul_add(take, errors[i], held[i]);
                        }
                    }
                    sums.copy_from_slice(&held);
                }
            }
        }
    };
}

real!(f32, 8_388_608.0, as_simd_f32s, as_mut_simd_f32s, splat_f32s, mul_add_f32s);
real!(f64, 4_503_599_627_370_496.0, as_simd_f64s, as_mut_simd_f64s, splat_f64s, mul_add_f64s);
