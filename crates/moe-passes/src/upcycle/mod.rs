//! Upcycling turns a dense model into an MoE that, where possible, computes the same function at
//! first.
//!
//! Komatsuzaki et al. 2212.05055 (copies), He et al. 2410.07524 (shards in virtual groups),
//! Nakamura et al. 2502.19261 (drop), Sukhbaatar et al. 2403.07816 (experts from several models),
//! LLaMA-MoE 2406.16554 and CMoE 2502.04416 (partitions).

mod average;
mod check;
mod effects;
mod experts;
mod layers;
mod options;
mod partition;
mod record;
mod routers;
mod scales;
mod streams;
mod warnings;

use moe_forward::DataSpec;
use moe_model::{Error, Expert, Family, Ffn, Kind, Model, Moe, Result};
use serde_json::Value;

use crate::idle::{idle_routers, same_source};
use crate::pass::{
    DetailsType, Inputs, LayerEdits, LayerRecord, Next, Pass, PassInfo, PassOptions, Plan,
    PlannedModel, ReportKind, Sources, Transform, as_value,
};

pub use layers::LayerChoice;
pub use options::{Init, PartitionBy, Rest, RouterInit, ScalePlacement, UpcycleOptions};
pub use record::{Clusters, SurveyedPartition, SurveyedRouter, UpcycledLayer};

use experts::Experts;
use partition::Partitions;
use routers::Routers;
use scales::Scales;

/// The warning where all experts are the same network.
const ALIKE: &str = "all experts of a layer start out as the same network, so that training routers alone gains nothing: train experts, \
     too (heal --train router,experts), and let them differ from the start (--noise-std, --init drop or --expert-model)";

/// The row of [`crate::PASSES`].
pub(crate) static INFO: PassInfo = PassInfo {
    name: "upcycle",
    about: "Turn a dense model into an MoE that starts out computing the same function",
    examples: "Examples:\n  \
        moe-convert upcycle golden/models/dense -o target/moe-8x --experts 8 --top-k 2 --dry-run\n  \
        moe-convert upcycle golden/models/dense -o target/moe-8x --experts 8 --top-k 2\n  \
        moe-convert upcycle golden/models/dense -o target/fine --experts 16 --top-k 4 --granularity 2\n  \
        moe-convert upcycle golden/models/dense -o target/by-topic --experts 8 --top-k 2 --router kmeans \\\n    \
        --data golden/text/english.calibration.txt --data golden/text/code.calibration.txt\n\n\
        docs/upcycling.md has an example for each way of making experts and routers.",
    options: PassOptions::of::<UpcycleOptions>(),
    least_options: "experts = 2\ntop-k = 1",
    targets: |family| &family.upcycles_to,
    benchmark: None,
    baseline: None,
    choice: None,
    details: Some(DetailsType::of::<UpcycledLayer>()),
    report: ReportKind::Experts { none_lost: "no expert goes" },
    // Experts that start out alike, or with parts of their own, have something to learn.
    healed_with: Some(" --train router,experts"),
    resumes_midway: false,
    decides_at_once: false,
    less_memory: "lower --data-tokens, --sequence-length or --probe-tokens",
};

impl Pass for UpcycleOptions {
    fn info(&self) -> &'static PassInfo {
        &INFO
    }

    fn options(&self) -> Value {
        as_value(&self.spelled_out())
    }

    fn inputs(&self) -> Inputs<'_> {
        let learned = DataSpec::files(&self.data).chain(self.prompts.as_deref()).collect();
        Inputs { models: &self.models, learned, ..Inputs::default() }
    }

    fn check_options(&self) -> Result<()> {
        self.check()
    }

    fn plan(&self, sources: &Sources<'_>) -> Result<Plan> {
        self.check()?;
        let dense = sources.model;
        let target = check::target(self, dense)?;
        check::models(dense, sources.others)?;
        let normalize = check::normalize(self, target)?;
        let chosen = self.layers.chosen(dense.layers.len())?;
        check::layers(&chosen, dense, target)?;
        check::shared(self, target)?;
        let upcycling = Upcycling { options: self.clone(), target, normalize, chosen };
        Plan::new(upcycling, sources, Next::Ready)
    }
}

/// The transform that upcycles a model.
struct Upcycling {
    options: UpcycleOptions,
    target: &'static Family,
    /// Whether routers normalize the gates of the chosen experts.
    normalize: bool,
    /// Whether each layer gets experts.
    chosen: Vec<bool>,
}

