//! Computes a mixture's output without one of its experts, with that expert's tokens rerouted.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use candle_core::{DType, Result as CandleResult, Tensor};
use moe_checkpoint::Result;
use moe_math::deferred_readback::DeferredReadback;
use moe_math::routing::{Routing, RoutingRule, route_without_each};
use moe_model::Moe;
use rayon::prelude::*;

use super::network::output_of;
use super::parts::select_rows;
use crate::context::Context;
use crate::loader::Loader;
use crate::observer::LeftOut;

/// Maximum size of the intermediate outputs on a device, in bytes.
const DEVICE_BYTES: usize = 256 << 20;

/// A mixture whose experts have run.
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
    /// Leaves out each expert where it was selected. The output of each (token, choice) is the row
    /// `place` of `outputs`; `y` is the block's output.
    ///
    /// A token that loses an expert usually gains the next one in its order, so few outputs are
    /// needed that the mixture hasn't computed yet.
    pub fn without_each(&self, outputs: &Tensor, place: &[u32], y: &Tensor) -> Result<LeftOut<'a>> {
        let rerouted =
            route_without_each(self.logits, self.rule, self.routing).context(|| self.name())?;
        let first = outputs.dim(0).context(|| self.name())? as u32;
        let further = self.further_outputs(&rerouted, first)?;
        let rerouted_rows = self.rows_without_each(&rerouted, place, &further);
        let outputs = further.appended_to(outputs).context(|| self.name())?;
        let mixtures = Mixtures {
            outputs: &outputs,
            y,
            k: self.routing.top_k,
            routed: MixtureChoices { rows: place, gates: &self.routing.weights },
            rerouted: MixtureChoices { rows: &rerouted_rows, gates: &rerouted.weights },
        };
        let found = if y.device().is_cpu() { mixtures.on_host() } else { mixtures.on_device() };
        let Changes { errors, cosines, output_square_norms } = found.context(|| self.name())?;
        Ok(LeftOut { routing: self.routing, errors, cosines, output_square_norms })
    }

    fn name(&self) -> String {
        format!("the experts' output in layer {} without each of them", self.index)
    }

    /// Returns the experts that a token was routed to.
    fn selected(&self, token: usize) -> &[u32] {
        let k = self.routing.top_k;
        &self.routing.selected[token * k..][..k]
    }

    /// Returns the row of the output of each choice in `rerouted`, the routing without each expert.
    fn rows_without_each(&self, rerouted: &Routing, place: &[u32], further: &Further) -> Vec<u32> {
        let k = self.routing.top_k;
        let choices = rerouted.selected.iter().enumerate();
        choices
            .map(|(choice, expert)| {
                let token = choice / (k * k);
                match self.selected(token).iter().position(|selected| selected == expert) {
                    Some(choice) => place[token * k + choice],
                    None => further.rows[&(token as u32, *expert)],
                }
            })
            .collect()
    }

    /// Returns for each expert the tokens that it gains in `rerouted`, once for each expert that
    /// they lose.
    fn gained(&self, rerouted: &Routing) -> BTreeMap<u32, Vec<u32>> {
        let k = self.routing.top_k;
        let mut tokens_of: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for (choice, expert) in rerouted.selected.iter().enumerate() {
            let token = choice / (k * k);
            if !self.selected(token).contains(expert) {
                tokens_of.entry(*expert).or_default().push(token as u32);
            }
        }
        tokens_of
    }

    /// Computes the outputs that `rerouted` needs and the mixture hasn't computed. Their rows count
    /// from `first`.
    fn further_outputs(&self, rerouted: &Routing, first: u32) -> Result<Further> {
        let mut further = Further::default();
        let mut row = first;
        for (expert, mut tokens) in self.gained(rerouted) {
            tokens.dedup();
            let network = &self.moe.experts[expert as usize];
            let x = select_rows(self.x, &tokens)
                .context(|| format!("the expert of {}", network.down.weight.name()))?;
            further.outputs.push(output_of(self.loader, network, &x)?);
            further
                .rows
                .extend(tokens.iter().zip(row..).map(|(token, row)| ((*token, expert), row)));
            row += tokens.len() as u32;
        }
        Ok(further)
    }
}

