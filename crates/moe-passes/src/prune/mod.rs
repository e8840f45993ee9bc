//! Pruning drops whole experts, and the tokens that chose them are routed to others.
//!
//! The experts that stay, and their router rows, are the source's bytes. REAP 2510.13999, SEER-MoE
//! 2404.05089, NAEE 2402.14800, AIMER 2603.18492; ranked choice as in NVIDIA's ModelOpt.

mod choose;
mod criteria;
mod exhaustive;
mod plan;

use std::path::PathBuf;
use std::sync::Arc;

use clap::ValueEnum;
use moe_checkpoint::json;
use moe_model::{Error, Kind, Model, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::calibrate::CalibrationOptions;
use crate::pass::{
    Choice, DecidedBy, DetailsType, Inputs, LayerEdits, Next, Outputs, Pass, PassInfo, PassOptions,
    Plan, PlannedModel, ReportKind, Sources, Transform, as_value,
};
use crate::reduce::{
    BASELINE, LayerTrust, Method, ReduceOptions, Reduction, Size, default_divisible_by, fewer,
};
use crate::usage::{idle, refuse_unused, usage};

pub use choose::Blend;
pub use criteria::Criterion;

use choose::Pruning;
use plan::PrunePlan;

/// Options that choose experts, and that therefore have no use with a given plan.
const DECIDING: [&str; 13] = [
    "criterion",
    "blend",
    "experts",
    "keep",
    "keep_mass",
    "equal_mass",
    "divisible_by",
    "stats",
    "no_super_expert_guard",
    "data",
    "data_tokens",
    "pack",
    "mask_special",
];

/// Options of `prune`.
#[derive(Debug, Clone, clap::Args, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PruneOptions {
    /// Saliency that experts are ranked by.
    #[arg(long, value_enum, default_value_t)]
    #[serde(default)]
    pub criterion: Criterion,

    /// Weighting of the domains of the data: pool adds their sums up, max-min keeps most of the
    /// domain that would lose most.
    #[arg(long, value_enum, default_value_t)]
    #[serde(default)]
    pub blend: Blend,

    /// Apply this plan, as --plan-out writes it and you may have edited it, instead of deciding.
    #[arg(long, value_name = "PLAN.json", conflicts_with_all = DECIDING)]
    #[serde(default)]
    #[serde(serialize_with = "moe_checkpoint::lossy_paths")]
    pub plan: Option<PathBuf>,

    /// Write which experts stay, and what they were ranked by, to this file; with --dry-run, that
    /// alone.
    #[arg(long, value_name = "PLAN.json")]
    #[serde(default, skip_serializing)]
    pub plan_out: Option<PathBuf>,

    #[command(flatten)]
    #[serde(flatten)]
    #[allow(missing_docs)]
    pub reduce: ReduceOptions,
}

impl PruneOptions {
    fn method(&self) -> Pruning {
        Pruning { criterion: self.criterion, blend: self.blend }
    }

    fn given(&self, sources: &Sources<'_>) -> Result<Option<PrunePlan>> {
        let Some(value) = sources.given_plan else { return Ok(None) };
        let plan = match value.as_object() {
            Some(fields) => json::of_object(fields),
            None => Err("an object is expected".to_owned()),
        };
        plan.map(Some).map_err(|said| {
            let what = format!("this is not a plan for pruning: {said}");
            let error = Error::new(Kind::Malformed, what);
            self.in_plan(error.remedy("give a file that prune --plan-out has written"))
        })
    }

    /// `error` with the path of the given plan.
    fn in_plan(&self, error: Error) -> Error {
        match &self.plan {
            Some(file) => error.file(file),
            None => error,
        }
    }

    /// The edits of the given `plan`.
    fn followed(&self, plan: PrunePlan, size: &Size) -> Next {
        let reduce = self.reduce.clone();
        let size = size.clone();
        Next::Decide(Box::new(move |sources| {
            let mut decisions = plan.decisions(sources.model, &size);
            reduce.decide_mtp(sources.model, &size, sources.compute, &mut decisions)?;
            Ok(decisions)
        }))
    }

    /// Refuses options that decide what the given plan has decided, and options without effect
    /// next to it. A recipe can't say which values were given: values equal to the defaults don't
    /// contradict the plan.
    fn check_given(&self) -> Result<()> {
        match self.deciding().into_iter().find(|(_, is_given)| *is_given) {
            Some((option, _)) => Err(usage(
                &[option, "--plan"],
                format!("--plan has decided already, so {option} would have no effect"),
                format!("leave {option} out, or --plan"),
            )),
            None => {
                self.reduce.check_measuring()?;
                self.check_measured(&self.reduce.calibration)
            }
        }
    }

