//! Finding neurons of gated networks that are equal up to a power of two on their output.
//!
//! A neuron computes silu(gate · x) (up · x) · down. Two neurons with the same gate and up whose
//! downs differ only by 2ᵏ are equal: in binary floating point that factor rounds nothing.

/// Identifies a neuron.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint {
    /// Hash of the bits of gate, up and down / 2^exponent. Different neurons share one with a
    /// probability of only 2⁻¹²⁸.
    pub hash: u128,
    /// ⌊log₂ max |down|⌋; 0 if down is zero.
    pub exponent: i32,
}

/// Fingerprints of all neurons. `gate` and `up` are `[width, hidden]`, `down` is `[hidden, width]`,
/// all row by row.
///
/// # Panics
/// If the lengths don't fit.
pub fn fingerprints(gate: &[f32], up: &[f32], down: &[f32], hidden: usize) -> Vec<Fingerprint> {
    let width = gate.len() / hidden;
    assert!(
        gate.len() == width * hidden && up.len() == gate.len() && down.len() == gate.len(),
        "three of one size"
    );
    let exponents = exponents(down, width);
    let scales: Vec<f64> = exponents.iter().map(|exponent| 2f64.powi(-exponent)).collect();
    let inputs = gate.chunks_exact(hidden).zip(up.chunks_exact(hidden));
    let mut hashes: Vec<Hash> = inputs.map(|(gate, up)| Hash::of_inputs(gate, up)).collect();
    for row in down.chunks_exact(width) {
        for ((hash, d), scale) in hashes.iter_mut().zip(row).zip(&scales) {
            hash.add((f64::from(*d) * scale).to_bits());
        }
    }
    let neurons = hashes.into_iter().zip(exponents);
    neurons.map(|(hash, exponent)| Fingerprint { hash: hash.finish(), exponent }).collect()
}

/// ⌊log₂ max |down|⌋ of each neuron; 0 if down is zero.
fn exponents(down: &[f32], width: usize) -> Vec<i32> {
    let mut largest = vec![0f32; width];
    for row in down.chunks_exact(width) {
        largest.iter_mut().zip(row).for_each(|(most, d)| *most = most.max(d.abs()));
    }
    largest.into_iter().map(exponent).collect()
}

/// ⌊log₂ x⌋, exact, since every nonzero f32 is normal as an f64.
fn exponent(x: f32) -> i32 {
    if x == 0.0 { 0 } else { ((f64::from(x).to_bits() >> 52) & 0x7ff) as i32 - 1023 }
}

/// Two lanes, each multiplied and folded.
struct Hash([u64; 2]);

impl Default for Hash {
    fn default() -> Self {
        Self([0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344])
    }
}

impl Hash {
    /// Hashes a neuron's rows of gate and up, bit by bit.
    fn of_inputs(gate: &[f32], up: &[f32]) -> Self {
        let mut hash = Self::default();
        gate.iter().chain(up).for_each(|x| hash.add(u64::from(x.to_bits())));
        hash
    }

    fn add(&mut self, value: u64) {
        const FACTORS: [u64; 2] = [0x9e37_79b9_7f4a_7c15, 0xa076_1d64_78bd_642f];
        for (lane, factor) in self.0.iter_mut().zip(FACTORS) {
            let product = u128::from((*lane ^ value).wrapping_add(factor)) * u128::from(factor);
            *lane = product as u64 ^ (product >> 64) as u64;
        }
    }

    fn finish(mut self) -> u128 {
        self.add(u64::MAX);
        u128::from(self.0[0]) << 64 | u128::from(self.0[1])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::{generator, normal};

    const HIDDEN: usize = 5;

    fn of(gate: &[f32], up: &[f32], down: &[f32]) -> Fingerprint {
        fingerprints(gate, up, down, HIDDEN)[0]
    }

    #[test]
    fn powers_of_two_are_told_apart_by_the_exponent_alone() {
        let x = normal(3 * HIDDEN, 1.0, &mut generator(1, 0));
        let (gate, up, down) = (&x[..5], &x[5..10], &x[10..]);
        let own = of(gate, up, down);
        for power in [-20i32, -1, 1, 7] {
            let scaled: Vec<f32> = down.iter().map(|d| d * 2f32.powi(power)).collect();
            let found = of(gate, up, &scaled);
            assert_eq!((found.hash, found.exponent), (own.hash, own.exponent + power));
        }
        let largest = down.iter().fold(0f32, |most, d| most.max(d.abs()));
        assert_eq!(own.exponent, f64::from(largest).log2().floor() as i32);
    }

    #[test]
    fn anything_else_is_another_neuron() {
        let x = normal(3 * HIDDEN, 1.0, &mut generator(1, 0));
        let own = of(&x[..5], &x[5..10], &x[10..]).hash;
        for change in 0..x.len() {
            let mut y = x.clone();
            y[change] = f32::from_bits(y[change].to_bits() ^ 1);
            assert_ne!(of(&y[..5], &y[5..10], &y[10..]).hash, own, "{change}");
        }
        let negative: Vec<f32> = x[10..].iter().map(|d| -d).collect();
        assert_ne!(of(&x[..5], &x[5..10], &negative).hash, own);
        assert_ne!(of(&x[5..10], &x[..5], &x[10..]).hash, own, "gate and up are not the same");
    }

    #[test]
    fn neurons_are_rows_of_gate_and_columns_of_down() {
        let (gate, down) =
            ([1., 2., 3., 4., 5., 1., 2., 3., 4., 5.], [1., 2., 1., 2., 1., 2., 0., 0., 3., 6.]);
        let found = fingerprints(&gate, &gate, &down, HIDDEN);
        assert_eq!(found[0].hash, found[1].hash);
        assert_eq!([found[0].exponent, found[1].exponent], [1, 2]);
        assert_eq!(of(&[0.0; 5], &[0.0; 5], &[0.0; 5]).exponent, 0);
    }
}