/// Additional outputs, and the row of each by token and expert.
#[derive(Default)]
struct Further {
    outputs: Vec<Tensor>,
    rows: HashMap<(u32, u32), u32>,
}

impl Further {
    /// Appends these outputs to `outputs`.
    fn appended_to(&self, outputs: &Tensor) -> CandleResult<Tensor> {
        let all: Vec<&Tensor> = std::iter::once(outputs).chain(&self.outputs).collect();
        Tensor::cat(&all, 0)
    }
}

/// Rows of the outputs to sum, and the gate of each.
#[derive(Clone, Copy)]
struct MixtureChoices<'a> {
    rows: &'a [u32],
    gates: &'a [f32],
}

/// Mixtures of outputs, with all experts and without each one.
struct Mixtures<'a> {
    /// `[rows, hidden]`
    outputs: &'a Tensor,
    /// `[tokens, hidden]`
    y: &'a Tensor,
    /// Number of choices in a mixture.
    k: usize,
    /// `[tokens, k]`
    routed: MixtureChoices<'a>,
    /// `[tokens, k, k]`: without the first expert, the second, and so on.
    rerouted: MixtureChoices<'a>,
}

/// The fields of [`LeftOut`] that are computed.
#[derive(Debug, Default)]
struct Changes {
    errors: Vec<f64>,
    cosines: Vec<f64>,
    output_square_norms: Vec<f64>,
}

impl Changes {
    /// Adds the result of [`Mixtures::columns`] for one token.
    fn add(&mut self, columns: &[f32]) {
        let of_y = f64::from(columns[0]);
        self.output_square_norms.push(of_y);
        for found in columns[1..].chunks_exact(3) {
            let [error, dot, of_left] = [found[0], found[1], found[2]].map(f64::from);
            self.errors.push(error);
            self.cosines.push(cosine_distance(dot, of_y, of_left));
        }
    }
}

/// Returns 1 − cos of two vectors with this `dot` product and these squared norms; 0 if one of them
/// is 0.
fn cosine_distance(dot: f64, square: f64, other: f64) -> f64 {
    let norms = (square * other).sqrt();
    if norms > 0.0 { 1.0 - dot / norms } else { 0.0 }
}

fn square(v: &[f64]) -> f64 {
    v.iter().map(|v| v * v).sum()
}

/// Values of [`Mixtures`], copied to the host.
struct HostValues {
    outputs: Vec<f32>,
    y: Vec<f32>,
    hidden: usize,
}

impl HostValues {
    fn read(mixtures: &Mixtures<'_>) -> CandleResult<Self> {
        let hidden = mixtures.y.dim(1)?;
        Ok(Self { outputs: values(mixtures.outputs)?, y: values(mixtures.y)?, hidden })
    }

    /// Returns the mixture number `row` of `choices`, which have `k` entries each.
    fn mixed(&self, choices: MixtureChoices<'_>, row: usize, k: usize) -> Vec<f64> {
        let mut sum = vec![0f64; self.hidden];
        for choice in row * k..(row + 1) * k {
            let gate = f64::from(choices.gates[choice]);
            let row = choices.rows[choice] as usize;
            let output = &self.outputs[row * self.hidden..][..self.hidden];
            sum.iter_mut().zip(output).for_each(|(sum, f)| *sum += gate * f64::from(*f));
        }
        sum
    }
}

fn values(tensor: &Tensor) -> CandleResult<Vec<f32>> {
    tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}

