//! Pruning: whole experts go, and the tokens that chose them are routed anew.
//!
//! The experts that stay, and their router rows, are the source's bytes. REAP 2510.13999, SEER-MoE 2404.05089, NAEE
//! 2402.14800, AIMER 2603.18492; ranked choice as in NVIDIA's ModelOpt.

mod choose;
mod criteria;
mod exhaustive;
mod plan;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use moe_model::{Error, Ffn, Kind, Model, Moe, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::pass::{DecidedLayer, Decider, Decisions, Effect, HeldOut, Kept, LayerRecord, Pass, Plan, Sources};
use crate::reduce::{Method, ReduceOptions, Reduced, Reducer, Size, decide_now, random_model, with_mtp};

pub use criteria::Criterion;
pub use plan::{PlannedLayer, PrunePlan};

use choose::{Blend, Pruning};

pub use choose::Blend as DomainBlend;

/// Options of `prune`.
#[derive(Debug, Clone, clap::Args, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PruneOptions {
    /// What experts are ranked by.
    #[arg(long, value_enum, default_value_t)]
    #[serde(default)]
    pub method: Criterion,

    /// How the domains of the data are weighed: pool adds their sums up, max-min keeps most of the domain that would lose
    /// most.
    #[arg(long, value_enum, default_value_t)]
    #[serde(default)]
    pub blend: Blend,

    /// Apply this plan, as --plan-out writes it and you may have edited it, instead of deciding.
    #[arg(long, value_name = "PLAN.json", conflicts_with_all = ["experts", "keep", "data", "stats"])]
    #[serde(default)]
    pub plan: Option<PathBuf>,

    /// Write which experts stay, and what they were ranked by, to this file; with --dry-run, that alone.
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
        Pruning { criterion: self.method, blend: self.blend }
    }

    fn given(&self, sources: &Sources<'_>) -> Result<Option<PrunePlan>> {
        let Some(value) = sources.given_plan else { return Ok(None) };
        PrunePlan::deserialize(value).map(Some).map_err(|e| {
            Error::new(Kind::Malformed, "this is no plan of pruning")
                .source(e)
                .remedy("give a file that prune --plan-out has written")
        })
    }

    fn size(&self, sources: &Sources<'_>) -> Result<Size> {
        match self.given(sources)? {
            Some(plan) => plan.size(sources.model),
            None => self.reduce.size(sources),
        }
    }

    fn check(&self, sources: &Sources<'_>) -> Result<Size> {
        let size = self.size(sources)?;
        if sources.given_plan.is_some() {
            return Ok(size);
        }
        let needs = self.method().needs();
        self.reduce.check_sources(needs.sums || needs.inputs)?;
        if needs.inputs && self.reduce.stats.is_some() {
            return Err(Error::new(Kind::Usage, "this method looks at tokens, which statistics don't hold")
                .remedy("give --data instead of --stats"));
        }
        if !needs.sums && self.blend != Blend::Pool {
            return Err(Error::new(Kind::Usage, "this method looks at no domains")
                .remedy("leave --blend out, or choose another --method"));
        }
        self.method().check(sources.model, size)?;
        Ok(size)
    }
}

impl Pass for PruneOptions {
    const NAME: &'static str = "prune";

    fn statistics(&self) -> Option<&Path> {
        self.reduce.stats.as_deref()
    }

    fn given_plan(&self) -> Option<&Path> {
        self.plan.as_deref()
    }

    fn plan_out(&self) -> Option<&Path> {
        self.plan_out.as_deref()
    }

    fn describe_decisions(&self, model: &Model, decisions: &Decisions) -> Value {
        let method = serde_json::to_value(self.method).ok().and_then(|m| m.as_str().map(str::to_owned));
        serde_json::to_value(PrunePlan::new(method.unwrap_or_default(), model, decisions)).unwrap_or_default()
    }

    fn plan(&self, sources: &Sources<'_>) -> Result<Plan> {
        let size = self.check(sources)?;
        let mut model = sources.model.clone();
        let mut layers = Vec::new();
        let decided = |index, moe: &Moe| match sources.decisions.and_then(|d| d.layers.get(&index)) {
            Some(DecidedLayer { ffn, record, .. }) => Ok((ffn.clone(), record.clone())),
            None => stand_in(index, moe, size),
        };
        for (index, moe) in sources.model.moes() {
            let (ffn, record) = decided(index, moe)?;
            model.layers[index].ffn = ffn;
            layers.push(record);
        }
        let gone = size.before - size.after;
        let mut effects = match gone {
            0 => vec![Effect::new("experts", Kept::Exactly, "no expert goes")],
            _ => vec![Effect::new("experts", Kept::No, format!("{gone} of {} experts of each layer go", size.before))],
        };
        effects.extend(with_mtp(&mut model, self.reduce.mtp, decided, &mut layers)?);
        let warnings = model.caveats().map(str::to_owned).collect();
        Ok(Plan { model, effects, layers, warnings, surveys: Vec::new(), group: 1 })
    }

    fn held_out(&self) -> Option<HeldOut<'_>> {
        self.reduce.held_out()
    }

    fn control(&self, sources: &Sources<'_>) -> Result<Option<Model>> {
        let size = self.size(sources)?;
        let wanted = !self.reduce.no_control && self.method != Criterion::Random && size.after < size.before;
        wanted.then(|| random_model(sources.model, size.after, self.reduce.calibration.seed)).transpose()
    }

    fn decide(&self, sources: &Sources<'_>) -> Result<Option<Decisions>> {
        let method = self.method();
        if let Some(plan) = self.given(sources)? {
            return plan.decisions(sources.model, self.size(sources)?).map(Some);
        }
        if !self.reduce.calibration.data.is_empty() {
            return Ok(None);
        }
        decide_now(&method, &self.reduce, self.size(sources)?, sources).map(Some)
    }

    fn decider(&self, sources: &Sources<'_>) -> Result<Option<Box<dyn Decider>>> {
        if self.reduce.calibration.data.is_empty() {
            return Ok(None);
        }
        let reducer = Reducer::new(Arc::new(self.method()), &self.reduce, self.size(sources)?, sources);
        Ok(Some(Box::new(reducer)))
    }
}

/// What has the right sizes before anything is decided.
pub(crate) fn stand_in(index: usize, moe: &Moe, size: Size) -> Result<(Ffn, LayerRecord)> {
    let clusters = (0..size.after).map(|e| vec![e]).collect();
    let reduced = Reduced { clusters, saliency: Vec::new(), halves: None, experts: None, made: None };
    let layer = reduced.decided(index, moe, None)?;
    let record = LayerRecord {
        layer: index,
        router: layer.record.router,
        experts: vec!["decided when it runs".to_owned(); size.after],
        ..LayerRecord::default()
    };
    Ok((layer.ffn, record))
}
