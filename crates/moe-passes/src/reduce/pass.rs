//! What pruning and merging do alike as passes: plan, decide, and measure beside.

use std::sync::Arc;

use moe_model::{Ffn, Model, Moe, Result};

use super::expert_reducer::{ExpertReducer, decide_now};
use super::mtp::with_mtp;
use super::{Method, ReduceOptions, Reduced, Size, random_model};
use crate::pass::{
    Baseline, BenchmarkedModel, DecidedLayer, Effect, Kept, LayerEdits, LayerPass, LayerRecord,
    Plan, Sources,
};

/// What fewer experts are measured beside.
pub(crate) const BASELINE: Baseline = Baseline {
    name: "random choice",
    measured: "Beside it stands a random choice of as many experts: where it is as good, the method has decided nothing.",
    unmeasured: "No random baseline was measured (`--no-baseline`).",
};

/// Options of a benchmark that halves the experts of `model` by `method`, an option in TOML.
pub(crate) fn fewer(method: &str, model: &BenchmarkedModel) -> String {
    format!("{method}\nexperts = {}\nno-super-expert-guard = true", model.experts / 2)
}

impl ReduceOptions {
    /// The plan that leaves `size`, with what was decided where that is known; `why` says what
    /// becomes of experts.
    pub(crate) fn plan(&self, sources: &Sources<'_>, size: &Size, why: String) -> Plan {
        let mut model = sources.model.clone();
        let mut layers = Vec::new();
        let decided = |index, moe: &Moe| match sources.decisions.and_then(|d| d.layers.get(&index))
        {
            Some(DecidedLayer { ffn, record, .. }) => (ffn.clone(), record.clone()),
            None => stand_in(index, moe, size.after),
        };
        for (index, moe) in sources.model.moes() {
            let (ffn, record) = decided(index, moe);
            model.layers[index].ffn = ffn;
            layers.push(record);
        }
        let kept = if size.keeps_all() { Kept::Exactly } else { Kept::No };
        let mut effects = vec![Effect::new("experts", kept, why)];
        effects.extend(with_mtp(&mut model, self.mtp, decided, &mut layers));
        let mut warnings: Vec<String> = model.caveats().map(str::to_owned).collect();
        warnings.extend(self.keeps_all(size));
        Plan { model, effects, layers, warnings, surveys: Vec::new(), group: 1, working_bytes: 0 }
    }

    /// A random choice of as many experts, where one is wanted and any go.
    pub(crate) fn control(&self, model: &Model, size: &Size) -> Option<Model> {
        let wanted = !self.no_baseline && !size.keeps_all();
        wanted.then(|| random_model(model, size.after, self.calibration.seed))
    }

    /// What `method` decides without a sweep; none where there is text for one.
    ///
    /// # Errors
    /// What reading weights and statistics returns.
    pub(crate) fn decide(
        &self,
        method: &dyn Method,
        size: &Size,
        sources: &Sources<'_>,
    ) -> Result<Option<LayerEdits>> {
        if !self.calibration.data.is_empty() {
            return Ok(None);
        }
        decide_now(method, self, size, sources).map(Some)
    }

    /// What lets `method` decide in a sweep, where there is text for one.
    pub(crate) fn decider(
        &self,
        method: impl Method + 'static,
        size: Size,
        sources: &Sources<'_>,
    ) -> Option<Box<dyn LayerPass>> {
        let wanted = !self.calibration.data.is_empty();
        wanted.then(|| {
            Box::new(ExpertReducer::new(Arc::new(method), self, size, sources))
                as Box<dyn LayerPass>
        })
    }
}

/// What has the right sizes before anything is decided: the first `count` experts.
fn stand_in(index: usize, moe: &Moe, count: usize) -> (Ffn, LayerRecord) {
    let layer = Reduced::unmerged(0..count, Vec::new()).decided(index, moe, None);
    (
        layer.ffn,
        LayerRecord { experts: vec!["decided when it runs".to_owned(); count], ..layer.record },
    )
}