impl Transform for Upcycling {
    fn apply(&self, sources: &Sources<'_>, _: Option<&LayerEdits>) -> Result<PlannedModel> {
        let Self { options, target, normalize, .. } = self;
        let scales = Scales::new(options, target, *normalize);
        let effects = effects::effects(options, scales, *normalize, sources.others_differ);
        let mut warnings = warnings::warnings(options, *normalize, scales, sources);
        let mut model = sources.model.clone();
        model.family = target;
        if options.rest == Rest::Average {
            average::average(&mut model, sources.others);
        }
        let mut mixtures = Mixtures {
            upcycling: self,
            sources,
            scales,
            partitions: Partitions::new(options, target, sources.compute),
            routers: Routers::new(options, sources.model, sources.compute),
        };
        let layers = mixtures.replace(&mut model)?;
        warnings.extend(model.caveats().map(str::to_owned));
        if options.experts > 1 && idle_routers(&model, same_source)?.is_some() {
            warnings.push(ALIKE.to_owned());
        }
        Ok(mixtures.planned(PlannedModel::new(model, effects, layers, warnings)))
    }
}

/// Makes the mixtures of all layers.
struct Mixtures<'a> {
    upcycling: &'a Upcycling,
    sources: &'a Sources<'a>,
    scales: Scales,
    partitions: Partitions<'a>,
    routers: Routers<'a>,
}

impl Mixtures<'_> {
    /// Replaces the chosen layers of `model` by mixtures. Returns the records of all layers.
    fn replace(&mut self, model: &mut Model) -> Result<Vec<LayerRecord>> {
        let mut layers = Vec::with_capacity(model.layers.len());
        for (index, is_chosen) in self.upcycling.chosen.iter().enumerate() {
            if !is_chosen {
                layers.push(LayerRecord::unchanged(index));
                continue;
            }
            let (moe, record) = self.layer(index)?;
            model.layers[index].ffn = Ffn::Moe(Box::new(moe));
            layers.push(record);
        }
        Ok(layers)
    }

    /// The mixture that layer `index` becomes, and its record.
    fn layer(&mut self, index: usize) -> Result<(Moe, LayerRecord)> {
        let Upcycling { options, target, normalize, .. } = self.upcycling;
        let networks = networks(index, self.sources, target)?;
        let partition = self.partitions.layer(index, networks[0])?;
        let base = network(self.sources.model, index, target)?;
        let scales = self.scales;
        let experts = Experts { options, layer: index, networks, base, partition, scales };
        let router = self.routers.layer(index, *normalize, &base.gate.weight)?;
        let (experts, shared) = (experts.routed()?, experts.shared()?);
        let record = record::record(options, scales, index, &experts, shared.as_ref());
        Ok((Moe { router, experts, shared }, record))
    }

    /// `planned` with the surveys that the mixtures wait for.
    fn planned(mut self, planned: PlannedModel) -> PlannedModel {
        let working_bytes = self.partitions.working_bytes();
        let by_partitions = self.partitions.surveys(&mut self.routers);
        let surveys = by_partitions.into_iter().chain(self.routers.surveys()).collect();
        PlannedModel {
            surveys,
            group: self.upcycling.options.granularity,
            working_bytes,
            ..planned
        }
    }
}

/// The dense networks of layer `index` that experts are made from: those of the other models, or
/// else the base's.
fn networks<'a>(index: usize, sources: &Sources<'a>, target: &Family) -> Result<Vec<&'a Expert>> {
    match sources.others {
        [] => Ok(vec![network(sources.model, index, target)?]),
        others => others.iter().map(|model| network(model, index, target)).collect(),
    }
}

fn network<'a>(model: &'a Model, index: usize, target: &Family) -> Result<&'a Expert> {
    let Ffn::Dense(ffn) = &model.layers[index].ffn else {
        return Err(Error::new(Kind::Usage, format!("layer {index} is not a dense layer")));
    };
    if let Some(bias) = ffn.linears().iter().find_map(|l| l.bias.as_ref()) {
        let what = format!(
            "{} experts have no biases, but this feed-forward network has",
            target.model_type
        );
        return Err(Error::new(Kind::Unsupported, what)
            .tensor(bias.name())
            .remedy("no MoE family here can hold this model; if the biases are zero, drop them and mlp_bias"));
    }
    Ok(ffn)
}
