//! Routing tokens to experts: scores, groups of experts, top-k and the applied weights.

use candle_core::{DType, Result, Tensor, bail};
use half::{bf16, f16};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ops;

/// Rows that a thread takes at a time.
const ROWS: usize = 1024;

/// The experts of each token, and their weights.
#[derive(Debug, Clone, PartialEq)]
pub struct Routing {
    /// Number of routed experts.
    pub experts: usize,
    /// Number of experts that each token uses.
    pub top_k: usize,
    /// `[tokens, top_k]`, in descending order of weight; of equals the lower index comes first.
    pub selected: Vec<u32>,
    /// `[tokens, top_k]`, the weights as they are applied.
    pub weights: Vec<f32>,
    /// `[tokens, experts]`, the scores of all experts: softmax or σ of the logits.
    pub scores: Vec<f32>,
}

impl Routing {
    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.selected.len() / self.top_k.max(1)
    }

    /// Number of tokens that each expert gets.
    pub fn counts(&self) -> Vec<u64> {
        let mut counts = vec![0; self.experts];
        for &expert in &self.selected {
            counts[expert as usize] += 1;
        }
        counts
    }

    /// For each expert, the ascending positions in `selected` that hold it.
    pub fn slots_by_expert(&self) -> Vec<Vec<u32>> {
        let mut slots = vec![Vec::new(); self.experts];
        for (slot, &expert) in self.selected.iter().enumerate() {
            slots[expert as usize].push(slot as u32);
        }
        slots
    }
}

/// The function from a router's logits to its scores s.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Scoring {
    /// Softmax over the experts.
    Softmax,
    /// σ of each logit.
    Sigmoid,
}

/// The function from the choice scores of a group's experts to the group's score.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum GroupScore {
    /// The largest (DeepSeek-V2, 2405.04434 §2.1.2).
    Max,
    /// The sum of the two largest (DeepSeek-V3, 2412.19437 §2.1.2).
    TopTwoSum,
}

impl GroupScore {
    /// The score of a group whose two largest choice scores are these.
    fn of(self, [first, second]: [f32; 2]) -> f32 {
        match self {
            Self::TopTwoSum if second > f32::NEG_INFINITY => first + second,
            Self::TopTwoSum | Self::Max => first,
        }
    }
}

/// Groups of consecutive experts. Only experts of the best groups can be selected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Groups {
    /// Number of groups.
    pub count: usize,
    /// Number of groups that are kept.
    pub kept: usize,
    /// The score that groups are ranked by.
    pub score: GroupScore,
}

/// How a router's logits become a [`Routing`].
///
/// s = softmax or σ of the logits, and c = s + bias. Groups are ranked by c, and the worse ones
/// dropped. The `top_k` experts with the largest c are selected. Their weights are s, divided by
/// their sum if `normalize`, times `scale`. All of it is in f32; at the end the weights are rounded
/// to `gates`.
#[derive(Debug, Clone, PartialEq)]
pub struct RoutingRule {
    /// The function from logits to scores s.
    pub scoring: Scoring,
    /// Expert correction bias, `[experts]`: added for selection, not to the weights.
    pub bias: Option<Vec<f32>>,
    /// Groups of experts; None if any expert can be selected.
    pub groups: Option<Groups>,
    /// Number of experts that each token uses.
    pub top_k: usize,
    /// Whether the selected experts' weights are divided by their sum.
    pub normalize: bool,
    /// Factor of the weights.
    pub scale: f64,
    /// The dtype that weights are rounded to: F32, BF16 or F16.
    pub gates: DType,
}

/// Prevents a division by zero if all scores underflowed, as in transformers.
const MIN_SUM: f32 = 1e-20;

impl RoutingRule {
    /// Softmax, then top-k: rule A of transformers' Mixtral, Qwen-MoE and OLMoE.
    pub fn softmax(top_k: usize, normalize: bool) -> Self {
        Self {
            scoring: Scoring::Softmax,
            bias: None,
            groups: None,
            top_k,
            normalize,
            scale: 1.0,
            gates: DType::F32,
        }
    }

    fn check(&self, experts: usize, live: usize) -> Result<()> {
        if self.top_k > live {
            bail!("{live} experts are too few for a top-k of {}", self.top_k);
        }
        if let Some(bias) = self.bias.as_ref().filter(|bias| bias.len() != experts) {
            bail!("a bias of {} values for {experts} experts", bias.len());
        }
        match self.groups {
            Some(Groups { count, kept, .. })
                if count == 0 || !experts.is_multiple_of(count) || kept > count =>
            {
                bail!("{experts} experts don't make {count} equal groups of which {kept} are kept")
            }
            _ => Ok(()),
        }
    }
}

