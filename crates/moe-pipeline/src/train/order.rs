//! The order in which windows of text are trained on.

use moe_math::sampling;

/// The random stream of the first epoch; streams with lower numbers are used elsewhere.
const FIRST_STREAM: u64 = 1 << 32;

/// Batches of whole windows, in an order that is redrawn for each epoch. The same seed gives the
/// same batches, so a resumed run only needs to know how many it has used.
pub(super) struct Order {
    lengths: Vec<usize>,
    batch_tokens: usize,
    seed: u64,
    passes: u64,
    rest: Vec<usize>,
}

impl Order {
    /// An order of windows of these lengths, with about `batch_tokens` tokens and at least one
    /// window in each batch.
    pub fn new(lengths: Vec<usize>, batch_tokens: usize, seed: u64) -> Self {
        Self { lengths, batch_tokens, seed, passes: 0, rest: Vec::new() }
    }

    /// The windows of the next batch. A batch never crosses the end of the text.
    pub fn next(&mut self) -> Vec<usize> {
        if self.rest.is_empty() {
            let mut random = sampling::generator(self.seed, FIRST_STREAM + self.passes);
            self.rest = sampling::choose(self.lengths.len(), self.lengths.len(), &mut random);
            self.passes += 1;
        }
        let mut tokens = 0;
        let fits = |window: &&usize| {
            tokens += self.lengths[**window];
            tokens <= self.batch_tokens
        };
        let count = self.rest.iter().take_while(fits).count().max(1);
        self.rest.drain(..count).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_window_comes_once_a_time_through() {
        let lengths = vec![5, 3, 9, 2, 2, 7, 1];
        let mut order = Order::new(lengths.clone(), 8, 1);
        let mut passes = Vec::new();
        for _ in 0..2 {
            let mut seen: Vec<usize> = Vec::new();
            while seen.len() < lengths.len() {
                let batch = order.next();
                assert!(batch.len() == 1 || batch.iter().map(|w| lengths[*w]).sum::<usize>() <= 8);
                seen.extend(batch);
            }
            passes.push(seen.clone());
            seen.sort_unstable();
            assert!(seen.into_iter().eq(0..lengths.len()));
        }
        assert_ne!(passes[0], passes[1]);
        assert_eq!(Order::new(lengths.clone(), 100, 1).next(), passes[0]);
        assert_ne!(Order::new(lengths, 100, 2).next(), passes[0]);
    }
}
