//! A run whose passes are planned: validated down to every output name and every text before the
//! first weight is read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use moe_checkpoint::{
    CONFIG_FILE, Checkpoint, Declared, Error, Kind, Result, ShardPlan, SideFiles, plan_shards,
};
use moe_forward::{Corpus, TextRead, digests_of};
use moe_math::load::Load;
use moe_model::{Declaration, Model};
use moe_passes::{Effect, LayerTrust, Pass};

use super::hashes::Hashes;
use super::held_out::{held_out_of, read_held_out};
use super::opened::Opened;
use super::pass_run::{Open, PassRun};
use super::side_files::{self, Rewritten};
use crate::calibration::unchosen;
use crate::learned::{self, Learned};
use crate::portable::portable;
use crate::resources::ByteSize;

/// The state of a run in which all is known that needs no weight.
pub(crate) struct Planned<'r> {
    pub opened: Opened<'r>,
    /// The passes; at least one.
    pub(super) passes: Vec<PassRun<'r>>,
    pub shards: Vec<ShardPlan>,
    /// What comes along from the source beside config and weights.
    pub side_files: SideFiles,
    /// The one of them that comes along without some of its keys.
    pub rewritten: Option<Rewritten>,
    /// Text that the result is measured on, which is the last pass's.
    pub held_out: Option<Corpus>,
    /// What is said of held-out text that isn't.
    not_held_out: Vec<String>,
    /// Hashes of what was read of texts that were read in parts.
    pub(super) digests: BTreeMap<PathBuf, String>,
}

/// Refuses a result whose config has what loaders refuse, and what no pass knows another value for.
fn check_loadable(result: &Model, source: &Checkpoint) -> Result<()> {
    let refused = result.refused_config();
    if refused.is_empty() {
        return Ok(());
    }
    Err(Error::new(
        Kind::Malformed,
        format!("loaders would refuse the result: {}", refused.join("; ")),
    )
    .file(source.dir().join(CONFIG_FILE))
    .remedy("correct or remove these keys in it"))
}

impl<'r> Opened<'r> {
    /// Plans `passes`, each on what the one before makes.
    ///
    /// # Errors
    /// Whatever would stop the run before its first byte.
    pub fn plan(self, passes: &[&'r dyn Pass]) -> Result<Planned<'r>> {
        let Opened { run, checkpoint, source, .. } = &self;
        let mut planned: Vec<PassRun<'r>> = Vec::new();
        for pass in passes {
            let model = planned.last().map_or(source, |before| &before.result).clone();
            planned.push(PassRun::new(*pass, model, planned.is_empty(), &self)?);
        }
        let last =
            planned.last().ok_or_else(|| Error::new(Kind::Usage, "there is no pass to run"))?;
        check_loadable(&last.result, checkpoint)?;
        let shards = shards(&last.declaration, run.options.max_shard_size)?;
        let mut side_files = side_files::of_result(checkpoint, last.result.family);
        let rewritten = side_files::loadable(&mut side_files, checkpoint, last.result.vocab)?;
        let held_out = held_out_of(last.pass).map(|text| read_held_out(&text, &self, &last.result));
        let held_out = held_out.transpose()?;
        let reads = planned
            .iter()
            .flat_map(PassRun::reads)
            .chain(held_out.iter().flat_map(|held_out| &held_out.texts));
        let digests = digests_of(reads)?;
        let not_held_out = not_held_out(&planned, held_out.as_ref(), run.input, &digests)?;
        Ok(Planned {
            opened: self,
            passes: planned,
            shards,
            side_files,
            rewritten,
            held_out,
            not_held_out,
            digests,
        })
    }
}

impl<'r> Planned<'r> {
    /// The last pass.
    pub(super) fn last(&self) -> &PassRun<'r> {
        self.passes.last().expect("there is at least one pass")
    }

    /// The model that the first pass converts.
    pub fn source(&self) -> &Model {
        &self.opened.source
    }

    /// How many passes, the first ones, decide in a dry run: those that take little beside the
    /// writing, and those whose plan is to be written, unless a training comes before them.
    pub fn decided_in_dry_run(&self) -> usize {
        let at_once = |run: &&PassRun<'_>| {
            run.pass.info().decides_at_once && matches!(run.open, Open::Decide(_))
        };
        let at_once = self.passes.iter().take_while(at_once).count();
        let planned = self.passes.iter().rposition(|run| run.pass.outputs().plan.is_some());
        let deciding = planned.map_or(at_once, |last| at_once.max(last + 1));
        let trains = self.passes[..deciding].iter().any(|run| run.pass.outputs().training);
        if trains { 0 } else { deciding }
    }

    /// What is written.
    pub fn declaration(&self) -> &Declaration {
        &self.last().declaration
    }

    /// That, as loaders find it.
    pub fn result(&self) -> &Model {
        &self.last().result
    }

