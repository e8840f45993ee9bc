//! What a mixture's output would be without one of its experts, whose tokens are rerouted.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use candle_core::{DType, Result as CandleResult, Tensor};
use moe_checkpoint::Result;
use moe_math::deferred_readback::DeferredReadback;
use moe_math::routing::{Routing, RoutingRule, route_without_each};
use moe_model::Moe;
use rayon::prelude::*;

use super::network::output_of;
use crate::context::Context;
use crate::loader::Loader;
use crate::observer::LeftOut;

/// A mixture's outputs take so much of a device at a time.
const DEVICE_BYTES: usize = 256 << 20;

/// A mixture at work.
pub(super) struct LeftOutParts<'a> {
    pub loader: Loader<'a>,
    pub index: usize,
    pub moe: &'a Moe,
    pub x: &'a Tensor,
    /// `[tokens, experts]`.
    pub logits: &'a Tensor,
    pub rule: &'a RoutingRule,
    pub routing: &'a Routing,
}

impl<'a> LeftOutParts<'a> {
    /// Leaves each expert out where it was selected. `outputs` holds experts' outputs, that for
    /// each (token, choice) in the row that `place` says; `y` is the block's output.
    ///
    /// A token that loses an expert mostly gains the next one in its order, so few more outputs are
    /// needed than the mixture has computed anyway.
    pub fn without_each(&self, outputs: &Tensor, place: &[u32], y: &Tensor) -> Result<LeftOut<'a>> {
        let of = || format!("the experts' output in layer {} without each of them", self.index);
        let anew = route_without_each(self.logits, self.rule, self.routing).context(of)?;
        let first = outputs.dim(0).context(of)? as u32;
        let further = self.further_outputs(&anew, first)?;
        let k = self.routing.top_k;
        let row = |(choice, expert): (usize, &u32)| {
            let token = choice / (k * k);
            match self.routing.selected[token * k..][..k]
                .iter()
                .position(|selected| selected == expert)
            {
                Some(choice) => place[token * k + choice],
                None => further.rows[&(token as u32, *expert)],
            }
        };
        let anew_rows: Vec<u32> = anew.selected.iter().enumerate().map(row).collect();
        let outputs =
            Tensor::cat(&Vec::from_iter(std::iter::once(outputs).chain(&further.outputs)), 0)
                .context(of)?;
        let mixtures = Mixtures {
            outputs: &outputs,
            y,
            k,
            routed: Choices { rows: place, gates: &self.routing.weights },
            anew: Choices { rows: &anew_rows, gates: &anew.weights },
        };
        let found = if y.device().is_cpu() { mixtures.on_host() } else { mixtures.on_device() };
        let Changes { errors, cosines, output_square_norms } = found.context(of)?;
        Ok(LeftOut { routing: self.routing, errors, cosines, output_square_norms })
    }

    /// Outputs that `anew` needs and the mixture hasn't computed; their rows count from `first`.
    fn further_outputs(&self, anew: &Routing, first: u32) -> Result<Further> {
        let k = self.routing.top_k;
        let mut tokens_of: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for (choice, expert) in anew.selected.iter().enumerate() {
            let token = choice / (k * k);
            if !self.routing.selected[token * k..][..k].contains(expert) {
                tokens_of.entry(*expert).or_default().push(token as u32);
            }
        }
        let mut further = Further::default();
        let mut row = first;
        for (expert, mut tokens) in tokens_of {
            tokens.dedup();
            let network = &self.moe.experts[expert as usize];
            let of = || format!("the expert of {}", network.down.weight.name());
            let select = || {
                self.x.index_select(&Tensor::from_slice(&tokens, tokens.len(), self.x.device())?, 0)
            };
            further.outputs.push(output_of(self.loader, network, &select().context(of)?)?);
            further
                .rows
                .extend(tokens.iter().zip(row..).map(|(token, row)| ((*token, expert), row)));
            row += tokens.len() as u32;
        }
        Ok(further)
    }
}

/// Outputs, and the row of each by token and expert.
#[derive(Default)]
struct Further {
    outputs: Vec<Tensor>,
    rows: HashMap<(u32, u32), u32>,
}

/// Which outputs are added, times what.
#[derive(Clone, Copy)]
struct Choices<'a> {
    rows: &'a [u32],
    gates: &'a [f32],
}

/// Mixtures of outputs, with all experts and without each.
struct Mixtures<'a> {
    /// `[rows, hidden]`
    outputs: &'a Tensor,
    /// `[tokens, hidden]`
    y: &'a Tensor,
    /// Choices of a mixture.
    k: usize,
    /// `[tokens, k]`
    routed: Choices<'a>,
    /// `[tokens, k, k]`: without the first expert, the second, and so on.
    anew: Choices<'a>,
}

/// See [`LeftOut`].
#[derive(Debug, Default)]
struct Changes {
    errors: Vec<f64>,
    cosines: Vec<f64>,
    output_square_norms: Vec<f64>,
}

