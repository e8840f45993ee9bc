//! The tokens that each expert is calibrated on, and their weights.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;
use std::sync::Arc;

use moe_math::routing::Routing;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::options::CalibrateOn;

/// The rule by which tokens are chosen.
#[derive(Debug, Clone, Copy)]
pub(super) struct SampleRule {
    pub samples: CalibrateOn,
    /// Experts with fewer tokens than this are topped up to this many.
    pub least: usize,
    /// The weight of a token is its gate to this power.
    pub gate_power: u8,
    /// Experts with more tokens than this multiple of the mean use an even selection of them.
    pub hot_cap: f64,
}

/// The samples that one expert is calibrated on: tokens, ascending, and the weight of each. Several
/// experts may share them.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ExpertSamples {
    pub tokens: Arc<[u32]>,
    pub weights: Arc<[f32]>,
    pub counts: Counts,
}

impl ExpertSamples {
    /// Samples of `tokens`, each with weight 1.
    pub fn evenly_weighed(tokens: Vec<u32>, counts: Counts) -> Self {
        Self { weights: vec![1.0; tokens.len()].into(), tokens: tokens.into(), counts }
    }

    /// Whether `other` has exactly these tokens and weights.
    pub fn shares(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.tokens, &other.tokens) && Arc::ptr_eq(&self.weights, &other.weights)
    }

    /// About `most` of the samples, evenly spread.
    pub fn some(&self, most: usize) -> Self {
        let every = self.tokens.len().div_ceil(most.max(1)).max(1);
        let tokens = self.tokens.iter().copied().step_by(every).collect();
        let weights = self.weights.iter().copied().step_by(every).collect();
        Self { tokens, weights, counts: self.counts }
    }
}

/// The tokens that are routed to one expert, whether or not they count.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Route {
    /// Tokens, ascending.
    pub tokens: Vec<u32>,
    pub gates: Vec<f32>,
}

impl Route {
    /// Adds the tokens of `slots`, which are positions in `routing.selected`; `first` is the first
    /// token of `routing`.
    pub fn extend(&mut self, first: usize, slots: &[u32], routing: &Routing) {
        self.tokens.extend(slots.iter().map(|slot| first as u32 + slot / routing.top_k as u32));
        self.gates.extend(slots.iter().map(|slot| routing.weights[*slot as usize]));
    }
}

/// The tokens that are routed to an expert, together with those that it is calibrated on.
pub(super) struct Routed {
    pub route: Route,
    /// Tokens of both kinds, ascending; those that aren't samples have weight 0.
    pub with_samples: ExpertSamples,
    /// Positions of the routed tokens in `with_samples`; None where all of them are routed.
    pub rows: Option<Vec<u32>>,
}

impl Routed {
    pub fn new(samples: &ExpertSamples, route: Route) -> Self {
        if *route.tokens == *samples.tokens {
            return Self { route, with_samples: samples.clone(), rows: None };
        }
        let mut all: Vec<u32> = route.tokens.iter().chain(samples.tokens.iter()).copied().collect();
        all.sort_unstable();
        all.dedup();
        let weights = all
            .iter()
            .map(|token| samples.tokens.binary_search(token).map_or(0.0, |at| samples.weights[at]));
        let weights: Vec<f32> = weights.collect();
        let rows = (all.len() != route.tokens.len()).then(|| {
            let rows = route.tokens.iter().map(|token| all.binary_search(token));
            rows.map(|row| row.expect("every routed token is among all") as u32).collect()
        });
        let with_samples =
            ExpertSamples { tokens: all.into(), weights: weights.into(), counts: samples.counts };
        Self { route, with_samples, rows }
    }

    /// The routed rows within `seen`, a range of rows of `with_samples`, counted from its start;
    /// None if all of them are routed.
    pub fn rows_in(&self, seen: &Range<usize>) -> Option<Vec<u32>> {
        let rows = self.rows.as_ref()?;
        let start = rows.partition_point(|row| (*row as usize) < seen.start);
        let end = rows.partition_point(|row| (*row as usize) < seen.end);
        let routed = &rows[start..end];
        (routed.len() != seen.len())
            .then(|| routed.iter().map(|row| row - seen.start as u32).collect())
    }
}

