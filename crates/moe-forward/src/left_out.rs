//! What a mixture's output would be without one of its experts, whose tokens are routed anew.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};
use moe_checkpoint::Result;
use moe_math::routing::{Routing, Rule, route_without_each};
use moe_model::Moe;
use rayon::prelude::*;

use crate::context::Context;
use crate::ffn::output_of;
use crate::loader::Loader;

/// For each position of `Routing::selected`, what leaving that expert out does to its token's output.
#[derive(Debug, Clone)]
pub struct LeftOut<'a> {
    /// Where tokens go with all experts.
    pub routing: &'a Routing,
    /// ‖y − y₋ⱼ‖²
    pub errors: Vec<f64>,
    /// 1 − cos(y, y₋ⱼ)
    pub cosines: Vec<f64>,
    /// ‖y‖² of each token.
    pub output_square_norms: Vec<f64>,
}

/// A mixture at work.
pub(crate) struct Parts<'a> {
    pub loader: Loader<'a>,
    pub index: usize,
    pub moe: &'a Moe,
    pub x: &'a Tensor,
    /// `[tokens, experts]`.
    pub logits: &'a Tensor,
    pub rule: &'a Rule,
    pub routing: &'a Routing,
}

impl<'a> Parts<'a> {
    /// Leaves each expert out where it was selected. `outputs` holds experts' outputs, that for each (token, choice) in
    /// the row that `place` says; `y` is the block's output.
    ///
    /// A token that loses an expert mostly gains the next one in its order, so few more outputs are needed than the
    /// mixture has computed anyway.
    pub fn without_each(&self, outputs: &Tensor, place: &[u32], y: &Tensor) -> Result<LeftOut<'a>> {
        let of = || format!("the experts' output in layer {} without each of them", self.index);
        let anew = route_without_each(self.logits, self.rule, self.routing).context(of)?;
        let further = self.further_outputs(&anew)?;
        let hidden = y.dim(1).context(of)?;
        let rows = |t: &Tensor| t.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
        let (outputs, y) = (rows(outputs).context(of)?, rows(y).context(of)?);
        let k = self.routing.top_k;
        let output = |token: usize, expert: u32| -> &[f32] {
            let chosen = &self.routing.selected[token * k..][..k];
            match chosen.iter().position(|e| *e == expert) {
                Some(choice) => &outputs[place[token * k + choice] as usize * hidden..][..hidden],
                None => further.row(token as u32, expert),
            }
        };
        let mixed = |token: usize, routing: &Routing, row: usize| {
            let mut sum = vec![0f64; hidden];
            for choice in row * k..(row + 1) * k {
                let gate = f64::from(routing.weights[choice]);
                let output = output(token, routing.selected[choice]);
                sum.iter_mut().zip(output).for_each(|(sum, f)| *sum += gate * f64::from(*f));
            }
            sum
        };
        let found = (0..self.routing.tokens()).into_par_iter().map(|token| {
            let y: Vec<f64> = y[token * hidden..][..hidden].iter().map(|v| f64::from(*v)).collect();
            let routed = mixed(token, self.routing, token);
            let square = |v: &[f64]| v.iter().map(|v| v * v).sum::<f64>();
            let without = |choice: usize| {
                let rest = mixed(token, &anew, token * k + choice);
                let change: Vec<f64> = rest.iter().zip(&routed).map(|(rest, all)| rest - all).collect();
                let left: Vec<f64> = y.iter().zip(&change).map(|(y, change)| y + change).collect();
                let dot: f64 = y.iter().zip(&left).map(|(a, b)| a * b).sum();
                let norms = (square(&y) * square(&left)).sqrt();
                (square(&change), if norms > 0.0 { 1.0 - dot / norms } else { 0.0 })
            };
            (square(&y), (0..k).map(without).collect::<Vec<_>>())
        });
        let found: Vec<(f64, Vec<(f64, f64)>)> = found.collect();
        let changes = || found.iter().flat_map(|(_, changes)| changes);
        Ok(LeftOut {
            routing: self.routing,
            errors: changes().map(|(error, _)| *error).collect(),
            cosines: changes().map(|(_, cosine)| *cosine).collect(),
            output_square_norms: found.iter().map(|(square, _)| *square).collect(),
        })
    }

    /// Outputs that `anew` needs and the mixture hasn't computed.
    fn further_outputs(&self, anew: &Routing) -> Result<Further> {
        let k = self.routing.top_k;
        let mut tokens_of: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for (choice, expert) in anew.selected.iter().enumerate() {
            let token = choice / (k * k);
            if !self.routing.selected[token * k..][..k].contains(expert) {
                tokens_of.entry(*expert).or_default().push(token as u32);
            }
        }
        let mut further = Further::default();
        for (expert, mut tokens) in tokens_of {
            tokens.dedup();
            let network = &self.moe.experts[expert as usize];
            let of = || format!("the expert of {}", network.down.weight.name());
            let select = || self.x.index_select(&Tensor::from_slice(&tokens, tokens.len(), self.x.device())?, 0);
            let output = output_of(self.loader, network, &select().context(of)?)?;
            let rows = output.to_dtype(DType::F32).and_then(|output| output.to_vec2::<f32>()).context(of)?;
            further.rows.extend(tokens.iter().zip(rows).map(|(token, row)| ((*token, expert), row)));
        }
        Ok(further)
    }
}

/// Outputs by token and expert.
#[derive(Default)]
struct Further {
    rows: BTreeMap<(u32, u32), Vec<f32>>,
}

impl Further {
    fn row(&self, token: u32, expert: u32) -> &[f32] {
        &self.rows[&(token, expert)]
    }
}
