//! Merging: several experts become one, and the layer keeps one router row for each.
//!
//! REAM 2604.04356, HC-SMoE 2410.08589, M-SMoE 2310.01334, MergeMoE 2510.14436, DERN 2509.10377;
//! golden/pruning/METHODS.md says what each computes here, and where that differs from papers and
//! their code. Unlike most published code, the result has as many router rows as experts. Experts
//! that stand alone are the source's bytes; merged ones are made from their members when they are
//! read, in f64, and stored in the source's encoding. Only MergeMoE's down projections are held in
//! memory, once they are fitted.
//!
//! An expert without tokens is never a centroid before one with tokens. It has weight 0 beside
//! members with tokens, and equal weights where no member has any. In REAM its gated outputs are
//! similar to no other expert's, so that only its router logits place it.
//!
//! Super experts stand alone, unmerged, where fewer of them are protected than experts are kept.

mod algorithm;
mod dern;
mod fit;
mod grouped;
mod groups;
mod hc_smoe;
mod m_smoe;
mod mergemoe;
mod options;
mod parameters;
mod ream;

#[cfg(test)]
mod golden;

use moe_model::{Model, Result};
use serde_json::Value;

use crate::merged::making_bytes;
use crate::pass::{
    Choice, DetailsType, Inputs, LayerEdits, Pass, PassInfo, PassOptions, Plan, PlannedModel,
    ReportKind, Sources, Transform, as_value,
};
use crate::reduce::{BASELINE, LayerTrust, Reduction, fewer};

pub use algorithm::MergeAlgorithm;
pub use options::MergeOptions;
pub use parameters::Grouping;

/// The row of [`crate::PASSES`].
pub(crate) static INFO: PassInfo = PassInfo {
    name: "merge",
    about: "Merge experts that are alike, so that fewer are left; router rows shrink with them",
    examples: "Examples:\n  \
        moe-convert merge golden/models/moe -o target/merged --experts 18 --data-tokens 4096 \\\n    \
        --data english=golden/text/english.calibration.txt --data code=golden/text/code.calibration.txt\n  \
        moe-convert merge golden/models/moe -o target/fitted --keep 0.75 --algorithm mergemoe \\\n    \
        --data golden/text/english.calibration.txt --data-tokens 4096\n  \
        moe-convert observe golden/models/moe -o target/stats --all-experts-every 4 --data-tokens 4096 \\\n    \
        --data golden/text/code.calibration.txt\n  \
        moe-convert merge golden/models/moe -o target/clustered --experts 12 --algorithm hc-smoe \\\n    \
        --stats target/stats\n\n\
        docs/pruning.md is the guide.",
    options: PassOptions::of::<MergeOptions>(),
    least_options: "keep = 1.0\ndata = [\"text\"]",
    targets: |_| &[],
    benchmark: Some(|model| fewer("algorithm = \"ream\"", model)),
    baseline: Some(BASELINE),
    choice: Some(Choice { option: "algorithm", words: algorithm::words }),
    details: Some(DetailsType::of::<LayerTrust>()),
    report: ReportKind::Experts { none_lost: "every expert goes on, alone or merged into others" },
    healed_with: Some(""),
    resumes_midway: false,
    decides_at_once: false,
    less_memory: "lower --data-tokens, --sequence-length, --held-out-tokens or --probe-tokens",
};

impl Pass for MergeOptions {
    fn info(&self) -> &'static PassInfo {
        &INFO
    }

    fn options(&self) -> Value {
        as_value(self)
    }

    fn inputs(&self) -> Inputs<'_> {
        self.reduce.inputs()
    }

    fn check_options(&self) -> Result<()> {
        self.reduce.check_numbers()?;
        self.check_method()?;
        self.reduce.check_sources("--algorithm", self.method().needs())
    }

    fn plan(&self, sources: &Sources<'_>) -> Result<Plan> {
        let size = self.check(sources)?;
        let why = if size.keeps_all() {
            "no experts are merged".to_owned()
        } else {
            format!("{} experts of each layer become {}", size.before, size.after)
        };
        let reduction = Reduction { options: self.reduce.clone(), size, why };
        let next = reduction.next(self.method(), sources);
        Plan::new(Merged(reduction), sources, next)
    }
}

/// The transform that merges a model's experts.
struct Merged(Reduction);

impl Transform for Merged {
    fn apply(&self, sources: &Sources<'_>, edits: Option<&LayerEdits>) -> Result<PlannedModel> {
        let undecided = edits.is_none() && !self.0.size.keeps_all();
        let working_bytes = if undecided { making_bytes(sources.model) } else { 0 };
        Ok(PlannedModel { working_bytes, ..self.0.apply(sources.model, edits) })
    }

    fn baseline(&self, source: &Model, _: &LayerEdits) -> Result<Option<Model>> {
        Ok(self.0.baseline(source))
    }
}