/// The number of tokens that an expert was calibrated on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Counts {
    /// Tokens that chose the expert.
    pub routed: usize,
    /// Tokens among them that it is calibrated on.
    pub used: usize,
    /// Tokens that it is calibrated on though they didn't choose it.
    pub topped_up: usize,
}

/// Collects the routing of all blocks of a layer's tokens, and then the tokens that came closest to
/// cold experts.
pub(super) struct Sampler {
    rule: SampleRule,
    experts: usize,
    tokens: usize,
    /// For each expert, the tokens that chose it, ascending, and their gates.
    routed: Vec<Vec<(u32, f32)>>,
    /// Σ score of the chosen experts over all tokens, and the number of terms.
    typical: (f64, usize),
    /// For each cold expert, the tokens of the greatest scores that didn't choose it, with the
    /// least of them on top.
    nearest: Vec<BinaryHeap<Reverse<Near>>>,
}

/// A token that didn't choose an expert.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Near {
    /// The value that the router ranks by.
    rank: f32,
    /// The expert's score.
    score: f32,
    token: u32,
}

impl Eq for Near {}

impl Ord for Near {
    /// Compares by rank; among equals the earlier token is the greater.
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.rank.total_cmp(&other.rank).then(other.token.cmp(&self.token))
    }
}

impl PartialOrd for Near {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Sampler {
    pub fn new(rule: SampleRule, experts: usize) -> Self {
        Self {
            rule,
            experts,
            tokens: 0,
            routed: vec![Vec::new(); experts],
            typical: (0.0, 0),
            nearest: (0..experts).map(|_| BinaryHeap::new()).collect(),
        }
    }

    /// Adds the routing of the next tokens, of which those count that `counted` accepts.
    pub fn routed(&mut self, routing: &Routing, counted: impl Fn(usize) -> bool) {
        let k = routing.top_k;
        for (local, chosen) in routing.selected.chunks_exact(k).enumerate() {
            let token = self.tokens + local;
            if !counted(token) {
                continue;
            }
            for (slot, expert) in chosen.iter().enumerate() {
                let expert = *expert as usize;
                self.routed[expert].push((token as u32, routing.weights[local * k + slot]));
                self.typical.0 += f64::from(routing.scores[local * self.experts + expert]);
                self.typical.1 += 1;
            }
        }
        self.tokens += routing.tokens();
    }

    /// Whether an expert has too few tokens. Then [`Sampler::near`] must see all tokens again.
    pub fn wants_more(&self) -> bool {
        (0..self.experts).any(|expert| self.missing(expert) > 0)
    }

    fn missing(&self, expert: usize) -> usize {
        match self.rule.samples {
            samples if samples.tops_up() => {
                self.rule.least.saturating_sub(self.routed[expert].len())
            }
            _ => 0,
        }
    }

    /// Searches tokens from `first` on for those that came closest to cold experts. `bias` is what
    /// the router adds for ranking.
    pub fn near(
        &mut self,
        first: usize,
        routing: &Routing,
        bias: Option<&[f32]>,
        counted: impl Fn(usize) -> bool,
    ) {
        let k = routing.top_k;
        let experts = self.experts;
        let cold: Vec<(usize, usize)> =
            (0..experts).map(|e| (e, self.missing(e))).filter(|(_, n)| *n > 0).collect();
        for (local, chosen) in
            routing.selected.chunks_exact(k).enumerate().filter(|(local, _)| counted(first + local))
        {
            for (expert, missing) in &cold {
                if chosen.contains(&(*expert as u32)) {
                    continue;
                }
                let score = routing.scores[local * experts + expert];
                let rank = score + bias.map_or(0.0, |bias| bias[*expert]);
                let near = Near { rank, score, token: (first + local) as u32 };
                keep_nearest(&mut self.nearest[*expert], near, *missing);
            }
        }
    }

