//! Deals the neurons of a dense network out among experts: LLaMA-MoE (2406.16554), CMoE
//! (2502.04416).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock};

use candle_core::{DType, Device, Tensor};
use moe_forward::{Observer, neuron_activations, to_f32};
use moe_math::kmeans::{ClusterError, KmeansOptions, Metric, balanced_kmeans};
use moe_math::{Compute, sampling};
use moe_model::{Error, Expert, Family, Kind, Model, Result};
use rayon::prelude::*;

use super::record::{SurveyedPartition, SurveyedRouter, note};
use super::routers::{Routers, check_inputs, data_source, failed, own_directions, scaled_rows};
use super::streams::stream;
use super::{Init, PartitionBy, RouterInit, UpcycleOptions};
use crate::part::{Neurons, Partition, Surveyed};
use crate::pass::{LayerRecord, Survey, SurveyText, Surveyor};
use crate::usage::usage;

const MAX_ITERATIONS: usize = 50;
/// A token's active neurons are its ⌈width / this⌉ strongest, but at least [`MIN_ACTIVE`].
const ACTIVE_SHARE: usize = 32;
/// CMoE's K_a (§4.1).
const MIN_ACTIVE: usize = 10;

/// Partitions of all layers.
pub(super) struct Partitions<'a> {
    options: &'a UpcycleOptions,
    compute: &'a Compute,
    has_shared: bool,
    layers: BTreeMap<usize, Arc<Sets>>,
}

/// The partition of one layer.
#[derive(Clone)]
pub(super) struct LayerPartition {
    sets: Arc<Sets>,
}

impl LayerPartition {
    /// The neurons of routed expert `index`.
    pub fn neurons(&self, index: usize) -> Neurons {
        Neurons::Set(self.sets.clone(), index, self.sets.plan.each)
    }

    /// The neurons of the shared expert.
    pub fn shared(&self) -> Neurons {
        Neurons::Set(self.sets.clone(), self.sets.plan.experts, self.sets.plan.shared)
    }
}

/// The numbers of neurons that experts get, and how these are chosen.
#[derive(Debug, Clone, Copy)]
struct Deal {
    experts: usize,
    each: usize,
    shared: usize,
    by: PartitionBy,
    seed: u64,
    stream: u64,
}

/// The sets of one layer. They are found when they are first needed, or by a survey.
struct Sets {
    plan: Deal,
    network: Expert,
    compute: Compute,
    found: OnceLock<Vec<Vec<u32>>>,
    /// Held while sets are found, so that two threads don't find them twice.
    finding: Mutex<()>,
}

impl<'a> Partitions<'a> {
    pub fn new(options: &'a UpcycleOptions, target: &Family, compute: &'a Compute) -> Self {
        let has_shared = target.has_shared_expert();
        Self { options, compute, has_shared, layers: BTreeMap::new() }
    }

    /// The partition of `network` in layer `index`; None unless the options ask for a partition.
    pub fn layer(&mut self, index: usize, network: &Expert) -> Result<Option<LayerPartition>> {
        if self.options.init != Init::Partition {
            return Ok(None);
        }
        let sets = Arc::new(Sets {
            plan: self.deal(index, network)?,
            network: network.clone(),
            compute: self.compute.clone(),
            found: OnceLock::new(),
            finding: Mutex::new(()),
        });
        self.layers.insert(index, sets.clone());
        Ok(Some(LayerPartition { sets }))
    }

    /// How the neurons of `network` in layer `index` are dealt out.
    fn deal(&self, index: usize, network: &Expert) -> Result<Deal> {
        let width = network.width();
        let experts = self.options.experts;
        let shared = self.shared_width(width, experts)?;
        let each = width.saturating_sub(shared) / experts;
        if each == 0 || each * experts + shared != width {
            return Err(self.uneven(network));
        }
        Ok(Deal {
            experts,
            each,
            shared,
            by: self.options.partition_by,
            seed: self.options.seed,
            stream: stream(index) + 1,
        })
    }

    /// The error where the neurons of `network` can't be dealt out evenly.
    fn uneven(&self, network: &Expert) -> Error {
        let width = network.width();
        let experts = self.options.experts;
        let of_them = self
            .options
            .shared_width
            .map_or(String::new(), |shared| format!(", {shared} of them shared,"));
        let fitting = (2..=64).filter(|n| {
            let shared = self.shared_width(width, *n).unwrap_or(width);
            width > shared && (width - shared).is_multiple_of(*n)
        });
        let fitting: Vec<_> = fitting.map(|n| n.to_string()).collect();
        let remedy = if fitting.is_empty() {
            "give another --shared-width, which leaves a multiple of --experts".to_owned()
        } else {
            format!("give --experts as one of {}", fitting.join(", "))
        };
        let what =
            format!("{width} neurons{of_them} can't be dealt out evenly to {experts} experts");
        usage(&["--experts", "--shared-width"], what, remedy).tensor(network.gate.weight.name())
    }

