//! Pruning: whole experts go, and the tokens that chose them are routed anew.
//!
//! The experts that stay, and their router rows, are the source's bytes. REAP 2510.13999, SEER-MoE
//! 2404.05089, NAEE 2402.14800, AIMER 2603.18492; ranked choice as in NVIDIA's ModelOpt.

mod choose;
mod criteria;
mod exhaustive;
mod plan;

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use moe_model::{Error, Kind, Model, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::calibrate::CalibrationOptions;
use crate::pass::{
    DecidedBy, HeldOut, Inputs, LayerEdits, LayerPass, Pass, PassInfo, PassOptions, Plan,
    ReportKind, Sources, as_value,
};
use crate::reduce::{BASELINE, Method, ReduceOptions, Size, default_divisible_by, fewer};
use crate::unused::refuse_unused;

pub use choose::Blend;
pub use criteria::Criterion;

use choose::Pruning;
use plan::PrunePlan;

/// Options that say how experts are chosen, which a given plan has done.
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
    /// What experts are ranked by.
    #[arg(long, value_enum, default_value_t)]
    #[serde(default)]
    pub criterion: Criterion,

    /// How the domains of the data are weighed: pool adds their sums up, max-min keeps most of the
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
        PrunePlan::deserialize(value).map(Some).map_err(|e| {
            let error = Error::new(Kind::Malformed, "this is not a plan for pruning").source(e);
            self.in_plan(error.remedy("give a file that prune --plan-out has written"))
        })
    }

    /// `error`, which is the given plan's.
    fn in_plan(&self, error: Error) -> Error {
        match &self.plan {
            Some(file) => error.file(file),
            None => error,
        }
    }

    fn size(&self, sources: &Sources<'_>) -> Result<Size> {
        match self.given(sources)? {
            Some(plan) => plan.size(sources.model).map_err(|e| self.in_plan(e)),
            None => self.reduce.size(sources),
        }
    }

    /// Refuses what a given plan has decided, and what has no meaning beside it. A recipe can't say
    /// which values were given: those that are the defaults say nothing else than the plan does.
    fn check_given(&self) -> Result<()> {
        let (reduce, text) = (&self.reduce, &self.reduce.calibration);
        let usual = CalibrationOptions::default();
        let given = [
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
        ];
        match given.into_iter().find(|(_, is_given)| *is_given) {
            Some((option, _)) => {
                Err(Error::new(Kind::Usage, format!("{option} beside --plan, which has decided"))
                    .remedy(format!("leave {option} out, or --plan")))
            }
            None => {
                reduce.check_measuring()?;
                self.check_measured(text)
            }
        }
    }

    /// Refuses what says how the result of a given plan is measured where it isn't.
    fn check_measured(&self, text: &CalibrationOptions) -> Result<()> {
        let usual = CalibrationOptions::default();
        let measures = self.reduce.held_out().is_some();
        let idle = [
            ("--sequence-length", text.sequence_length != usual.sequence_length && !measures),
            // The baseline is drawn.
            ("--seed", text.seed != usual.seed && (!measures || self.reduce.no_baseline)),
        ];
        let wanted = if measures { "a baseline" } else { "--held-out" };
        let what = format!("beside --plan goes with {wanted}, and there is none");
        refuse_unused(idle, &what, "give --held-out TEXT without --no-baseline")
    }

    fn check(&self, sources: &Sources<'_>) -> Result<Size> {
        self.check_options()?;
        let size = self.size(sources)?;
        if sources.given_plan.is_some() {
            return Ok(size);
        }
        self.method().check(sources.model, &size)?;
        Ok(size)
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
    report: ReportKind::Experts { none_lost: "the experts that went had none on this text" },
    healed_with: Some(""),
    resumes_midway: false,
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

    fn plan_out(&self) -> Option<&Path> {
        self.plan_out.as_deref()
    }

    fn describe_decisions(&self, model: &Model, decisions: &LayerEdits) -> Value {
        let method = match (decisions.by, self.criterion.to_possible_value()) {
            (DecidedBy::GivenPlan, _) => "a given plan".to_owned(),
            (_, word) => word.map_or(String::new(), |word| word.get_name().to_owned()),
        };
        as_value(&PrunePlan::new(method, model, decisions))
    }

    fn check_options(&self) -> Result<()> {
        // A given plan says how many experts stay, and nothing is looked at.
        if self.plan.is_some() {
            return self.check_given();
        }
        self.reduce.check_numbers()?;
        let needs = self.method().needs();
        self.reduce.check_sources("--criterion", needs)?;
        if !needs.sums && self.blend != Blend::Pool {
            return Err(Error::new(Kind::Usage, "this criterion doesn't look at domains")
                .remedy("leave --blend out, or choose another --criterion")
                .idle(&["--blend"]));
        }
        Ok(())
    }

    fn plan(&self, sources: &Sources<'_>) -> Result<Plan> {
        let size = self.check(sources)?;
        let why = match size.before - size.after {
            0 => "no expert goes".to_owned(),
            gone => format!("{gone} of {} experts of each layer go", size.before),
        };
        Ok(self.reduce.plan(sources, &size, why))
    }

    fn held_out(&self) -> Option<HeldOut<'_>> {
        self.reduce.held_out()
    }

    fn control(&self, sources: &Sources<'_>) -> Result<Option<Model>> {
        if self.criterion == Criterion::Random {
            return Ok(None);
        }
        Ok(self.reduce.control(sources.model, &self.size(sources)?))
    }

    fn decide(&self, sources: &Sources<'_>) -> Result<Option<LayerEdits>> {
        match self.given(sources)? {
            Some(plan) => {
                let size = plan.size(sources.model)?;
                let mut decisions = plan.decisions(sources.model, &size);
                self.reduce.decide_mtp(sources.model, &size, sources.compute, &mut decisions)?;
                Ok(Some(decisions))
            }
            None => self.reduce.decide(&self.method(), &self.size(sources)?, sources),
        }
    }

    fn decides_at_once(&self) -> bool {
        self.reduce.calibration.data.is_empty()
    }

    fn decider(&self, sources: &Sources<'_>) -> Result<Option<Box<dyn LayerPass>>> {
        Ok(self.reduce.decider(self.method(), self.size(sources)?, sources))
    }
}