/// Routes by `rule`; `logits` is `[tokens, experts]`.
///
/// # Errors
/// For a rule that doesn't fit this number of experts, or if the device fails.
pub fn route(logits: &Tensor, rule: &RoutingRule) -> Result<Routing> {
    route_masked(logits, rule, None)
}

/// Like [`route`], but as if the experts that are `masked` didn't exist: the routing after they are
/// pruned.
///
/// A softmax runs over the remaining experts only. A group's score is that of its remaining
/// experts. If the kept groups have fewer than top-k experts left, the best of the other groups
/// fill up.
///
/// # Errors
/// As for [`route`], and if fewer than top-k experts remain.
///
/// # Panics
/// If the length of `masked` isn't the number of experts.
pub fn route_masked(
    logits: &Tensor,
    rule: &RoutingRule,
    masked: Option<&[bool]>,
) -> Result<Routing> {
    let (_, experts) = logits.dims2()?;
    assert!(masked.is_none_or(|masked| masked.len() == experts), "a mask for each expert");
    let live: Vec<u32> =
        (0..experts as u32).filter(|e| masked.is_none_or(|masked| !masked[*e as usize])).collect();
    rule.check(experts, live.len())?;
    let scores = scores(logits, rule.scoring, masked)?;
    Ok(chosen(scores, rule, experts, |chooser, _| chooser.live.clone_from(&live)))
}

/// The weights of `routing`, `[tokens, top_k]`, as a differentiable function of the `logits` that
/// it was made from. The choice of experts is fixed.
///
/// # Errors
/// For logits of another shape, or if the device fails.
pub fn gates(logits: &Tensor, rule: &RoutingRule, routing: &Routing) -> Result<Tensor> {
    let scores = score(&logits.to_dtype(DType::F32)?, rule.scoring)?;
    let selected =
        Tensor::from_slice(&routing.selected, (routing.tokens(), routing.top_k), logits.device())?;
    let chosen = scores.gather(&selected, 1)?;
    let weights = if rule.normalize {
        chosen.broadcast_div(&(chosen.sum_keepdim(1)? + f64::from(MIN_SUM))?)?
    } else {
        chosen
    };
    (weights * f64::from(rule.scale as f32))?.to_dtype(rule.gates)?.to_dtype(DType::F32)
}

/// Scores `[tokens, experts]` of logits, in f32.
///
/// # Errors
/// If the device fails.
pub fn score(logits: &Tensor, scoring: Scoring) -> Result<Tensor> {
    match scoring {
        Scoring::Softmax => ops::softmax(logits),
        Scoring::Sigmoid => candle_nn::ops::sigmoid(logits),
    }
}

/// For each position of `routing.selected` a row: its token, rerouted by `rule` with that expert
/// masked.
///
/// # Errors
/// As for [`route_masked`].
pub fn route_without_each(
    logits: &Tensor,
    rule: &RoutingRule,
    routing: &Routing,
) -> Result<Routing> {
    let (experts, top_k) = (routing.experts, routing.top_k);
    rule.check(experts, experts - 1)?;
    let logits = logits.to_dtype(DType::F32)?;
    let tokens: Vec<u32> = (0..routing.selected.len()).map(|slot| (slot / top_k) as u32).collect();
    let mut masked = logits
        .index_select(&Tensor::new(tokens, logits.device())?, 0)?
        .flatten_all()?
        .to_vec1::<f32>()?;
    for (row, expert) in masked.chunks_exact_mut(experts).zip(&routing.selected) {
        row[*expert as usize] = f32::NEG_INFINITY;
    }
    let masked = Tensor::from_vec(masked, (routing.selected.len(), experts), logits.device())?;
    let scores = scores(&masked, rule.scoring, None)?;
    Ok(chosen(scores, rule, experts, |chooser, row| {
        chooser.live.clear();
        chooser.live.extend((0..experts as u32).filter(|e| *e != routing.selected[row]));
    }))
}