    /// What all passes do to the function.
    pub fn effects(&self) -> Vec<Effect> {
        self.passes.iter().flat_map(|pass| pass.planned.effects.clone()).collect()
    }

    /// What all passes warn of; once what several say.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings: Vec<String> = Vec::new();
        for warning in self.passes.iter().flat_map(|pass| &pass.planned.warnings) {
            if !warnings.contains(warning) {
                warnings.push(warning.clone());
            }
        }
        for note in self.reads().filter_map(TextRead::note) {
            if !warnings.contains(&note) {
                warnings.push(note);
            }
        }
        warnings.extend(self.not_held_out.iter().cloned());
        warnings.extend(self.unchosen());
        warnings.extend(self.opened.checkpoint.warnings().iter().cloned());
        for other in self.passes.iter().flat_map(|pass| &pass.beside.others) {
            warnings.extend(
                other
                    .warnings()
                    .iter()
                    .map(|warning| format!("{}: {warning}", portable(other.dir()))),
            );
        }
        warnings.extend(side_files::warnings(&self.side_files, self.rewritten.as_ref()));
        warnings
    }

    /// What was read of all text.
    fn reads(&self) -> impl Iterator<Item = &TextRead> {
        let held_out = self.held_out.iter().flat_map(|held_out| &held_out.texts);
        self.passes.iter().flat_map(PassRun::reads).chain(held_out)
    }

    /// Experts of the result that are chosen together, where a pass made such and none behind it
    /// changed their number.
    pub fn group(&self) -> usize {
        let experts =
            |model: &Model| model.moes().map(|(_, moe)| moe.experts.len()).collect::<Vec<_>>();
        let (result, mut made) = (experts(self.result()), self.passes.iter());
        made.find(|made| made.planned.group > 1 && experts(&made.result) == result)
            .map_or(1, |made| made.planned.group)
    }

    /// Says of how many experts nothing is known, since no token of the text chose them.
    fn unchosen(&self) -> Option<String> {
        let decided = self.passes.iter().filter_map(|pass| pass.decisions.as_ref());
        let loads: Vec<Load> = decided
            .flat_map(|decisions| decisions.layers.values())
            .filter_map(|layer| Some(layer.record.details::<LayerTrust>()?.load))
            .collect();
        let more = if self.passes.iter().any(|pass| pass.pass.inputs().statistics.is_some()) {
            "add statistics of more text (observe --add)"
        } else if self.reads().any(|read| read.has_more) {
            "raise --data-tokens"
        } else {
            "give more --data"
        };
        unchosen(loads.iter(), more)
    }

    /// Whether deciding saves its costly steps in a [`crate::train::TrainingDir`].
    pub fn saves(&self) -> bool {
        self.passes.iter().filter_map(PassRun::deciding).any(|deciding| deciding.has_stages())
    }

    /// Hashes of everything that is read.
    pub fn hashes(&self) -> Result<Hashes> {
        let texts: Vec<&Path> =
            self.passes.iter().flat_map(|pass| pass.pass.inputs().files()).collect();
        Hashes::of(
            &self.opened.checkpoint,
            self.passes.iter().flat_map(|pass| &pass.beside.others),
            &texts,
            &self.digests,
        )
    }

    /// Refuses sources that have changed since they were read.
    ///
    /// # Errors
    /// [`Kind::Io`], naming the file.
    pub fn check_unchanged(&self) -> Result<()> {
        self.opened.checkpoint.check_unchanged()?;
        self.passes.iter().try_for_each(PassRun::check_unchanged)
    }
}

/// What is said where text that `passes` learn from, or that the checkpoint in `input` was made on,
/// is measured on.
fn not_held_out(
    passes: &[PassRun<'_>],
    measured: Option<&Corpus>,
    input: &Path,
    digests: &BTreeMap<PathBuf, String>,
) -> Result<Vec<String>> {
    let learned = Learned {
        windows: passes.iter().flat_map(PassRun::windows).collect(),
        files: passes.iter().flat_map(|pass| pass.pass.inputs().learned).collect(),
        observed: passes.iter().flat_map(|pass| pass.observed().values()).collect(),
    };
    let trained = passes.iter().filter_map(|pass| pass.training()?.held_out());
    let mut said = Vec::new();
    for corpus in measured.into_iter().chain(trained) {
        said.extend(learned.warning(corpus, digests)?);
    }
    let measured = passes.iter().flat_map(|pass| pass.pass.inputs().measured());
    said.extend(learned::notes(input, measured)?);
    Ok(said)
}

pub(super) fn shards(
    declaration: &Declaration,
    max_shard_size: ByteSize,
) -> Result<Vec<ShardPlan>> {
    let declared: Vec<Declared> = declaration
        .tensors
        .iter()
        .map(|(name, w)| Declared {
            name: name.clone(),
            dtype: w.dtype(),
            shape: w.shape().to_vec(),
        })
        .collect();
    plan_shards(&declared, max_shard_size.0)
}
