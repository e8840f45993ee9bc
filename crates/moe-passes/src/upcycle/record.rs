//! The record of a layer that was upcycled.

use moe_math::figures::{Checked, check_share, within};
use moe_model::{Expert, SharedExpert};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::scales::Scales;
use super::{Init, Rest, RouterInit, UpcycleOptions};
use crate::pass::{
    Details, LayerDetails, LayerRecord, Network, NetworkEdit, NetworkSource, Neurons, NoiseEdit,
    ProjectionScale, RouterEdit, RouterRows, SharedEdit,
};

/// The record of a layer whose inputs were surveyed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct UpcycledLayer {
    /// The router, if its rows were made from text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub router: Option<SurveyedRouter>,
    /// The partition, if neurons were assigned by their activations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partition: Option<SurveyedPartition>,
}

impl LayerDetails for UpcycledLayer {
    const KIND: &'static str = "upcycled";

    fn check(&self) -> Checked {
        let Some(partition) = &self.partition else { return Ok(()) };
        let share = partition.shared_activation_share;
        within("partition", check_share("shared_activation_share", share))
    }
}

/// A router whose rows were made from text.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SurveyedRouter {
    /// Number of tokens that it was scaled on.
    pub tokens: usize,
    /// The length of its rows. None if it wasn't scaled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub row_length: Option<f64>,
    /// The mean entropy of routing as a share of its maximum. None if it wasn't scaled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entropy_share: Option<f64>,
    /// The clusters whose centroids are the rows. None for other rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clusters: Option<Clusters>,
}

/// Clusters of the layer's inputs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Clusters {
    /// Iterations of k-means.
    pub iterations: usize,
    /// The mean cosine of inputs with the centroid of their cluster.
    pub mean_cosine: f64,
    /// Number of tokens in each cluster.
    pub sizes: Vec<usize>,
}

/// A partition by activations.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SurveyedPartition {
    /// Number of tokens that it was found on.
    pub tokens: usize,
    /// The share of all activations that shared neurons have.
    pub shared_activation_share: f64,
}

/// Changes the details of layer `index` with `add`.
pub(super) fn note(layers: &mut [LayerRecord], index: usize, add: impl FnOnce(&mut UpcycledLayer)) {
    if let Some(record) = layers.iter_mut().find(|record| record.layer == index) {
        let mut details = record.details().unwrap_or_default();
        add(&mut details);
        record.details = Some(Details::of(details));
    }
}

/// The record of layer `index`, which gets these experts.
pub(super) fn record(
    options: &UpcycleOptions,
    scales: Scales,
    index: usize,
    experts: &[Expert],
    shared: Option<&SharedExpert>,
) -> LayerRecord {
    LayerRecord {
        layer: index,
        router: Some(router(options)),
        experts: experts
            .iter()
            .enumerate()
            .map(|(i, expert)| expert_edit(options, scales, i, expert.width()))
            .collect(),
        shared: scales
            .shared
            .zip(shared)
            .map(|(factors, shared)| shared_edit(options, factors, shared.expert.width())),
        ..LayerRecord::default()
    }
}

/// The record of expert `index`, which has this many neurons.
fn expert_edit(
    options: &UpcycleOptions,
    scales: Scales,
    index: usize,
    width: usize,
) -> NetworkEdit {
    let shards = options.granularity;
    let models = options.models.as_slice();
    let model = models.get(index / shards % models.len().max(1));
    let neurons = match (options.init, shards) {
        (Init::Partition, _) => Some(Neurons::Count(width)),
        (_, 1) => None,
        _ => Some(Neurons::Shard { index: index % shards, of: shards }),
    };
    let model = model.map(|model| model.display().to_string());
    let source = NetworkSource { model, neurons, ..NetworkSource::of(Network::Dense) };
    let noise = NoiseEdit { std: options.noise_std, share: options.noise_fraction };
    NetworkEdit {
        scale: scales.routed,
        redrawn: (options.init == Init::Drop).then_some(options.drop_fraction),
        noise: options.has_noise().then_some(noise),
        ..NetworkEdit::of(vec![source])
    }
}

/// The record of the shared expert, which has this many neurons.
fn shared_edit(options: &UpcycleOptions, factors: ProjectionScale, width: usize) -> SharedEdit {
    let neurons = match (options.init, options.shared_experts) {
        (Init::Partition, _) => Some(Neurons::Count(width)),
        (_, 1) => None,
        (_, copies) => Some(Neurons::Copies(copies)),
    };
    let base = NetworkSource { neurons, ..NetworkSource::of(Network::Dense) };
    let of_all = options.rest == Rest::Average;
    let models = options.models.iter().filter(|_| of_all);
    let mut sources: Vec<NetworkSource> = models
        .map(|model| NetworkSource {
            model: Some(model.display().to_string()),
            weight: Some(1.0 / options.models.len() as f64),
            ..base.clone()
        })
        .collect();
    if sources.is_empty() {
        sources.push(base);
    }
    let network = NetworkEdit { scale: factors, ..NetworkEdit::of(sources) };
    SharedEdit { network, gate: Some(0.0) }
}

/// The record of routers.
fn router(options: &UpcycleOptions) -> RouterEdit {
    let std = options.router_std();
    let seed = options.seed;
    let entropy = Some(options.router_entropy).filter(|share| *share != 0.0);
    let rows = match options.router {
        RouterInit::Normal | RouterInit::Zeros => RouterRows::Normal { std, seed },
        RouterInit::Orthogonal => RouterRows::Orthogonal { std, seed },
        RouterInit::Kmeans => RouterRows::Kmeans { seed, entropy },
        RouterInit::Prompts => RouterRows::Prompts { entropy },
        RouterInit::CheapEmbed => RouterRows::CheapEmbed { entropy },
        RouterInit::Activations => RouterRows::Activations { entropy },
    };
    RouterEdit { rows, repeated: options.granularity }
}
