//! Distillation turns a mixture of experts into a dense model.
//!
//! It goes layer by layer in one sweep over text: neurons of the experts are selected (2605.28207)
//! and scaled by their measured gates, or experts are averaged, and the down projection may be
//! fitted to the mixture's output (2510.14436). Shared experts stay whole. Only feed-forward blocks
//! change.

mod block;
mod distiller;
mod errors;
mod mean;
mod neurons;
mod observe;
mod options;
mod record;
mod ridge;
mod score;
mod select;
mod stage;
mod student;
mod training;
mod weights;

use moe_model::{Family, Ffn, Model, Moe, Result};
use serde_json::Value;

use crate::pass::{
    Baseline, BenchmarkedModel, DetailsType, Effect, Inputs, Kept, LayerEdits, LayerRecord,
    LayerSweep, Next, Outputs, Pass, PassInfo, PassOptions, Plan, PlannedModel, ReportKind,
    Sources, Transform, as_value,
};

pub use options::{DistillOptions, Down, Forced, Init};
pub use record::{DistilledLayer, DistilledPart, DownFit, Look, PartSource, Trained};
pub use score::Score;
pub use select::Select;
pub use training::Training;

use distiller::Distiller;
use options::shaped;
use stage::TrainingStage;
use student::mean_of_experts;

/// The row of [`crate::PASSES`].
pub(crate) static INFO: PassInfo = PassInfo {
    name: "distill",
    about: "Turn an MoE into a true dense model that stock loaders know",
    examples: "Examples:\n  \
        moe-convert distill golden/models/moe -o target/dense --data-tokens 4096 \\\n    \
        --data english=golden/text/english.calibration.txt --data code=golden/text/code.calibration.txt\n  \
        moe-convert distill golden/models/moe -o target/wide --width 1024 --down ridge \\\n    \
        --data-tokens 8192 --data golden/text/english.calibration.txt \\\n    \
        --held-out golden/text/english.heldout.txt\n\n\
        docs/distillation.md is the guide.",
    options: PassOptions::of::<DistillOptions>(),
    least_options: "data = [\"text\"]",
    targets: |family| &family.distills_to,
    benchmark: Some(benchmark),
    baseline: Some(Baseline {
        name: "mean of the experts",
        measured: "Beside it stands the mean of the experts at the same width, neurons aligned: the usual starting point.",
        unmeasured: "The mean of the experts was not measured beside it.",
    }),
    choice: None,
    details: Some(DetailsType::of::<DistilledLayer>()),
    report: ReportKind::Dense,
    healed_with: None,
    resumes_midway: true,
    decides_at_once: false,
    less_memory: "lower --data-tokens, --sequence-length, --held-out-tokens or --probe-tokens",
};

/// The options of the benchmark: it fits the down projection where there is enough text, four
/// tokens that aren't held out for each neuron.
fn benchmark(model: &BenchmarkedModel) -> String {
    let down = if model.tokens >= 5 * model.active_width { "ridge" } else { "measured" };
    format!("down = \"{down}\"")
}

impl Pass for DistillOptions {
    fn info(&self) -> &'static PassInfo {
        &INFO
    }

    fn options(&self) -> Value {
        as_value(self)
    }

    fn inputs(&self) -> Inputs<'_> {
        Inputs::of_text(&self.calibration.data, self.measuring.text(&self.calibration))
    }

    fn outputs(&self) -> Outputs<'_> {
        Outputs { plan: None, training: self.training.trains() }
    }

    fn check_options(&self) -> Result<()> {
        self.check_values()
    }

    fn plan(&self, sources: &Sources<'_>) -> Result<Plan> {
        let width = self.check(sources.model)?;
        let target = self.target(sources.model, width)?;
        let sweep = LayerSweep {
            stages: TrainingStage::all(self, sources),
            ..LayerSweep::new(&self.calibration, Distiller::new(self, width, sources))
        };
        let distillation = Distillation { options: self.clone(), width, target };
        Plan::new(distillation, sources, Next::Layers(sweep))
    }
}

/// The transform that replaces mixtures by dense networks.
struct Distillation {
    options: DistillOptions,
    /// The number of neurons of each layer.
    width: usize,
    target: &'static Family,
}

