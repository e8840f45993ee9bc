//! f32 and f64 alike.

use faer::traits::RealField;

/// What the solver computes in: f32, or f64 as a reference.
pub trait Real: RealField + Copy + Send + Sync + Default + 'static {
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// The nearest value.
    fn from_f64(value: f64) -> Self;
    /// Exactly.
    fn from_f32(value: f32) -> Self;
    /// Exactly.
    fn to_f64(self) -> f64;
    /// The nearest value.
    fn to_f32(self) -> f32;
    /// To the nearest integer, halves to the even one.
    fn round_even(self) -> Self;
    /// |x|
    fn magnitude(self) -> Self;
    /// The integer that this is, between 0 and 255.
    fn byte(self) -> u8;
    /// Neither NaN nor infinite.
    fn finite(self) -> bool;
}

macro_rules! real {
    ($t:ty) => {
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
            fn magnitude(self) -> Self {
                self.abs()
            }
            #[inline(always)]
            fn byte(self) -> u8 {
                self as u8
            }
            #[inline(always)]
            fn finite(self) -> bool {
                self.is_finite()
            }
        }
    };
}

real!(f32);
real!(f64);