    /// The width of the shared expert: by default about a quarter, such that the rest can be dealt
    /// out evenly.
    fn shared_width(&self, width: usize, experts: usize) -> Result<usize> {
        match (self.has_shared, self.options.shared_width) {
            // A width for it was refused before.
            (false, _) => Ok(0),
            (true, Some(shared)) if shared == 0 || shared >= width => Err(usage(
                &["--shared-width"],
                format!("--shared-width {shared} of {width} neurons"),
                "give a number between, which leaves a multiple of --experts",
            )),
            (true, Some(shared)) => Ok(shared),
            (true, None) => Ok(width - (width - width.div_ceil(4)) / experts * experts),
        }
    }

    /// Bytes that finding the partition of a layer holds while weights are written.
    pub fn working_bytes(&self) -> u64 {
        let by_weights = self.layers.values().filter(|sets| sets.plan.by == PartitionBy::Weights);
        let rows = by_weights
            .map(|sets| 2 * 4 * sets.network.gate.weight.elements() as u64)
            .max()
            .unwrap_or(0);
        // Rows of gate and up joined, the rows that are dealt out, and two copies within k-means.
        4 * rows
    }

    /// The sweep that finds the partitions; None where they don't go by activations. It also fills
    /// in the cells of `routers` where routers go by activations.
    pub fn surveys(self, routers: &mut Routers<'_>) -> Option<Survey> {
        let options = self.options;
        if options.init != Init::Partition || options.partition_by != PartitionBy::Activations {
            return None;
        }
        let rows = options.router == RouterInit::Activations;
        let layers = self.layers.into_iter();
        let layers = layers
            .map(|(layer, sets)| (layer, (sets, rows.then(|| routers.cell(layer)))))
            .collect();
        let surveyor = ActivationSurvey {
            layers,
            entropy: options.router_entropy,
            compute: self.compute.clone(),
            found: BTreeMap::new(),
        };
        Some(Survey { text: data_source(options), surveyor: Box::new(surveyor) })
    }
}

impl Partition for Sets {
    fn sets(&self) -> Result<&[Vec<u32>]> {
        let _finding = self.finding.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if self.found.get().is_none() {
            let sets = self.find()?;
            let _ = self.found.set(sets);
        }
        Ok(self.found.get().expect("it was just set"))
    }
}

impl Sets {
    fn find(&self) -> Result<Vec<Vec<u32>>> {
        let Deal { by, seed, stream, .. } = self.plan;
        match by {
            PartitionBy::Random => {
                let width = self.network.width();
                let order = sampling::choose(width, width, &mut sampling::generator(seed, stream));
                let order: Vec<u32> = order.into_iter().map(|n| n as u32).collect();
                let mut sets: Vec<Vec<u32>> =
                    order[self.plan.shared..].chunks(self.plan.each).map(<[u32]>::to_vec).collect();
                sets.push(order[..self.plan.shared].to_vec());
                Ok(sorted(sets))
            }
            PartitionBy::Weights => self.by_weights(),
            PartitionBy::Activations => {
                Err(Error::new(Kind::Numeric, "the survey found no partition")
                    .tensor(self.network.gate.weight.name()))
            }
        }
    }

    /// Groups neurons whose gate and up rows have the same direction; those with the longest rows
    /// are shared.
    fn by_weights(&self) -> Result<Vec<Vec<u32>>> {
        let name = self.network.gate.weight.name();
        let gate = to_f32(&self.network.gate.weight, &self.compute)?;
        let up = to_f32(&self.network.up.weight, &self.compute)?;
        let rows = Tensor::cat(&[gate, up], 1).map_err(|e| failed(name, e))?;
        let lengths =
            rows.sqr().and_then(|r| r.sum(1)?.to_vec1::<f32>()).map_err(|e| failed(name, e))?;
        self.plan.clustered(&rows, &lengths, Metric::Cosine, name)
    }
}