impl Mixtures<'_> {
    /// In f64: the reference.
    fn on_host(&self) -> CandleResult<Changes> {
        let (k, hidden) = (self.k, self.y.dim(1)?);
        let values = |t: &Tensor| t.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
        let (outputs, y) = (values(self.outputs)?, values(self.y)?);
        let mixed = |choices: Choices<'_>, row: usize| {
            let mut sum = vec![0f64; hidden];
            for choice in row * k..(row + 1) * k {
                let gate = f64::from(choices.gates[choice]);
                let output = &outputs[choices.rows[choice] as usize * hidden..][..hidden];
                sum.iter_mut().zip(output).for_each(|(sum, f)| *sum += gate * f64::from(*f));
            }
            sum
        };
        let found = (0..y.len() / hidden).into_par_iter().map(|token| {
            let y: Vec<f64> = y[token * hidden..][..hidden].iter().map(|v| f64::from(*v)).collect();
            let routed = mixed(self.routed, token);
            let square = |v: &[f64]| v.iter().map(|v| v * v).sum::<f64>();
            let without = |choice: usize| {
                let rest = mixed(self.anew, token * k + choice);
                let change: Vec<f64> =
                    rest.iter().zip(&routed).map(|(rest, all)| rest - all).collect();
                let left: Vec<f64> = y.iter().zip(&change).map(|(y, change)| y + change).collect();
                let dot: f64 = y.iter().zip(&left).map(|(a, b)| a * b).sum();
                let norms = (square(&y) * square(&left)).sqrt();
                (square(&change), if norms > 0.0 { 1.0 - dot / norms } else { 0.0 })
            };
            (square(&y), (0..k).map(without).collect::<Vec<_>>())
        });
        let mut all = Changes::default();
        for (square, changes) in found.collect::<Vec<_>>() {
            all.output_square_norms.push(square);
            all.errors.extend(changes.iter().map(|(error, _)| error));
            all.cosines.extend(changes.iter().map(|(_, cosine)| cosine));
        }
        Ok(all)
    }

    /// In f32, some tokens at a time.
    fn on_device(&self) -> CandleResult<Changes> {
        let (tokens, hidden) = self.y.dims2()?;
        let mut parts = DeferredReadback::default();
        let block = (DEVICE_BYTES / (4 * hidden)).max(1);
        for start in (0..tokens).step_by(block) {
            let count = block.min(tokens - start);
            let y = self.y.narrow(0, start, count)?.to_dtype(DType::F32)?;
            let routed = self.mixed(self.routed, start..start + count, 1, 0)?;
            let square = |t: &Tensor| t.sqr()?.sum(1);
            let of_y = square(&y)?;
            let mut columns = vec![of_y.clone()];
            for choice in 0..self.k {
                let change =
                    (self.mixed(self.anew, start..start + count, self.k, choice)? - &routed)?;
                let left = (&y + &change)?;
                columns.extend([square(&change)?, (&y * &left)?.sum(1)?, square(&left)?]);
            }
            parts.push((), Tensor::stack(&columns, 1)?);
        }
        let mut all = Changes::default();
        for (_, values) in parts.take()? {
            for row in values.chunks_exact(1 + 3 * self.k) {
                let of_y = f64::from(row[0]);
                all.output_square_norms.push(of_y);
                for found in row[1..].chunks_exact(3) {
                    let [error, dot, of_left] = [found[0], found[1], found[2]].map(f64::from);
                    let norms = (of_y * of_left).sqrt();
                    all.errors.push(error);
                    all.cosines.push(if norms > 0.0 { 1.0 - dot / norms } else { 0.0 });
                }
            }
        }
        Ok(all)
    }

    /// The `which`-th of `each` mixtures of `tokens`, `[tokens, hidden]`.
    fn mixed(
        &self,
        choices: Choices<'_>,
        tokens: Range<usize>,
        each: usize,
        which: usize,
    ) -> CandleResult<Tensor> {
        let device = self.y.device();
        let mut sum: Option<Tensor> = None;
        for choice in 0..self.k {
            let places = || tokens.clone().map(|token| (token * each + which) * self.k + choice);
            let rows: Vec<u32> = places().map(|place| choices.rows[place]).collect();
            let gates: Vec<f32> = places().map(|place| choices.gates[place]).collect();
            let outputs =
                self.outputs.index_select(&Tensor::from_vec(rows, tokens.len(), device)?, 0)?;
            let gates = Tensor::from_vec(gates, (tokens.len(), 1), device)?;
            let weighed = outputs.to_dtype(DType::F32)?.broadcast_mul(&gates)?;
            sum = Some(match sum {
                Some(sum) => (sum + weighed)?,
                None => weighed,
            });
        }
        sum.ok_or_else(|| candle_core::Error::msg("a mixture of no experts"))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use moe_math::sampling::{choose, generator, normal};

    use super::*;

    #[test]
    fn a_device_finds_what_the_reference_does() {
        let (tokens, k, hidden, rows) = (40, 3, 6, 50);
        let mut random = generator(3, 0);
        let mut tensor = |rows: usize| {
            Tensor::from_vec(normal(rows * hidden, 1.0, &mut random), (rows, hidden), &Device::Cpu)
                .unwrap()
        };
        let (outputs, y) = (tensor(rows), tensor(tokens));
        let mut places = |count: usize| -> Vec<u32> {
            (0..count).map(|_| choose(1, rows, &mut random)[0] as u32).collect()
        };
        let (routed, anew) = (places(tokens * k), places(tokens * k * k));
        let gates = normal(tokens * k * k, 1.0, &mut generator(3, 1));
        let mixtures = Mixtures {
            outputs: &outputs,
            y: &y,
            k,
            routed: Choices { rows: &routed, gates: &gates[..tokens * k] },
            anew: Choices { rows: &anew, gates: &gates },
        };
        let (host, device) = (mixtures.on_host().unwrap(), mixtures.on_device().unwrap());
        assert_eq!(host.errors.len(), tokens * k);
        let close = |a: &[f64], b: &[f64]| {
            a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5 * b.abs().max(1.0))
        };
        assert!(close(&device.errors, &host.errors) && close(&device.cosines, &host.cosines));
        assert!(close(&device.output_square_norms, &host.output_square_norms));
    }
}