impl Mixtures<'_> {
    /// Computes the changes in f64, as the reference does.
    fn on_host(&self) -> CandleResult<Changes> {
        let host = HostValues::read(self)?;
        let tokens = (0..host.y.len() / host.hidden).into_par_iter();
        let found: Vec<_> = tokens.map(|token| self.token_on_host(&host, token)).collect();
        let mut all = Changes::default();
        for (square, changes) in found {
            all.output_square_norms.push(square);
            all.errors.extend(changes.iter().map(|(error, _)| error));
            all.cosines.extend(changes.iter().map(|(_, cosine)| cosine));
        }
        Ok(all)
    }

    /// Returns the squared norm of a token's output, and for each choice left out the squared
    /// change and the cosine distance.
    fn token_on_host(&self, host: &HostValues, token: usize) -> (f64, Vec<(f64, f64)>) {
        let y = &host.y[token * host.hidden..][..host.hidden];
        let y: Vec<f64> = y.iter().map(|v| f64::from(*v)).collect();
        let routed = host.mixed(self.routed, token, self.k);
        let changes = (0..self.k).map(|choice| {
            let rest = host.mixed(self.rerouted, token * self.k + choice, self.k);
            let change: Vec<f64> = rest.iter().zip(&routed).map(|(rest, all)| rest - all).collect();
            let left: Vec<f64> = y.iter().zip(&change).map(|(y, change)| y + change).collect();
            let dot: f64 = y.iter().zip(&left).map(|(a, b)| a * b).sum();
            (square(&change), cosine_distance(dot, square(&y), square(&left)))
        });
        let changes = changes.collect();
        (square(&y), changes)
    }

    /// Computes the changes in f32, in blocks of tokens.
    fn on_device(&self) -> CandleResult<Changes> {
        let (tokens, hidden) = self.y.dims2()?;
        let mut parts = DeferredReadback::default();
        let block = (DEVICE_BYTES / (4 * hidden)).max(1);
        for start in (0..tokens).step_by(block) {
            parts.push((), self.columns(start..tokens.min(start + block))?);
        }
        let mut all = Changes::default();
        for (_, values) in parts.take()? {
            values.chunks_exact(1 + 3 * self.k).for_each(|columns| all.add(columns));
        }
        Ok(all)
    }

    /// Returns the squared norm of the output of each of `tokens`, then for each choice left out
    /// the squared norm of the change, the dot product of both outputs, and the squared norm of the
    /// new output: `[tokens, 1 + 3 k]`.
    fn columns(&self, tokens: Range<usize>) -> CandleResult<Tensor> {
        let y = self.y.narrow(0, tokens.start, tokens.len())?.to_dtype(DType::F32)?;
        let routed = self.mixed(self.routed, tokens.clone(), 1, 0)?;
        let mut columns = vec![y.sqr()?.sum(1)?];
        for choice in 0..self.k {
            let change = (self.mixed(self.rerouted, tokens.clone(), self.k, choice)? - &routed)?;
            let left = (&y + &change)?;
            columns.extend([change.sqr()?.sum(1)?, (&y * &left)?.sum(1)?, left.sqr()?.sum(1)?]);
        }
        Tensor::stack(&columns, 1)
    }

    /// Returns the `which`-th of `each` mixtures of `tokens`, `[tokens, hidden]`.
    fn mixed(
        &self,
        choices: MixtureChoices<'_>,
        tokens: Range<usize>,
        each: usize,
        which: usize,
    ) -> CandleResult<Tensor> {
        let device = self.y.device();
        let mut sum: Option<Tensor> = None;
        for choice in 0..self.k {
            let (rows, gates): (Vec<u32>, Vec<f32>) = tokens
                .clone()
                .map(|token| (token * each + which) * self.k + choice)
                .map(|place| (choices.rows[place], choices.gates[place]))
                .unzip();
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
    fn changes_on_a_device_are_those_of_the_reference() {
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
        let (routed, rerouted) = (places(tokens * k), places(tokens * k * k));
        let gates = normal(tokens * k * k, 1.0, &mut generator(3, 1));
        let mixtures = Mixtures {
            outputs: &outputs,
            y: &y,
            k,
            routed: MixtureChoices { rows: &routed, gates: &gates[..tokens * k] },
            rerouted: MixtureChoices { rows: &rerouted, gates: &gates },
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
