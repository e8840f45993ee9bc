//! Seeded sampling: the same seed and stream give the same numbers, however many threads there are.

use std::collections::BTreeMap;

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};
use rand_distr::{Distribution, StandardNormal};

/// A generator for one purpose. Different `stream`s of a seed are independent, so that tensors can
/// be made in any order.
pub fn generator(seed: u64, stream: u64) -> ChaCha8Rng {
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    generator.set_stream(stream);
    generator
}

/// `count` numbers from N(0, std²).
pub fn normal(count: usize, std: f64, generator: &mut impl RngCore) -> Vec<f32> {
    let samples = (0..count).map(|_| {
        let x: f64 = StandardNormal.sample(generator);
        (x * std) as f32
    });
    samples.collect()
}

/// Adds N(0, std²) to a random `fraction` of `values`.
pub fn add_noise(values: &mut [f32], std: f64, fraction: f64, generator: &mut impl RngCore) {
    for value in values {
        // Draws twice for every value, chosen or not, so that one value's noise doesn't shift
        // another's.
        let chosen = unit(generator) < fraction;
        let x: f64 = StandardNormal.sample(generator);
        if chosen {
            *value += (x * std) as f32;
        }
    }
}

/// A uniform number in [0, 1) with 53 random bits.
pub(crate) fn unit(generator: &mut impl RngCore) -> f64 {
    (generator.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// `count` different numbers below `n`, in random order (Fisher–Yates).
///
/// # Panics
/// If `count` exceeds `n`.
pub fn choose(count: usize, n: usize, generator: &mut impl RngCore) -> Vec<usize> {
    let mut all: Vec<usize> = (0..n).collect();
    for i in 0..count {
        let j = i + (unit(generator) * (n - i) as f64) as usize;
        all.swap(i, j);
    }
    all.truncate(count);
    all
}

/// All numbers below `n` in random order, each drawn on request: taking a few out of very many
/// needs no list of them all.
#[derive(Debug)]
pub struct Shuffled<'a, R> {
    /// The entries in which a full list would have changed.
    moved: BTreeMap<u64, u64>,
    next: u64,
    n: u64,
    generator: &'a mut R,
}

impl<'a, R: RngCore> Shuffled<'a, R> {
    /// Numbers below `n`, in an order that `generator` decides.
    pub fn new(n: u64, generator: &'a mut R) -> Self {
        Self { moved: BTreeMap::new(), next: 0, n, generator }
    }
}

impl<R: RngCore> Iterator for Shuffled<'_, R> {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        let i = self.next;
        if i == self.n {
            return None;
        }
        self.next += 1;
        let j = i + (unit(self.generator) * (self.n - i) as f64) as u64;
        let first = self.moved.remove(&i).unwrap_or(i);
        Some(if i == j { first } else { self.moved.insert(j, first).unwrap_or(j) })
    }
}

/// `count` uniformly drawn token ids below `vocab`.
pub fn token_ids(count: usize, vocab: usize, generator: &mut impl RngCore) -> Vec<u32> {
    (0..count).map(|_| (unit(generator) * vocab as f64) as u32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_those_of_the_normal_distribution() {
        let values = normal(100_000, 0.5, &mut generator(1, 2));
        let mean = values.iter().map(|x| f64::from(*x)).sum::<f64>() / 1e5;
        let variance =
            values.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / 1e5 - mean * mean;
        // Five standard errors.
        assert!(mean.abs() < 5.0 * 0.5 / 1e5f64.sqrt(), "{mean}");
        assert!((variance - 0.25).abs() < 5.0 * 0.25 * (2.0 / 1e5f64).sqrt(), "{variance}");
    }

    #[test]
    fn streams_differ_and_seeds_repeat() {
        let draw = |seed, stream| normal(8, 1.0, &mut generator(seed, stream));
        assert_eq!(draw(1, 2), draw(1, 2));
        assert_ne!(draw(1, 2), draw(1, 3));
        assert_ne!(draw(1, 2), draw(2, 2));
    }

    #[test]
    fn numbers_drawn_one_by_one_equal_the_shuffled_list() {
        for n in [1, 2, 7, 100] {
            let one_by_one: Vec<usize> =
                Shuffled::new(n, &mut generator(3, n)).map(|i| i as usize).collect();
            assert_eq!(one_by_one, choose(n as usize, n as usize, &mut generator(3, n)));
        }
        assert_eq!(Shuffled::new(0, &mut generator(0, 0)).next(), None);
        assert!(Shuffled::new(1 << 40, &mut generator(0, 0)).take(5).all(|i| i < 1 << 40));
    }

    #[test]
    fn noise_touches_the_fraction_that_was_asked_for() {
        let mut values = vec![0f32; 10_000];
        add_noise(&mut values, 1.0, 0.3, &mut generator(5, 0));
        let touched = values.iter().filter(|v| **v != 0.0).count();
        assert!((2_770..3_230).contains(&touched), "{touched}");
    }
}