impl Deal {
    /// Takes out the `shared` neurons of the greatest `weight`, and groups the others, which are
    /// rows of `features`, in balanced clusters.
    fn clustered(
        &self,
        features: &Tensor,
        weight: &[f32],
        metric: Metric,
        name: &str,
    ) -> Result<Vec<Vec<u32>>> {
        let (shared, rest) = self.heaviest(weight);
        let points = Tensor::new(rest.as_slice(), features.device())
            .and_then(|index| features.index_select(&index, 0))
            .map_err(|e| failed(name, e))?;
        let options = KmeansOptions { metric, max_iterations: MAX_ITERATIONS };
        let mut random = sampling::generator(self.seed, self.stream);
        let clusters = balanced_kmeans(&points, self.experts, self.each, &options, &mut random)
            .map_err(|e| self.ungrouped(e).tensor(name))?;
        let mut sets = vec![Vec::with_capacity(self.each); self.experts];
        rest.iter()
            .zip(&clusters.assignment)
            .for_each(|(neuron, set)| sets[*set as usize].push(*neuron));
        sets.push(shared);
        Ok(sorted(sets))
    }

    /// The `shared` neurons of the greatest `weight`, and the others, ascending.
    fn heaviest(&self, weight: &[f32]) -> (Vec<u32>, Vec<u32>) {
        let mut order: Vec<u32> = (0..weight.len() as u32).collect();
        // The sort is stable, so that the lower index comes first among equals.
        order.sort_by(|a, b| weight[*b as usize].total_cmp(&weight[*a as usize]));
        let mut rest = order.split_off(self.shared);
        rest.sort_unstable();
        (order, rest)
    }

    /// The error where neurons can't be clustered.
    fn ungrouped(&self, error: ClusterError) -> Error {
        let remedy = match self.by {
            PartitionBy::Activations => "choose another --partition-by, or give more --data",
            PartitionBy::Random | PartitionBy::Weights => "choose another --partition-by",
        };
        Error::new(Kind::Numeric, format!("cannot group neurons: {error}")).remedy(remedy)
    }
}

fn sorted(mut sets: Vec<Vec<u32>>) -> Vec<Vec<u32>> {
    sets.iter_mut().for_each(|set| set.sort_unstable());
    sets
}

/// Finds partitions, and routers that fit them, from activations.
struct ActivationSurvey {
    layers: BTreeMap<usize, (Arc<Sets>, Option<Surveyed>)>,
    entropy: f64,
    compute: Compute,
    found: BTreeMap<usize, (SurveyedPartition, Option<SurveyedRouter>)>,
}

impl Surveyor for ActivationSurvey {
    fn begin(&mut self, _: &SurveyText) -> Result<()> {
        Ok(())
    }

    fn working_bytes(&self, model: &Model, tokens: usize) -> u64 {
        let widths = self.layers.values().map(|(sets, _)| sets.network.width());
        let width = widths.max().unwrap_or(0);
        // Activations, and their rows on the host; which neurons are active, the same as points,
        // and two copies within k-means.
        4 * (tokens * (6 * width + model.hidden / 4)) as u64
    }

    fn record(&self, layers: &mut [LayerRecord]) {
        for (index, (partition, router)) in &self.found {
            note(layers, *index, |details| {
                details.partition = Some(partition.clone());
                details.router = router.clone().or(details.router.take());
            });
        }
    }
}

impl Observer for ActivationSurvey {
    fn ffn_input(&mut self, layer: usize, x: &Tensor) -> Result<()> {
        let Some((sets, rows)) = self.layers.get(&layer).cloned() else { return Ok(()) };
        check_inputs(layer, &x.to_dtype(DType::F32).map_err(|e| failed("FFN inputs", e))?)?;
        let tokens = self.activations(&sets, x)?;
        let width = sets.network.width();
        let active =
            active_neurons(&tokens, width.div_ceil(ACTIVE_SHARE).max(MIN_ACTIVE).min(width));
        let rates: Vec<f32> = active.chunks_exact(tokens.len()).map(|of| of.iter().sum()).collect();
        let name = sets.network.gate.weight.name();
        let features = Tensor::from_vec(active, (width, tokens.len()), &Device::Cpu)
            .and_then(|t| t.to_device(&self.compute.device))
            .map_err(|e| failed(name, e))?;
        let found = sets.plan.clustered(&features, &rates, Metric::Euclidean, name)?;
        let mut router = None;
        if let Some(cell) = rows {
            let shares = self.output_shares(&sets, &found, &tokens)?;
            let (rows, scaled) = self.rows(layer, &sets, shares, x)?;
            router = Some(scaled);
            let _ = cell.set(rows);
        }
        let partition = SurveyedPartition {
            tokens: tokens.len(),
            shared_activation_share: share(&rates, &found[sets.plan.experts]),
        };
        self.found.insert(layer, (partition, router));
        let _ = sets.found.set(found);
        Ok(())
    }
}

