//! Inputs of a pass other than the model that it converts, and checks on them alone.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use moe_checkpoint::json::{self, UniqueKeys};
use moe_checkpoint::{Checkpoint, Error, Kind, Result, ScratchStore};
use moe_math::Compute;
use moe_model::Model;
use moe_passes::{LayerStatistics, Pass, Sources};
use serde_json::Value;

use crate::fingerprint::Fingerprint;
use crate::statistics::StatisticsFile;

/// Other checkpoints, statistics and a given plan.
pub(crate) struct OtherInputs {
    /// The checkpoints of [`moe_passes::Inputs::models`], in order.
    pub others: Vec<Checkpoint>,
    /// Their models, in the same order.
    pub models: Vec<Model>,
    others_differ: bool,
    first_alike: Vec<usize>,
    pub statistics: Option<StatisticsFile>,
    given_plan: Option<Value>,
}

impl OtherInputs {
    /// Reads the inputs of `pass`, which converts `model`. For the `first` pass, that is
    /// `checkpoint`'s model.
    pub fn read(
        pass: &dyn Pass,
        model: &Model,
        first: bool,
        checkpoint: &Checkpoint,
    ) -> Result<Self> {
        let inputs = pass.inputs();
        let others =
            inputs.models.iter().map(|dir| Checkpoint::open(dir)).collect::<Result<Vec<_>>>()?;
        let models = read_models(&others)?;
        let first_alike = first_alike(&others, first.then_some(checkpoint))?;
        // The result of an earlier pass isn't any of the given checkpoints.
        let others_differ =
            inputs.models.iter().any(|other| !first || real(other) != real(checkpoint.dir()));
        let statistics = match inputs.statistics {
            Some(path) if first => Some(open_statistics(path, model, checkpoint)?),
            Some(path) => return Err(statistics_of_no_checkpoint(path)),
            None => None,
        };
        let given_plan = inputs.plan.map(read_plan).transpose()?;
        Ok(Self { others, models, others_differ, first_alike, statistics, given_plan })
    }

    /// The sources of the pass, for converting `model`.
    pub fn sources<'a>(
        &'a self,
        model: &'a Model,
        compute: &'a Compute,
        scratch: Option<&'a Arc<ScratchStore>>,
    ) -> Sources<'a> {
        Sources {
            model,
            others: &self.models,
            others_differ: self.others_differ,
            first_alike: &self.first_alike,
            compute,
            statistics: self.statistics.as_ref().map(|file| file as &dyn LayerStatistics),
            given_plan: self.given_plan.as_ref(),
            scratch,
        }
    }
}

/// Reads the plan in `path`, which its user may have edited.
fn read_plan(path: &Path) -> Result<Value> {
    json::read_expecting::<UniqueKeys>(path, "correct it, or let --plan-out write it again")?;
    json::read_tree(path)
}

/// Reads the models of `checkpoints`. A checkpoint that is given twice is read once, so that its
/// models share their sources and are known to give the same results.
fn read_models(checkpoints: &[Checkpoint]) -> Result<Vec<Model>> {
    let mut models: Vec<Model> = Vec::new();
    for (at, checkpoint) in checkpoints.iter().enumerate() {
        let mut earlier = checkpoints[..at].iter();
        let same = earlier.position(|earlier| real(earlier.dir()) == real(checkpoint.dir()));
        models.push(same.map_or_else(|| Model::read(checkpoint), |at| Ok(models[at].clone()))?);
    }
    Ok(models)
}

/// The error for statistics in `path` where an earlier pass makes the model.
fn statistics_of_no_checkpoint(path: &Path) -> Error {
    let what = "statistics are of a checkpoint, but this pass converts what another makes";
    Error::new(Kind::Usage, what)
        .options(&["--stats"])
        .file(path)
        .remedy("give --data; or write what the pass before makes, and observe that")
}

/// The value of [`Sources::first_alike`] for the checkpoint `converted` and `others`; `converted`
/// is None where an earlier pass makes the model.
fn first_alike(others: &[Checkpoint], converted: Option<&Checkpoint>) -> Result<Vec<usize>> {
    if others.is_empty() {
        return Ok(Vec::new());
    }
    let mut found = vec![converted.map(Fingerprint::of).transpose()?];
    for other in others {
        found.push(Some(Fingerprint::of(other)?));
    }
    let first = |(at, one): (usize, &Option<Fingerprint>)| {
        let same = |other: &Option<Fingerprint>| {
            one.as_ref().zip(other.as_ref()).is_some_and(|(a, b)| a.model == b.model)
        };
        found[..at].iter().position(same).unwrap_or(at)
    };
    Ok(found.iter().enumerate().map(first).collect())
}

fn real(dir: &Path) -> PathBuf {
    dir.canonicalize().unwrap_or_else(|_| dir.to_owned())
}

fn open_statistics(path: &Path, model: &Model, checkpoint: &Checkpoint) -> Result<StatisticsFile> {
    let file = StatisticsFile::open(path)?;
    file.check_model(model, &Fingerprint::of(checkpoint)?, checkpoint.dir())?;
    Ok(file)
}