    /// The options that choose experts, and whether each was given.
    fn deciding(&self) -> [(&'static str, bool); 13] {
        let reduce = &self.reduce;
        let text = &self.reduce.calibration;
        let usual = CalibrationOptions::default();
        [
            ("--criterion", self.criterion != Criterion::default()),
            ("--blend", self.blend != Blend::default()),
            ("--experts", reduce.experts.is_some()),
            ("--keep", reduce.keep.is_some()),
            ("--keep-mass", reduce.keep_mass.is_some()),
            ("--equal-mass", reduce.equal_mass),
            ("--divisible-by", reduce.divisible_by != default_divisible_by()),
            ("--stats", reduce.stats.is_some()),
            ("--no-super-expert-guard", reduce.no_super_expert_guard),
            ("--data", !text.data.is_empty()),
            ("--data-tokens", text.data_tokens != usual.data_tokens),
            ("--pack", text.pack != usual.pack),
            ("--mask-special", text.mask_special != usual.mask_special),
        ]
    }

    /// Refuses options that say how the result of a given plan is measured, where it isn't
    /// measured.
    fn check_measured(&self, text: &CalibrationOptions) -> Result<()> {
        let usual = CalibrationOptions::default();
        let measures = self.reduce.held_out().is_some();
        let idle = [
            ("--sequence-length", text.sequence_length != usual.sequence_length && !measures),
            // The seed draws the baseline.
            ("--seed", text.seed != usual.seed && (!measures || self.reduce.no_baseline)),
        ];
        let wanted = if measures { "a baseline" } else { "--held-out" };
        let what = format!("has an effect with --plan only if there is {wanted}");
        refuse_unused(idle, &what, "give --held-out TEXT without --no-baseline")
    }
}

/// The row of [`crate::PASSES`].
pub(crate) static INFO: PassInfo = PassInfo {
    name: "prune",
    about: "Keep the experts that matter most, by evidence from calibration text",
    examples: "Examples:\n  \
        moe-convert prune golden/models/moe -o target/pruned --keep 0.75 --data-tokens 4096 \\\n    \
        --data english=golden/text/english.calibration.txt --data code=golden/text/code.calibration.txt\n  \
        moe-convert observe golden/models/moe -o target/stats --data-tokens 4096 \\\n    \
        --data golden/text/code.calibration.txt\n  \
        moe-convert prune golden/models/moe -o target/half --experts 12 --criterion frequency \\\n    \
        --stats target/stats\n  \
        moe-convert prune golden/models/moe -o target/edited --experts 12 --stats target/stats \\\n    \
        --dry-run --plan-out target/plan.json\n  \
        moe-convert prune golden/models/moe -o target/edited --plan target/plan.json\n\ndocs/pruning.md is the guide.",
    options: PassOptions::of::<PruneOptions>(),
    least_options: "keep = 1.0\ndata = [\"text\"]",
    targets: |_| &[],
    benchmark: Some(|model| fewer("criterion = \"reap\"", model)),
    baseline: Some(BASELINE),
    choice: Some(Choice { option: "criterion", words: criteria::words }),
    details: Some(DetailsType::of::<LayerTrust>()),
    report: ReportKind::Experts { none_lost: "the experts that went had none on this text" },
    healed_with: Some(""),
    resumes_midway: false,
    decides_at_once: true,
    less_memory: "lower --data-tokens, --sequence-length, --held-out-tokens or --probe-tokens",
};

impl Pass for PruneOptions {
    fn info(&self) -> &'static PassInfo {
        &INFO
    }

    fn options(&self) -> Value {
        as_value(self)
    }

    fn inputs(&self) -> Inputs<'_> {
        Inputs { plan: self.plan.as_deref(), ..self.reduce.inputs() }
    }

    fn outputs(&self) -> Outputs<'_> {
        Outputs { plan: self.plan_out.as_deref(), training: false }
    }

    fn check_options(&self) -> Result<()> {
        // A given plan says how many experts stay, so that nothing needs observing.
        if self.plan.is_some() {
            return self.check_given();
        }
        self.reduce.check_numbers()?;
        let needs = self.method().needs();
        self.reduce.check_sources("--criterion", needs)?;
        if !needs.sums && self.blend != Blend::Pool {
            return Err(idle(
                &["--blend"],
                "this criterion doesn't look at domains",
                "leave --blend out, or choose another --criterion",
            ));
        }
        Ok(())
    }

    fn plan(&self, sources: &Sources<'_>) -> Result<Plan> {
        self.check_options()?;
        let given = self.given(sources)?;
        let size = match &given {
            Some(plan) => plan.size(sources.model).map_err(|e| self.in_plan(e))?,
            None => self.reduce.size(sources)?,
        };
        if given.is_none() {
            self.method().check(sources.model, &size)?;
        }
        let why = match size.before - size.after {
            0 => "no expert goes".to_owned(),
            gone => format!("{gone} of {} experts of each layer go", size.before),
        };
        let reduction = Reduction { options: self.reduce.clone(), size, why };
        let next = match given {
            Some(plan) => self.followed(plan, &reduction.size),
            None => reduction.next(Arc::new(self.method()), sources),
        };
        Plan::new(Pruned { reduction, criterion: self.criterion }, sources, next)
    }
}

/// The transform that prunes a model.
struct Pruned {
    reduction: Reduction,
    criterion: Criterion,
}

impl Transform for Pruned {
    fn apply(&self, sources: &Sources<'_>, edits: Option<&LayerEdits>) -> Result<PlannedModel> {
        Ok(self.reduction.apply(sources.model, edits))
    }

    fn baseline(&self, source: &Model, _: &LayerEdits) -> Result<Option<Model>> {
        // Comparing a random choice with another random choice would say nothing.
        let is_random = self.criterion == Criterion::Random;
        Ok(if is_random { None } else { self.reduction.baseline(source) })
    }

    fn described(&self, source: &Model, edits: &LayerEdits) -> Value {
        let method = match (edits.by, self.criterion.to_possible_value()) {
            (DecidedBy::GivenPlan, _) => "a given plan".to_owned(),
            (_, word) => word.map_or(String::new(), |word| word.get_name().to_owned()),
        };
        as_value(&PrunePlan::new(method, source, edits))
    }
}