impl ActivationSurvey {
    /// The activations of the network's neurons on each of the inputs `x`.
    fn activations(&self, sets: &Sets, x: &Tensor) -> Result<Vec<Vec<f32>>> {
        let activations = neuron_activations(&sets.network, x, &self.compute)?;
        let values = activations.to_dtype(DType::F32).and_then(|a| a.to_vec2());
        values.map_err(|e| failed(sets.network.gate.weight.name(), e))
    }

    /// For each token, each routed expert's share of the network's output, Σ h² ‖down‖² over its
    /// neurons; the shared expert is left out. `tokens` are activations.
    fn output_shares(
        &self,
        sets: &Sets,
        found: &[Vec<u32>],
        tokens: &[Vec<f32>],
    ) -> Result<Vec<f32>> {
        let down = &sets.network.down.weight;
        let lengths = to_f32(down, &self.compute)?.sqr().and_then(|d| d.sum(0)?.to_vec1());
        let lengths: Vec<f32> = lengths.map_err(|e| failed(down.name(), e))?;
        let routed = &found[..sets.plan.experts];
        let shares = tokens.par_iter().flat_map_iter(|h| shares_of_token(h, routed, &lengths));
        Ok(shares.collect())
    }

    /// A router row for each expert: the covariance of an input's own direction with the expert's
    /// share of the network's output, one of `shares`.
    fn rows(
        &self,
        layer: usize,
        sets: &Sets,
        shares: Vec<f32>,
        x: &Tensor,
    ) -> Result<(Vec<f32>, SurveyedRouter)> {
        let name = sets.network.down.weight.name();
        let x = x.to_dtype(DType::F32).map_err(|e| failed(name, e))?;
        let rows = covariance(shares, sets.plan.experts, &x).map_err(|e| failed(name, e))?;
        scaled_rows(&rows, &x, self.entropy, layer)
    }
}

/// The share of each of the sets of neurons `experts` in Σ h² ‖down‖²; ‖down‖² are `lengths`.
fn shares_of_token(h: &[f32], experts: &[Vec<u32>], lengths: &[f32]) -> Vec<f32> {
    let masses = experts.iter().map(|neurons| {
        neurons.iter().map(|n| h[*n as usize].powi(2) * lengths[*n as usize]).sum::<f32>()
    });
    let masses: Vec<f32> = masses.collect();
    let all = masses.iter().sum::<f32>().max(f32::MIN_POSITIVE);
    masses.into_iter().map(|m| m / all).collect()
}

/// The covariance of the own directions of `x` with `shares`, `[tokens, experts]`.
fn covariance(shares: Vec<f32>, experts: usize, x: &Tensor) -> candle_core::Result<Tensor> {
    let shape = (shares.len() / experts, experts);
    let shares = Tensor::from_vec(shares, shape, x.device())?;
    let centred = shares.broadcast_sub(&shares.mean_keepdim(0)?)?;
    centred.t()?.contiguous()?.matmul(&own_directions(x)?)
}

/// `[width, tokens]`: 1 where a neuron is among the `count` strongest of a token (CMoE's ATopK), 0
/// elsewhere.
fn active_neurons(tokens: &[Vec<f32>], count: usize) -> Vec<f32> {
    let width = tokens.first().map_or(0, Vec::len);
    let strongest: Vec<Vec<u32>> = tokens.par_iter().map(|h| strongest(h, count)).collect();
    let mut active = vec![0f32; width * tokens.len()];
    for (token, neurons) in strongest.iter().enumerate() {
        neurons.iter().for_each(|neuron| active[*neuron as usize * tokens.len() + token] = 1.0);
    }
    active
}

fn share(rates: &[f32], set: &[u32]) -> f64 {
    let of: f64 = set.iter().map(|n| f64::from(rates[*n as usize])).sum();
    of / rates.iter().map(|r| f64::from(*r)).sum::<f64>().max(1.0)
}

/// The `count` neurons of the greatest |h|.
fn strongest(h: &[f32], count: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..h.len() as u32).collect();
    if count < h.len() {
        order.select_nth_unstable_by(count, |a, b| {
            h[*b as usize].abs().total_cmp(&h[*a as usize].abs()).then(a.cmp(b))
        });
    }
    order.truncate(count);
    order
}