/// Routes tokens with these `scores`, row by row. `enter` tells a chooser which experts a row may
/// choose.
fn chosen(
    scores: Vec<f32>,
    rule: &RoutingRule,
    experts: usize,
    enter: impl Fn(&mut Chooser<'_>, usize) + Sync,
) -> Routing {
    let parts = scores.par_chunks(experts * ROWS).enumerate().map(|(part, scores)| {
        let mut chooser = Chooser::new(rule, experts);
        let (mut selected, mut weights) = (Vec::new(), Vec::new());
        for (row, scores) in scores.chunks_exact(experts).enumerate() {
            enter(&mut chooser, part * ROWS + row);
            chooser.push(scores, &mut selected, &mut weights);
        }
        (selected, weights)
    });
    let parts: Vec<(Vec<u32>, Vec<f32>)> = parts.collect();
    let selected = parts.iter().flat_map(|(selected, _)| selected).copied().collect();
    let weights = parts.iter().flat_map(|(_, weights)| weights).copied().collect();
    Routing { experts, top_k: rule.top_k, selected, weights, scores }
}

/// `[tokens, experts]` in f32, row by row.
fn scores(logits: &Tensor, scoring: Scoring, masked: Option<&[bool]>) -> Result<Vec<f32>> {
    let mut logits = logits.to_dtype(DType::F32)?.contiguous()?;
    if let Some(masked) = masked {
        let floor: Vec<f32> =
            masked.iter().map(|m| if *m { f32::NEG_INFINITY } else { 0.0 }).collect();
        logits = logits.broadcast_add(&Tensor::from_vec(floor, masked.len(), logits.device())?)?;
    }
    score(&logits, scoring)?.flatten_all()?.to_vec1()
}

/// Chooses the experts of one token after another, with reused buffers.
struct Chooser<'r> {
    rule: &'r RoutingRule,
    /// Experts that may be chosen, ascending.
    live: Vec<u32>,
    order: Vec<u32>,
    /// The choice scores c of all experts.
    choice: Vec<f32>,
    /// For each group, whether it is dropped; empty without groups.
    dropped: Vec<bool>,
}

/// The value of `dtype` that is nearest to `value`.
fn rounded(value: f32, dtype: DType) -> f32 {
    match dtype {
        DType::BF16 => bf16::from_f32(value).to_f32(),
        DType::F16 => f16::from_f32(value).to_f32(),
        _ => value,
    }
}

impl<'r> Chooser<'r> {
    fn new(rule: &'r RoutingRule, experts: usize) -> Self {
        Self {
            rule,
            live: Vec::new(),
            order: Vec::new(),
            choice: vec![0.0; experts],
            dropped: vec![],
        }
    }

    /// Adds the experts of the token with these `scores`, and their weights.
    fn push(&mut self, scores: &[f32], selected: &mut Vec<u32>, weights: &mut Vec<f32>) {
        let rule = self.rule;
        let chosen = self.choose(scores);
        let sum: f32 = chosen.iter().map(|e| scores[*e as usize]).sum();
        let divisor = if rule.normalize { sum + MIN_SUM } else { 1.0 };
        selected.extend_from_slice(chosen);
        weights.extend(
            chosen
                .iter()
                .map(|e| rounded(scores[*e as usize] / divisor * rule.scale as f32, rule.gates)),
        );
    }

    /// The experts of the token with these `scores`, in descending order of score.
    fn choose(&mut self, scores: &[f32]) -> &[u32] {
        self.choice.copy_from_slice(scores);
        for (choice, bias) in self.choice.iter_mut().zip(self.rule.bias.iter().flatten()) {
            *choice += bias;
        }
        if let Some(groups) = self.rule.groups {
            self.drop_groups(groups);
        }
        let top_k = self.rule.top_k;
        let choice = &self.choice;
        let dropped = &self.dropped;
        let size = choice.len() / dropped.len().max(1);
        let is_dropped = |e: u32| dropped.get(e as usize / size).is_some_and(|d| *d);
        self.order.clone_from(&self.live);
        if top_k < self.order.len() {
            self.order.select_nth_unstable_by(top_k, |a, b| {
                is_dropped(*a)
                    .cmp(&is_dropped(*b))
                    .then_with(|| choice[*b as usize].total_cmp(&choice[*a as usize]))
                    .then(a.cmp(b))
            });
        }
        let chosen = &mut self.order[..top_k];
        chosen.sort_unstable_by(|a, b| {
            scores[*b as usize].total_cmp(&scores[*a as usize]).then(a.cmp(b))
        });
        chosen
    }

    fn drop_groups(&mut self, groups: Groups) {
        let size = self.choice.len() / groups.count;
        // The two largest choice scores among each group's live experts.
        let mut best = vec![[f32::NEG_INFINITY; 2]; groups.count];
        for &expert in &self.live {
            let score = self.choice[expert as usize];
            let [first, second] = &mut best[expert as usize / size];
            if score > *first {
                (*first, *second) = (score, *first);
            } else if score > *second {
                *second = score;
            }
        }
        let mut order: Vec<usize> = (0..groups.count).collect();
        order.sort_by(|a, b| groups.score.of(best[*b]).total_cmp(&groups.score.of(best[*a])));
        self.dropped.clear();
        self.dropped.resize(groups.count, false);
        for group in &order[groups.kept..] {
            self.dropped[*group] = true;
        }
    }
}

#[cfg(test)]
mod tests;