    /// The samples of each expert.
    pub fn finish(self, counted: impl Fn(usize) -> bool) -> Vec<ExpertSamples> {
        if self.rule.samples == CalibrateOn::AllExperts {
            return self.all_tokens(counted);
        }
        let choices: usize = self.routed.iter().map(Vec::len).sum();
        let weighing = Weighing {
            gate_power: self.rule.gate_power,
            typical_score: match self.typical {
                (_, 0) => 1.0,
                (scores, count) => (scores / count as f64) as f32,
            },
            of_all: mean_power(self.routed.iter().flatten(), self.rule.gate_power),
            cap: if self.rule.hot_cap > 0.0 {
                (self.rule.hot_cap * choices as f64 / self.experts as f64)
                    .ceil()
                    .max(self.rule.least as f64) as usize
            } else {
                usize::MAX
            },
        };
        self.routed
            .into_iter()
            .zip(self.nearest)
            .map(|(routed, nearest)| weighing.samples(&routed, nearest))
            .collect()
    }

    /// All tokens that count as samples of each expert.
    fn all_tokens(&self, counted: impl Fn(usize) -> bool) -> Vec<ExpertSamples> {
        let tokens = (0..self.tokens).filter(|token| counted(*token));
        let tokens: Vec<u32> = tokens.map(|token| token as u32).collect();
        let count = tokens.len();
        let all = ExpertSamples::evenly_weighed(tokens, Counts::default());
        let samples = self.routed.iter().map(|routed| {
            let routed = routed.len();
            let counts = Counts { routed, used: routed, topped_up: count - routed };
            ExpertSamples { counts, ..all.clone() }
        });
        samples.collect()
    }
}

/// Adds `token` to `heap`, which holds the `most` greatest with the least of them on top.
fn keep_nearest(heap: &mut BinaryHeap<Reverse<Near>>, token: Near, most: usize) {
    let token = Reverse(token);
    if heap.len() < most {
        heap.push(token);
    } else if heap.peek().is_some_and(|least| token < *least) {
        heap.pop();
        heap.push(token);
    }
}

/// How samples are weighed.
struct Weighing {
    /// The weight of a token is its gate to this power.
    gate_power: u8,
    /// The mean score of chosen experts over all tokens.
    typical_score: f32,
    /// The mean weight over the choices of all experts.
    of_all: f32,
    /// The maximum number of an expert's own tokens.
    cap: usize,
}

impl Weighing {
    /// The samples of an expert: of the tokens `routed` to it as many as the cap allows, and the
    /// `nearest` ones.
    fn samples(&self, routed: &[(u32, f32)], nearest: BinaryHeap<Reverse<Near>>) -> ExpertSamples {
        let own = if routed.is_empty() { self.of_all } else { mean_power(routed, self.gate_power) };
        let chosen = evenly(routed, self.cap);
        let counts = Counts { routed: routed.len(), used: chosen.len(), topped_up: nearest.len() };
        // A token that didn't choose the expert weighs as much as the expert's own tokens, times
        // the ratio of its score to a typical one.
        let nearest = nearest.into_iter().map(|Reverse(near)| {
            (near.token, own * (near.score / self.typical_score).clamp(0.0, 1.0))
        });
        let mut all: Vec<(u32, f32)> = chosen
            .map(|(token, gate)| (token, power(gate, self.gate_power)))
            .chain(nearest)
            .collect();
        all.sort_unstable_by_key(|(token, _)| *token);
        let (tokens, weights): (Vec<u32>, Vec<f32>) = all.into_iter().unzip();
        ExpertSamples { tokens: tokens.into(), weights: weights.into(), counts }
    }
}

fn power(gate: f32, exponent: u8) -> f32 {
    gate.powi(i32::from(exponent))
}

/// The mean over `choices`, tokens with their gates, of the gate to the power `exponent`.
fn mean_power<'c>(choices: impl IntoIterator<Item = &'c (u32, f32)>, exponent: u8) -> f32 {
    let powers: Vec<f32> = choices.into_iter().map(|(_, gate)| power(*gate, exponent)).collect();
    powers.iter().sum::<f32>() / powers.len().max(1) as f32
}

