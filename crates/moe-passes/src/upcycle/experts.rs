//! The experts of one layer.

use std::collections::BTreeSet;
use std::sync::Arc;

use moe_math::sampling;
use moe_model::{Expert, Linear, Result, SharedExpert, Weight};

use super::partition::LayerPartition;
use super::scales::Scales;
use super::streams::stream;
use super::{Init, Rest, UpcycleOptions};
use crate::part::{Axis, Neurons, Noise, Part, Redraw, RowSelection, mean, rows};
use crate::pass::ProjectionScale;
use crate::usage::usage;

/// Random streams of an expert: for each of three projections one for noise and one for redrawn
/// neurons; then one for the choice of these neurons.
const STREAMS: u64 = 7;

/// The materials of the experts of one layer.
pub(super) struct Experts<'a> {
    pub options: &'a UpcycleOptions,
    pub layer: usize,
    /// The network of each model that gives its own; without such models, the base's.
    pub networks: Vec<&'a Expert>,
    /// The network of the model that is upcycled.
    pub base: &'a Expert,
    pub partition: Option<LayerPartition>,
    pub scales: Scales,
}

impl Experts<'_> {
    /// The routed experts, in order.
    pub fn routed(&self) -> Result<Vec<Expert>> {
        let options = self.options;
        self.check_granularity()?;
        self.check_dropped()?;
        // Equal experts share their weights, so that these are read and computed once.
        let differs = options.has_noise() || options.init != Init::Copy;
        let distinct =
            if differs { options.experts } else { options.granularity * self.networks.len() };
        let made: Vec<Expert> = (0..distinct).map(|i| self.expert(i)).collect();
        Ok((0..options.experts).map(|i| made[i % distinct].clone()).collect())
    }

    /// Refuses a network that can't be cut into as many shards as --granularity asks for.
    fn check_granularity(&self) -> Result<()> {
        let granularity = self.options.granularity;
        let width = self.networks[0].width();
        if width.is_multiple_of(granularity) {
            return Ok(());
        }
        let what =
            format!("--granularity {granularity} doesn't divide the feed-forward width {width}");
        let divisors: Vec<_> =
            (1..=64).filter(|g| width.is_multiple_of(*g)).map(|g| g.to_string()).collect();
        let remedy = format!("give one of {}", divisors.join(", "));
        Err(usage(&["--granularity"], what, remedy).tensor(self.networks[0].gate.weight.name()))
    }

    /// Refuses a share of neurons to redraw that is less than one neuron of an expert.
    fn check_dropped(&self) -> Result<()> {
        let options = self.options;
        let width = self.networks[0].width();
        let partition = self.partition.as_ref();
        let size = partition.map_or(width / options.granularity, |p| p.neurons(0).count(width));
        let drops = options.init == Init::Drop && options.drop_fraction > 0.0;
        if !drops || self.dropped_neurons(size) > 0 {
            return Ok(());
        }
        let share = options.drop_fraction;
        let what =
            format!("a share of {share} of an expert's {size} neurons is less than one neuron");
        let remedy = "raise --drop-fraction, or leave out --init drop";
        Err(usage(&["--drop-fraction", "--init"], what, remedy))
    }

    fn expert(&self, index: usize) -> Expert {
        let options = self.options;
        let (copy, shard) = (index / options.granularity, index % options.granularity);
        let network = self.networks[copy % self.networks.len()];
        let width = network.width();
        let neurons = match &self.partition {
            Some(partition) => partition.neurons(index),
            None if options.granularity == 1 => Neurons::All,
            None => {
                let size = width / options.granularity;
                Neurons::Range(shard * size..(shard + 1) * size)
            }
        };
        self.make(
            network,
            &neurons,
            self.scales.routed,
            Some(stream(self.layer) + 1 + STREAMS * index as u64),
        )
    }

    /// The shared expert; None where the family has none. Its gate is zero, so that σ gives ½.
    pub fn shared(&self) -> Result<Option<SharedExpert>> {
        let Some(factors) = self.scales.shared else { return Ok(None) };
        let averaged;
        let network = match self.options.rest {
            Rest::Base => self.base,
            Rest::Average => {
                averaged = mean_network(&self.networks);
                &averaged
            }
        };
        let like = &network.gate.weight;
        let gate = rows(
            format!("layer {} shared expert's gate", self.layer),
            RowSelection::Zeros,
            [1, like.shape()[1]],
            1,
            like,
        )?;
        let expert = match (&self.partition, self.options.shared_experts) {
            (Some(partition), _) => self.make(network, &partition.shared(), factors, None),
            (None, 1) => self.make(network, &Neurons::All, factors, None),
            (None, copies) => self.make(network, &Neurons::Copies(copies), factors, None),
        };
        Ok(Some(SharedExpert { expert, gate: Some(gate) }))
    }

    /// Some neurons of `network`, scaled. With a stream, also with the noise and redrawn neurons
    /// that make experts differ.
    fn make(
        &self,
        network: &Expert,
        neurons: &Neurons,
        factors: ProjectionScale,
        stream: Option<u64>,
    ) -> Expert {
        let dropped =
            stream.and_then(|stream| self.dropped(neurons.count(network.width()), stream + 6));
        let part = |weight: &Weight, axis, factor, projection: u64| {
            let redraw = stream.zip(dropped.clone()).map(|(stream, neurons)| {
                let stream = stream + 3 + projection;
                Redraw { neurons, seed: self.options.seed, stream }
            });
            let noise = stream.and_then(|stream| self.noise(stream + projection));
            let base = weight.clone();
            let neurons = neurons.clone();
            let part = Part { base, axis, neurons, factor, redraw, noise };
            Linear { weight: part.weight(), bias: None }
        };
        Expert {
            gate: part(&network.gate.weight, Axis::Rows, factors.gate_and_up, 0),
            up: part(&network.up.weight, Axis::Rows, factors.gate_and_up, 1),
            down: part(&network.down.weight, Axis::Columns, factors.down, 2),
        }
    }

    fn noise(&self, stream: u64) -> Option<Noise> {
        let UpcycleOptions { noise_std, noise_fraction, seed, .. } = *self.options;
        self.options.has_noise().then_some(Noise {
            std: noise_std,
            fraction: noise_fraction,
            seed,
            stream,
        })
    }

    /// The number of neurons to redraw: r·width, rounded.
    fn dropped_neurons(&self, width: usize) -> usize {
        (self.options.drop_fraction * width as f64).round() as usize
    }

    /// The neurons that are redrawn, the same for gate, up and down (2502.19261 §3.1).
    fn dropped(&self, width: usize, stream: u64) -> Option<Arc<BTreeSet<usize>>> {
        let count = self.dropped_neurons(width);
        (self.options.init == Init::Drop && count > 0).then(|| {
            let mut random = sampling::generator(self.options.seed, stream);
            Arc::new(sampling::choose(count, width, &mut random).into_iter().collect())
        })
    }
}

/// The mean of networks of one shape.
pub(super) fn mean_network(networks: &[&Expert]) -> Expert {
    Expert {
        gate: mean_linear(networks.iter().map(|network| &network.gate)),
        up: mean_linear(networks.iter().map(|network| &network.up)),
        down: mean_linear(networks.iter().map(|network| &network.down)),
    }
}

fn mean_linear<'a>(linears: impl Iterator<Item = &'a Linear>) -> Linear {
    Linear { weight: mean(linears.map(|linear| linear.weight.clone()).collect()), bias: None }
}
