//! A run whose passes are planned: every output name and every text is validated before the first
//! weight is read.

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

/// A run whose passes are planned: everything is known that needs no weights.
pub(crate) struct Planned<'r> {
    pub opened: Opened<'r>,
    /// The passes in order; at least one.
    pub(super) passes: Vec<PassRun<'r>>,
    pub shards: Vec<ShardPlan>,
    /// Side files that are copied from the source.
    pub side_files: SideFiles,
    /// The side file that is written without some of its keys.
    pub rewritten: Option<Rewritten>,
    /// The last pass's text that the result is measured on.
    pub held_out: Option<Corpus>,
    /// Warnings about held-out text that passes also learn from.
    not_held_out: Vec<String>,
    /// For texts that were read in parts, hashes of the parts that were read.
    pub(super) digests: BTreeMap<PathBuf, String>,
}

/// Refuses a result whose config has a value that loaders refuse and that no pass can replace.
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
    /// Plans `passes`, each on the result of the one before.
    ///
    /// # Errors
    /// Any error that would stop the run before its first byte.
    pub fn plan(self, passes: &[&'r dyn Pass]) -> Result<Planned<'r>> {
        let passes = self.plan_passes(passes)?;
        let Opened { run, checkpoint, .. } = &self;
        let last =
            passes.last().ok_or_else(|| Error::new(Kind::Usage, "there is no pass to run"))?;
        check_loadable(&last.result, checkpoint)?;
        let shards = shards(&last.declaration, run.options.max_shard_size)?;
        let mut side_files = side_files::of_result(checkpoint, last.result.family);
        let rewritten = side_files::loadable(&mut side_files, checkpoint, last.result.vocab)?;
        let held_out = held_out_of(last.pass).map(|text| read_held_out(&text, &self, &last.result));
        let held_out = held_out.transpose()?;
        let reads = passes.iter().flat_map(PassRun::reads);
        let digests = digests_of(reads.chain(held_out.iter().flat_map(|text| &text.texts)))?;
        let not_held_out = not_held_out(&passes, held_out.as_ref(), run.input, &digests)?;
        Ok(Planned {
            opened: self,
            passes,
            shards,
            side_files,
            rewritten,
            held_out,
            not_held_out,
            digests,
        })
    }

    fn plan_passes(&self, passes: &[&'r dyn Pass]) -> Result<Vec<PassRun<'r>>> {
        let mut planned: Vec<PassRun<'r>> = Vec::new();
        for pass in passes {
            let model = planned.last().map_or(&self.source, |before| &before.result).clone();
            planned.push(PassRun::new(*pass, model, planned.is_empty(), self)?);
        }
        Ok(planned)
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

    /// The number of passes, from the first on, that decide in a dry run: those for which that is
    /// cheap compared with writing, and those whose plan is to be written, unless a training comes
    /// before them.
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

    /// Names, shapes and config to be written.
    pub fn declaration(&self) -> &Declaration {
        &self.last().declaration
    }

    /// The written model as loaders see it.
    pub fn result(&self) -> &Model {
        &self.last().result
    }

    /// The effects of all passes on the model's function.
    pub fn effects(&self) -> Vec<Effect> {
        self.passes.iter().flat_map(|pass| pass.planned.effects.clone()).collect()
    }

    /// The warnings of all passes, without repetitions.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings: Vec<String> = Vec::new();
        let of_plans = self.passes.iter().flat_map(|pass| &pass.planned.warnings).cloned();
        for warning in of_plans.chain(self.reads().filter_map(TextRead::note)) {
            if !warnings.contains(&warning) {
                warnings.push(warning);
            }
        }
        warnings.extend(self.not_held_out.iter().cloned());
        warnings.extend(self.unchosen());
        warnings.extend(self.opened.checkpoint.warnings().iter().cloned());
        for other in self.passes.iter().flat_map(|pass| &pass.inputs.others) {
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

    /// Records of all text that was read.
    fn reads(&self) -> impl Iterator<Item = &TextRead> {
        let held_out = self.held_out.iter().flat_map(|held_out| &held_out.texts);
        self.passes.iter().flat_map(PassRun::reads).chain(held_out)
    }

    /// The number of neighboring experts of the result that are always chosen together, if a pass
    /// made such groups and no later one changed the number of experts; otherwise 1.
    pub fn group(&self) -> usize {
        let experts =
            |model: &Model| model.moes().map(|(_, moe)| moe.experts.len()).collect::<Vec<_>>();
        let (result, mut made) = (experts(self.result()), self.passes.iter());
        made.find(|made| made.planned.group > 1 && experts(&made.result) == result)
            .map_or(1, |made| made.planned.group)
    }

    /// Warns of experts that no token of the text chose, so that nothing is known of them.
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

    /// Whether deciding saves its expensive steps in a [`crate::train::TrainingDir`].
    pub fn saves(&self) -> bool {
        self.passes.iter().filter_map(PassRun::deciding).any(|deciding| deciding.has_stages())
    }

    /// Hashes of all inputs.
    pub fn hashes(&self) -> Result<Hashes> {
        let texts: Vec<&Path> =
            self.passes.iter().flat_map(|pass| pass.pass.inputs().files()).collect();
        Hashes::of(
            &self.opened.checkpoint,
            self.passes.iter().flat_map(|pass| &pass.inputs.others),
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

/// Warnings where a text to measure on is also one that `passes` learn from, or that the checkpoint
/// in `input` was made on.
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
