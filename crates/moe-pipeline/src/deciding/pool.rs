//! Chooses sequences from a pool of text: those join the calibration that give cold experts tokens.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::ops::Range;

use candle_core::Tensor;
use moe_checkpoint::Result;
use moe_forward::{Calibration, Observer, UNCOUNTED};
use moe_math::routing::Routing;
use moe_passes::PoolStats;

/// Counts, in a sweep of the original model over the calibration and then the pool, what each
/// expert would see.
pub(super) struct PoolScan {
    /// The number of tokens that each expert should have.
    min_tokens: usize,
    /// The maximum number of tokens to add.
    max_added: usize,
    /// The number of sequences before the pool.
    own: usize,
    /// The end of each sequence: the index after its last token.
    ends: Vec<usize>,
    /// Whether each token counts.
    counted: Vec<bool>,
    /// The layer that is being counted, and its tokens so far.
    at: (usize, usize),
    /// For each layer with experts, the number of tokens of each sequence that chose each expert.
    layers: Vec<LayerChoices>,
}

/// The numbers of tokens of one layer, `[sequences, experts]`.
struct LayerChoices {
    experts: usize,
    tokens: Vec<u32>,
}

impl PoolScan {
    /// A scan of `all`, whose sequences from `own` on are the pool's.
    pub fn new(all: &Calibration, own: usize, min_tokens: usize, max_added: usize) -> Self {
        Self {
            min_tokens,
            max_added,
            own,
            ends: all.batch.spans.iter().map(|span| span.end).collect(),
            counted: all.group_of.iter().map(|group| *group != UNCOUNTED).collect(),
            at: (usize::MAX, 0),
            layers: Vec::new(),
        }
    }

    fn length(&self, sequence: usize) -> usize {
        self.ends[sequence] - sequence.checked_sub(1).map_or(0, |before| self.ends[before])
    }

    /// Returns the number of tokens that each expert of each layer lacks.
    fn missing(&self) -> Vec<Vec<u32>> {
        let of_layer = |layer: &LayerChoices| {
            let own = layer.tokens[..self.own * layer.experts].chunks_exact(layer.experts.max(1));
            let mut sums = vec![0usize; layer.experts];
            own.for_each(|counts| {
                sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += *count as usize)
            });
            sums.into_iter().map(|sum| self.min_tokens.saturating_sub(sum) as u32).collect()
        };
        self.layers.iter().map(of_layer).collect()
    }

    /// Returns, for each expert of each layer, the number of tokens that it lacks and the number
    /// that `sequence` has for it.
    fn pairs<'a>(
        &'a self,
        missing: &'a [Vec<u32>],
        sequence: usize,
    ) -> impl Iterator<Item = (u32, u32)> + 'a {
        self.layers.iter().zip(missing).flat_map(move |(layer, missing)| {
            let counts = &layer.tokens[sequence * layer.experts..][..layer.experts];
            missing.iter().copied().zip(counts.iter().copied())
        })
    }

    /// Returns the number of missing tokens that `sequence` supplies per token of its length.
    fn gain(&self, missing: &[Vec<u32>], sequence: usize) -> f64 {
        let useful: u64 = self
            .pairs(missing, sequence)
            .map(|(missing, count)| u64::from(missing.min(count)))
            .sum();
        useful as f64 / self.length(sequence).max(1) as f64
    }
}

impl Observer for PoolScan {
    fn routed(&mut self, layer: usize, _: &Tensor, routing: &Routing) -> Result<()> {
        if self.at.0 != layer {
            self.at = (layer, 0);
            self.layers.push(LayerChoices {
                experts: routing.experts,
                tokens: vec![0; self.ends.len() * routing.experts],
            });
        }
        let counts = self.layers.last_mut().expect("a layer was just begun");
        let first = self.at.1;
        let mut sequence = self.ends.partition_point(|end| *end <= first);
        for (local, chosen) in routing.selected.chunks_exact(routing.top_k).enumerate() {
            let token = first + local;
            while self.ends[sequence] <= token {
                sequence += 1;
            }
            if self.counted[token] {
                for expert in chosen {
                    counts.tokens[sequence * counts.experts + *expert as usize] += 1;
                }
            }
        }
        self.at.1 += routing.tokens();
        Ok(())
    }
}

