//! Merged weights. They are made when they are read, from the experts that they are sums of.

use std::sync::Arc;

use moe_forward::candle_dtype;
use moe_model::{Expert, Linear, Model, Result, Weight, WeightSource};

use crate::part::{Axis, encoded, finite_values};

/// A neuron's contribution to a merged neuron.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Gift {
    pub from: u32,
    pub to: u32,
    pub coefficient: f64,
}

/// An expert's contribution to a merged one.
#[derive(Debug, Clone)]
pub(crate) enum Share {
    /// All neurons, times a coefficient. With a permutation, neuron `permutation[place]` goes to
    /// `place`.
    All { coefficient: f64, permutation: Option<Arc<[u32]>> },
    /// Contributions of some neurons only.
    Some(Arc<[Gift]>),
}

impl Share {
    /// The contributions neuron by neuron, for an expert of `width`.
    fn gifts(&self, width: usize) -> Arc<[Gift]> {
        match self {
            Self::Some(gifts) => gifts.clone(),
            Self::All { coefficient, permutation } => {
                let gifts = (0..width).map(|place| {
                    let to = place as u32;
                    let from = permutation.as_ref().map_or(to, |permutation| permutation[place]);
                    Gift { from, to, coefficient: *coefficient }
                });
                gifts.collect()
            }
        }
    }
}

/// One projection of a merged expert: the sum of the members' shares, computed in f64 and stored in
/// the encoding of the first member.
struct Merged {
    members: Vec<(Weight, Share)>,
    axis: Axis,
}

/// The expert that `members` are merged into: each of its neurons is the sum of their
/// contributions.
pub(crate) fn merged(members: &[(&Expert, Share)]) -> Expert {
    Expert {
        gate: merged_linear(members, |e| &e.gate, Axis::Rows),
        up: merged_linear(members, |e| &e.up, Axis::Rows),
        down: merged_linear(members, |e| &e.down, Axis::Columns),
    }
}

/// One matrix of that expert, whose neurons are along `axis`.
fn merged_linear(
    members: &[(&Expert, Share)],
    linear: fn(&Expert) -> &Linear,
    axis: Axis,
) -> Linear {
    let weights =
        members.iter().map(|(expert, share)| (linear(expert).weight.clone(), share.clone()));
    let first = &linear(members[0].0).weight;
    let merged = Merged { members: weights.collect(), axis };
    Linear { weight: Weight::made(first.name(), first.dtype(), first.shape(), merged), bias: None }
}

/// Bytes that making merged weights of `model` takes while they are written. Until merging is
/// decided, these are stored weights. One is made as it is written, and another as the result is
/// compared with its source.
pub(crate) fn making_bytes(model: &Model) -> u64 {
    let experts = model.moes().flat_map(|(_, moe)| &moe.experts);
    let weights = experts.flat_map(|expert| expert.linears().map(|linear| &linear.weight));
    // The sum in f64, and one weight that is added, as it is stored and in f32.
    weights.map(|weight| 2 * (weight.bytes() + 12 * weight.elements() as u64)).max().unwrap_or(0)
}

impl WeightSource for Merged {
    fn make(&self) -> Result<Vec<u8>> {
        let first = &self.members[0].0;
        let columns = first.shape()[1];
        let width = if self.axis == Axis::Rows { first.shape()[0] } else { columns };
        let mut sums = vec![0f64; first.elements()];
        for (weight, share) in &self.members {
            let values = finite_values(weight)?;
            let gifts = share.gifts(width);
            match self.axis {
                Axis::Rows => add_rows(&mut sums, &values, columns, &gifts),
                Axis::Columns => add_columns(&mut sums, &values, columns, &gifts),
            }
        }
        let values: Vec<f32> = sums.into_iter().map(|sum| sum as f32).collect();
        encoded(&values, candle_dtype(first)?, first.name())
    }
}

fn add_rows(sums: &mut [f64], values: &[f32], columns: usize, gifts: &[Gift]) {
    for Gift { from, to, coefficient } in gifts {
        let values = &values[*from as usize * columns..][..columns];
        let sums = &mut sums[*to as usize * columns..][..columns];
        sums.iter_mut().zip(values).for_each(|(sum, x)| *sum += coefficient * f64::from(*x));
    }
}

fn add_columns(sums: &mut [f64], values: &[f32], columns: usize, gifts: &[Gift]) {
    for (sums, values) in sums.chunks_exact_mut(columns).zip(values.chunks_exact(columns)) {
        for Gift { from, to, coefficient } in gifts {
            sums[*to as usize] += coefficient * f64::from(values[*from as usize]);
        }
    }
}

/// Computed bytes that are kept in memory.
struct HeldBytes(Vec<u8>);

impl WeightSource for HeldBytes {
    fn make(&self) -> Result<Vec<u8>> {
        Ok(self.0.clone())
    }
}

/// A weight of the shape and encoding of `like` that holds `values`. Refuses values that overflow
/// the encoding.
pub(crate) fn held(values: &[f64], like: &Weight) -> Result<Weight> {
    let narrow: Vec<f32> = values.iter().map(|x| *x as f32).collect();
    let bytes = encoded(&narrow, candle_dtype(like)?, like.name())?;
    Ok(Weight::made(like.name(), like.dtype(), like.shape(), HeldBytes(bytes)))
}