impl Transform for Distillation {
    fn apply(&self, sources: &Sources<'_>, edits: Option<&LayerEdits>) -> Result<PlannedModel> {
        let source = sources.model;
        let width = self.width;
        let mut model = self.dense(source);
        let mut layers = Vec::new();
        for (index, _) in source.moes() {
            let decided = edits.and_then(|edits| edits.layers.get(&index));
            if let Some(decided) = decided {
                model.layers[index].ffn = decided.ffn.clone();
            }
            let record = decided.map(|decided| decided.record.clone());
            layers.push(record.unwrap_or_else(|| LayerRecord::unchanged(index)));
        }
        let warnings =
            filled_up(source, width).into_iter().chain(layers.iter().filter_map(diverged));
        let warnings = warnings
            .chain(self.options.training.warning())
            .chain(model.caveats().map(str::to_owned))
            .collect();
        let effects = effects(source, width, &layers);
        Ok(PlannedModel::new(model, effects, layers, warnings))
    }

    fn baseline(&self, source: &Model, edits: &LayerEdits) -> Result<Option<Model>> {
        let DistillOptions { init, down, no_baseline, .. } = self.options;
        if no_baseline
            || (init, down) == (Init::Mean, Down::Measured)
            || !source.moes().all(|(_, moe)| self.has_room_for_mean(moe))
        {
            return Ok(None);
        }
        let mut model = self.dense(source);
        for (index, moe) in source.moes() {
            let layer = edits.layers.get(&index);
            let details = layer.and_then(|layer| layer.record.details::<DistilledLayer>());
            let record = details.expect("every mixture was decided");
            let network = mean_of_experts(moe, &record.gates, record.shared_gate, self.width)?;
            model.layers[index].ffn = Ffn::Dense(Box::new(network));
        }
        Ok(Some(model))
    }
}

impl Distillation {
    /// `source` in the target family, with dense layers of the right shapes.
    fn dense(&self, source: &Model) -> Model {
        let mut model = shaped(source, self.width);
        model.family = self.target;
        model
    }

    /// Whether the shared expert and the mean of the others fit into the width of the result.
    fn has_room_for_mean(&self, moe: &Moe) -> bool {
        options::shared_width(moe) + moe.experts[0].width() <= self.width
    }
}

/// A warning that training stopped because it diverged.
fn diverged(layer: &LayerRecord) -> Option<String> {
    let step =
        layer.details::<DistilledLayer>()?.trained.iter().find_map(|trained| trained.diverged)?;
    let index = layer.layer;
    Some(format!(
        "the loss of layer {index} is not finite in step {step}: the best weights before it are kept; lower --relative-learning-rate"
    ))
}

/// A warning where layers that were dense before are padded with zeros to `width` neurons.
fn filled_up(source: &Model, width: usize) -> Option<String> {
    let dense = source.layers.iter().filter_map(|layer| layer.ffn.dense());
    let narrow = dense.filter(|network| network.width() < width).count();
    (narrow > 0).then(|| {
        format!("{narrow} layers that were dense before are filled up with zeros: a dense family has one width for all")
    })
}

fn effects(source: &Model, width: usize, layers: &[LayerRecord]) -> Vec<Effect> {
    let mut effects = vec![experts_effect(width, layers)];
    if !source.mtp.is_empty() {
        let why = "layers for multi-token prediction are left out: they read states of the original model";
        effects.push(Effect::new("multi-token prediction", Kept::Exactly, why));
    }
    effects
}

/// The effect of replacing the experts of `layers` by networks of `width` neurons.
fn experts_effect(width: usize, layers: &[LayerRecord]) -> Effect {
    let mixtures = layers.len();
    let decided: Vec<Kept> =
        layers.iter().filter_map(|layer| Some(layer.details::<DistilledLayer>()?.kept)).collect();
    let all_decided = decided.len() == mixtures;
    let (kept, why) = if all_decided && decided.iter().all(|kept| *kept == Kept::Exactly) {
        let why = "every neuron is there once, and its gates always sum to a power of two";
        (Kept::Exactly, why.to_owned())
    } else if all_decided && !decided.contains(&Kept::No) {
        let why = "every neuron is there once, times the sum of its gates, which rounds in the stored dtype";
        (Kept::Approximately, why.to_owned())
    } else {
        let why = format!(
            "the experts of {mixtures} layers become one network of {width} neurons in each"
        );
        (Kept::No, why)
    };
    Effect::new("experts", kept, why)
}
