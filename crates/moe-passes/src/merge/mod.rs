//! Merging: several experts become one, and the layer keeps one router row for each.
//!
//! REAM 2604.04356, HC-SMoE 2410.08589, M-SMoE 2310.01334, MergeMoE 2510.14436, DERN 2509.10377; what each computes here,
//! and where that differs from papers and their code, is written in golden/pruning/METHODS.md. Unlike most published
//! code, the result has as many router rows as experts. Experts that stand alone are the source's bytes; merged ones are
//! made from their members when they are read, in f64, and stored in the source's encoding. MergeMoE's down projections
//! alone are held in memory once they are fitted.
//!
//! An expert without tokens: it is never a centroid before one with tokens, has weight 0 beside members with tokens, and
//! equal weight where no member has any. By ream its gated outputs are like nobody's, so its router logits alone place it.
//!
//! Super experts stand alone, unmerged, where fewer of them are protected than experts are kept.

mod dern;
mod fit;
mod groups;
mod method;
mod neurons;
mod options;
mod weights;

#[cfg(test)]
mod golden;

use std::path::Path;
use std::sync::Arc;

use moe_model::{Model, Moe, Result};

use crate::pass::{DecidedLayer, Decider, Decisions, Effect, HeldOut, Kept, Pass, Plan, Sources};
use crate::prune::stand_in;
use crate::reduce::{Reducer, decide_now, random_model, with_mtp};

pub use options::{Grouping, MergeMethod, MergeOptions};

impl Pass for MergeOptions {
    const NAME: &'static str = "merge";

    fn statistics(&self) -> Option<&Path> {
        self.reduce.stats.as_deref()
    }

    fn plan(&self, sources: &Sources<'_>) -> Result<Plan> {
        let size = self.check(sources)?;
        let mut model = sources.model.clone();
        let mut layers = Vec::new();
        let decided = |index, moe: &Moe| match sources.decisions.and_then(|decisions| decisions.layers.get(&index)) {
            Some(DecidedLayer { ffn, record, .. }) => Ok((ffn.clone(), record.clone())),
            None => stand_in(index, moe, size),
        };
        for (index, moe) in sources.model.moes() {
            let (ffn, record) = decided(index, moe)?;
            model.layers[index].ffn = ffn;
            layers.push(record);
        }
        let effect = match size.before - size.after {
            0 => Effect::new("experts", Kept::Exactly, "no experts are merged"),
            _ => {
                let why = format!("{} experts of each layer become {}", size.before, size.after);
                Effect::new("experts", Kept::No, why)
            }
        };
        let mut effects = vec![effect];
        effects.extend(with_mtp(&mut model, self.reduce.mtp, decided, &mut layers)?);
        let warnings = model.caveats().map(str::to_owned).collect();
        Ok(Plan { model, effects, layers, warnings, surveys: Vec::new(), group: 1 })
    }

    fn held_out(&self) -> Option<HeldOut<'_>> {
        self.reduce.held_out()
    }

    fn control(&self, sources: &Sources<'_>) -> Result<Option<Model>> {
        let size = self.reduce.size(sources)?;
        let wanted = !self.reduce.no_control && size.after < size.before;
        wanted.then(|| random_model(sources.model, size.after, self.reduce.calibration.seed)).transpose()
    }

    fn decide(&self, sources: &Sources<'_>) -> Result<Option<Decisions>> {
        if !self.reduce.calibration.data.is_empty() {
            return Ok(None);
        }
        decide_now(&self.merging(), &self.reduce, self.reduce.size(sources)?, sources).map(Some)
    }

    fn decider(&self, sources: &Sources<'_>) -> Result<Option<Box<dyn Decider>>> {
        if self.reduce.calibration.data.is_empty() {
            return Ok(None);
        }
        let size = self.reduce.size(sources)?;
        Ok(Some(Box::new(Reducer::new(Arc::new(self.merging()), &self.reduce, size, sources))))
    }
}
