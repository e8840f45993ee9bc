//! The common part of pruning and merging as passes: plan, decide, and compare with a baseline.

use std::sync::Arc;

use moe_model::{Ffn, Model, Moe};

use super::expert_reducer::{ExpertReducer, decide_now};
use super::mtp::with_mtp;
use super::{Method, ReduceOptions, Reduced, Size, random_model};
use crate::pass::{
    Baseline, BenchmarkedModel, DecidedLayer, Effect, Kept, LayerEdits, LayerRecord, LayerSweep,
    NetworkEdit, Next, PlannedModel, Sources,
};

/// The baseline of passes that leave fewer experts.
pub(crate) const BASELINE: Baseline = Baseline {
    name: "random choice",
    measured: "Beside it stands a random choice of as many experts: where it is as good, the method has decided nothing.",
    unmeasured: "No random baseline was measured (`--no-baseline`).",
};

/// The options of a benchmark that halves the experts of `model`. `method` is an option in TOML.
pub(crate) fn fewer(method: &str, model: &BenchmarkedModel) -> String {
    format!("{method}\nexperts = {}\nno-super-expert-guard = true", model.experts / 2)
}

/// The transform of pruning and merging.
pub(crate) struct Reduction {
    pub options: ReduceOptions,
    pub size: Size,
    /// A phrase that says what becomes of experts, for the effect on the function.
    pub why: String,
}

impl Reduction {
    /// The model with `size` experts in each layer.
    pub fn apply(&self, source: &Model, edits: Option<&LayerEdits>) -> PlannedModel {
        let Self { options, size, why } = self;
        let mut model = source.clone();
        let mut layers = Vec::new();
        let decided = |index, moe: &Moe| match edits.and_then(|edits| edits.layers.get(&index)) {
            Some(DecidedLayer { ffn, record, .. }) => (ffn.clone(), record.clone()),
            None => stand_in(index, moe, size.after),
        };
        for (index, moe) in source.moes() {
            let (ffn, record) = decided(index, moe);
            model.layers[index].ffn = ffn;
            layers.push(record);
        }
        let kept = if size.keeps_all() { Kept::Exactly } else { Kept::No };
        let mut effects = vec![Effect::new("experts", kept, why)];
        effects.extend(with_mtp(&mut model, options.mtp, decided, &mut layers));
        let mut warnings: Vec<String> = model.caveats().map(str::to_owned).collect();
        warnings.extend(options.keeps_all(size));
        PlannedModel::new(model, effects, layers, warnings)
    }

    /// A random choice of as many experts; None where no baseline is wanted, or where all experts
    /// stay.
    pub fn baseline(&self, source: &Model) -> Option<Model> {
        let wanted = !self.options.no_baseline && !self.size.keeps_all();
        wanted.then(|| random_model(source, self.size.after, self.options.calibration.seed))
    }

    /// The open step of a plan: a sweep where there is text for one, else a decision at once.
    pub fn next(&self, method: Arc<dyn Method>, sources: &Sources<'_>) -> Next {
        let options = self.options.clone();
        let size = self.size.clone();
        if options.calibration.data.is_empty() {
            Next::Decide(Box::new(move |sources| decide_now(&*method, &options, &size, sources)))
        } else {
            let reducer = ExpertReducer::new(method, &options, size, sources);
            Next::Layers(LayerSweep::new(&self.options.calibration, reducer))
        }
    }
}

/// A stand-in of the right size until the layer is decided: its first `count` experts.
fn stand_in(index: usize, moe: &Moe, count: usize) -> (Ffn, LayerRecord) {
    let layer = Reduced::unmerged(0..count, Vec::new()).decided(index, moe, None);
    (layer.ffn, LayerRecord { experts: vec![NetworkEdit::default(); count], ..layer.record })
}
