//! Measures the cost of a conversion on held-out text, compared with the cost of the pass's
//! baseline, which has the same size.

use std::time::Instant;

use moe_checkpoint::Result;
use moe_model::Model;

use super::decided::Decided;
use super::held_out::evaluated;
use crate::progress::Timings;
use crate::trust::HeldOutReport;

impl Decided<'_> {
    /// Measures the result on the last pass's held-out text, if there is some.
    ///
    /// # Errors
    /// Errors of sweeps.
    pub fn measure(mut self, timings: &mut Timings) -> Result<Self> {
        let start = Instant::now();
        self.held_out = measured(&self)?;
        if self.held_out.is_some() {
            timings.add_metered(&self.planned.opened.run.compute().meter);
            timings.add("measure on held-out text", start.elapsed(), None);
        }
        Ok(self)
    }
}

/// Measures the result of `decided`, and the last pass's baseline, on that pass's held-out text;
/// None if it has none.
fn measured(decided: &Decided<'_>) -> Result<Option<HeldOutReport>> {
    let planned = &decided.planned;
    let Some(corpus) = &planned.held_out else { return Ok(None) };
    let measure = |name: &str, model: &Model| {
        evaluated(name, model, planned.source(), corpus, &planned.opened.run)
    };
    // The outcome of the last stage that was kept is the result.
    let result = match decided.stages.iter().rev().find(|stage| stage.kept) {
        Some(stage) => stage.report.clone(),
        None => measure("measure on held-out text", planned.result())?,
    };
    let last = planned.last();
    let stages = decided.stages.clone();
    let mut report = HeldOutReport { result, stages, baseline_name: None, baseline: None };
    let edits = last.decisions.as_ref();
    let baseline = edits.map(|edits| last.transform.baseline(&last.source, edits)).transpose()?;
    if let Some(model) = baseline.flatten() {
        let name = last.pass.info().baseline.map_or("baseline", |baseline| baseline.name);
        report.baseline = Some(measure(&format!("measure: {name}"), &model)?);
        report.baseline_name = Some(name.to_owned());
    }
    Ok(Some(report))
}