impl PoolScan {
    /// The sequences of the pool that join, ascending, with statistics.
    ///
    /// The choice is greedy, by how many missing tokens a sequence supplies for each of its tokens.
    /// This gain never grows as others join, so only the top of a heap needs to be evaluated again
    /// (Minoux 1978), and the greedy choice covers at least 1 − 1/e of the maximum for that many
    /// sequences (Nemhauser et al. 1978).
    pub fn choose(&self) -> (Vec<usize>, PoolStats) {
        let mut missing = self.missing();
        let before = short(&missing);
        let mut heap = self.candidates(&missing);
        let (mut chosen, mut tokens) = (Vec::new(), 0);
        while let Some(Candidate { sequence, gain }) = heap.pop() {
            if gain <= 0.0 {
                break;
            }
            if tokens + self.length(sequence) > self.max_added {
                continue;
            }
            let now = Candidate { gain: self.gain(&missing, sequence), sequence };
            if heap.peek().is_some_and(|next| now < *next) {
                heap.push(now);
                continue;
            }
            if now.gain <= 0.0 {
                break;
            }
            self.join(sequence, &mut missing);
            tokens += self.length(sequence);
            chosen.push(sequence);
        }
        let joined = [chosen.len(), tokens];
        chosen.sort_unstable();
        let scanned = [self.pool().len(), self.pool().map(|sequence| self.length(sequence)).sum()];
        (chosen, PoolStats { scanned, joined, short: [before, short(&missing)] })
    }

    /// The sequences of the pool.
    fn pool(&self) -> Range<usize> {
        self.own..self.ends.len()
    }

    /// All sequences of the pool, the one with the largest gain first.
    fn candidates(&self, missing: &[Vec<u32>]) -> BinaryHeap<Candidate> {
        let candidate = |sequence| Candidate { gain: self.gain(missing, sequence), sequence };
        self.pool().map(candidate).collect()
    }

    /// Takes the tokens of `sequence` from those that are `missing`.
    fn join(&self, sequence: usize, missing: &mut [Vec<u32>]) {
        for (layer, missing) in self.layers.iter().zip(missing) {
            let counts = &layer.tokens[sequence * layer.experts..][..layer.experts];
            missing
                .iter_mut()
                .zip(counts)
                .for_each(|(missing, count)| *missing = missing.saturating_sub(*count));
        }
    }
}

/// The number of experts for which tokens are `missing`.
fn short(missing: &[Vec<u32>]) -> usize {
    missing.iter().flatten().filter(|missing| **missing > 0).count()
}

/// A sequence of the pool.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Candidate {
    gain: f64,
    sequence: usize,
}

impl Eq for Candidate {}

impl Ord for Candidate {
    /// By gain; among equals the earlier sequence is greater.
    fn cmp(&self, other: &Self) -> Ordering {
        self.gain.total_cmp(&other.gain).then(other.sequence.cmp(&self.sequence))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scans one layer of three experts, top-1. Each sequence is given by its tokens' choices; the
    /// first is the calibration.
    fn chosen(
        sequences: &[&[u32]],
        min_tokens: usize,
        max_added: usize,
    ) -> (Vec<usize>, PoolStats) {
        let ends = sequences.iter().scan(0, |end, sequence| {
            *end += sequence.len();
            Some(*end)
        });
        let ends: Vec<usize> = ends.collect();
        let counted = vec![true; *ends.last().unwrap()];
        let mut scan = PoolScan {
            min_tokens,
            max_added,
            own: 1,
            ends,
            counted,
            at: (usize::MAX, 0),
            layers: Vec::new(),
        };
        let selected: Vec<u32> = sequences.concat();
        // In two blocks, the first of which ends within a sequence.
        for selected in [&selected[..3], &selected[3..]] {
            let routing = Routing {
                top_k: 1,
                experts: 3,
                selected: selected.to_vec(),
                weights: vec![1.0; selected.len()],
                scores: vec![0.0; 3 * selected.len()],
            };
            scan.routed(
                5,
                &Tensor::zeros(1, candle_core::DType::F32, &candle_core::Device::Cpu).unwrap(),
                &routing,
            )
            .unwrap();
        }
        scan.choose()
    }

    #[test]
    fn sequences_that_supply_most_missing_tokens_join() {
        let sequences: [&[u32]; 5] =
            [&[0, 0, 0, 1], &[0, 0, 0, 0], &[2, 0], &[2, 2, 1, 0], &[2, 2, 2]];
        // Expert 1 lacks two tokens, expert 2 three. Sequence 4 has three of them in three tokens,
        // then sequence 3 has one in four.
        let (joined, pool_stats) = chosen(&sequences, 3, 100);
        assert_eq!(joined, [3, 4]);
        assert_eq!(pool_stats, PoolStats { scanned: [4, 13], joined: [2, 7], short: [2, 1] });
        // With room for three tokens, the sequence that covers most joins.
        assert_eq!(chosen(&sequences, 3, 3).0, [4]);
        // Sequence 2 is taken where 4 doesn't fit.
        assert_eq!(chosen(&sequences, 3, 2).0, [2]);
        assert_eq!(
            chosen(&sequences, 0, 100),
            (vec![], PoolStats { scanned: [4, 13], joined: [0, 0], short: [0, 0] })
        );
    }
}