/// At most `most` of `all`, evenly spread.
fn evenly<T: Copy>(all: &[T], most: usize) -> impl ExactSizeIterator<Item = T> {
    let count = all.len().min(most);
    (0..count).map(move |i| all[i * all.len() / count])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(samples: CalibrateOn) -> SampleRule {
        SampleRule { samples, least: 2, gate_power: 1, hot_cap: 0.0 }
    }

    /// Four tokens, three experts, top-1: 0, 0, 0, 1. No token chooses expert 2.
    fn routing() -> Routing {
        Routing {
            top_k: 1,
            experts: 3,
            selected: vec![0, 0, 0, 1],
            weights: vec![0.5, 0.8, 0.6, 0.9],
            scores: vec![0.5, 0.3, 0.2, 0.8, 0.1, 0.1, 0.6, 0.05, 0.35, 0.05, 0.9, 0.05],
        }
    }

    fn samples(rule: SampleRule) -> Vec<ExpertSamples> {
        let mut sampler = Sampler::new(rule, 3);
        sampler.routed(&routing(), |_| true);
        if sampler.wants_more() {
            sampler.near(0, &routing(), None, |_| true);
        }
        sampler.finish(|_| true)
    }

    #[test]
    fn cold_experts_get_the_tokens_that_came_nearest() {
        let found = samples(rule(CalibrateOn::TopUp));
        assert_eq!(*found[0].tokens, [0, 1, 2]);
        assert_eq!(*found[0].weights, [0.5, 0.8, 0.6]);
        assert_eq!(*found[1].tokens, [0, 3]);
        assert_eq!(found[1].counts, Counts { routed: 1, used: 1, topped_up: 1 });
        // (0.5 + 0.8 + 0.6 + 0.9) / 4 is a typical score; the expert's own tokens weigh 0.9.
        assert!((found[1].weights[0] - 0.9 * 0.3 / 0.7).abs() < 1e-6);
        assert_eq!(*found[2].tokens, [0, 2]);
        assert_eq!(found[2].counts, Counts { routed: 0, used: 0, topped_up: 2 });
    }

    #[test]
    fn without_topping_up_a_cold_expert_has_nothing() {
        let found = samples(rule(CalibrateOn::Routed));
        assert_eq!(found[2], ExpertSamples::evenly_weighed(Vec::new(), Counts::default()));
        let all = samples(rule(CalibrateOn::AllExperts));
        assert!(
            all.iter().all(|expert| *expert.tokens == [0, 1, 2, 3] && *expert.weights == [1.0; 4])
        );
        assert_eq!(all[2].counts, Counts { routed: 0, used: 0, topped_up: 4 });
    }

    #[test]
    fn hot_experts_are_thinned_out() {
        let found = samples(SampleRule { hot_cap: 1.0, least: 1, ..rule(CalibrateOn::Routed) });
        assert_eq!(*found[0].tokens, [0, 1]);
        assert_eq!(found[0].counts, Counts { routed: 3, used: 2, topped_up: 0 });
    }

    #[test]
    fn routed_tokens_that_are_no_samples_weigh_nothing() {
        let mut route = Route::default();
        route.extend(10, &[0, 1, 2], &routing());
        assert_eq!(route, Route { tokens: vec![10, 11, 12], gates: vec![0.5, 0.8, 0.6] });
        let samples = |tokens| ExpertSamples::evenly_weighed(tokens, Counts::default());
        let same = Routed::new(&samples(vec![10, 11, 12]), route.clone());
        assert_eq!(
            (&same.rows, same.rows_in(&(0..3)), same.with_samples.weights[0]),
            (&None, None, 1.0)
        );
        let routed = Routed::new(&samples(vec![5, 11, 13]), route);
        assert_eq!(*routed.with_samples.tokens, [5, 10, 11, 12, 13]);
        assert_eq!(*routed.with_samples.weights, [1.0, 0.0, 1.0, 0.0, 1.0]);
        assert_eq!(routed.rows_in(&(0..5)), Some(vec![1, 2, 3]));
        assert_eq!((routed.rows_in(&(1..4)), routed.rows_in(&(3..5))), (None, Some(vec![0])));
    }

    #[test]
    fn masked_tokens_are_nobodys() {
        let mut sampler = Sampler::new(rule(CalibrateOn::TopUp), 3);
        let counted = |token: usize| token != 0;
        sampler.routed(&routing(), counted);
        sampler.near(0, &routing(), None, counted);
        assert!(sampler.finish(counted).iter().all(|expert| !expert.tokens.contains(&0)));
    }
}
