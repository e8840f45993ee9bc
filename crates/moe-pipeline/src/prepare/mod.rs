//! Passes applied to checkpoints, validated down to every output name and every text before the
//! first weight is read.

mod beside;
mod carry_out;
mod estimates;
mod hashes;
mod held_out;
mod pass_run;
mod side_files;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use moe_checkpoint::{
    CONFIG_FILE, Checkpoint, Declared, Error, Kind, Result, ScratchStore, ShardPlan, SideFiles,
    plan_shards,
};
use moe_forward::{Corpus, TextRead, digests_of};
use moe_model::{Declaration, Model};
use moe_passes::{Effect, HeldOut, Identity, Pass};

use crate::budget;
use crate::observe::unchosen;
use crate::options::ConvertOptions;
use crate::outputs::plan_names;
use crate::portable::portable;
use crate::receipt::{EarlierPass, Receipt, ResultRecord, SourceRecord, Tool};
use crate::resources::{ByteSize, device_kind, directory_of};
use crate::statistics;
use crate::train::TrainingRecord;
use crate::trust::{self, StageReport};
use crate::writing::WritingOptions;

pub(crate) use beside::check_passes;
pub(crate) use hashes::Hashes;
pub(crate) use pass_run::PassRun;

use estimates::measured_bytes;
use pass_run::{Open, RunContext};
use side_files::Rewritten;

/// Passes applied to a checkpoint, each to what the one before makes, with no checkpoint between
/// them.
pub(crate) struct Prepared<'p> {
    pub checkpoint: Checkpoint,
    pub source: Model,
    /// The passes; at least one.
    applied: Vec<PassRun<'p>>,
    pub shards: Vec<ShardPlan>,
    /// What comes along from the source beside config and weights.
    pub side_files: SideFiles,
    /// The one of them that comes along without some of its keys.
    pub rewritten: Option<Rewritten>,
    writing: WritingOptions,
    dtype: &'static str,
    device: &'static str,
    router_dtype: Option<&'static str>,
    spill: Arc<ScratchStore>,
    /// Text that the result is measured on, which is the last pass's.
    pub held_out: Option<Corpus>,
    /// What is said of held-out text that isn't.
    not_held_out: Vec<String>,
    /// Hashes of what was read of texts that were read in parts.
    digests: BTreeMap<PathBuf, String>,
    /// What it measured behind each stage of deciding, where there are several.
    pub stages: Vec<StageReport>,
    /// How a pass's model was trained, once one was.
    trained: Option<TrainingRecord>,
}

/// Refuses passes that can't run one after the other without a checkpoint between them.
///
/// # Errors
/// [`Kind::Usage`] for what only the last pass can do, or only one.
pub(crate) fn check_together(passes: &[&dyn Pass]) -> Result<()> {
    let Some((_, before)) = passes.split_last() else {
        return Err(Error::new(Kind::Usage, "there is no pass to run"));
    };
    if let Some(pass) = before.iter().find(|pass| held_out_of(**pass).is_some()) {
        let what = format!(
            "{} has held-out text, but it is the written result that is measured",
            pass.name()
        );
        return Err(Error::new(Kind::Usage, what).remedy("give the held-out text to the last pass"));
    }
    if passes.iter().filter(|pass| pass.outputs().training).count() > 1 {
        return Err(Error::new(
            Kind::Usage,
            "two passes train, but what is saved of a training is one",
        )
        .remedy("write a checkpoint between them: make them steps of their own"));
    }
    Ok(())
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

/// Text that the result of `pass` is measured on once it is there.
fn held_out_of(pass: &dyn Pass) -> Option<HeldOut<'_>> {
    pass.inputs().held_out.filter(|held_out| !held_out.while_training)
}

impl<'p> Prepared<'p> {
    pub fn new(
        passes: &[&'p dyn Pass],
        input: &Path,
        output: &Path,
        options: &ConvertOptions,
    ) -> Result<Self> {
        let checkpoint = Checkpoint::open(input)?;
        let source = Model::read(&checkpoint)?;
        let spill = Arc::new(ScratchStore::new(directory_of(output)));
        let work = options.work(output);
        let place = RunContext {
            input,
            checkpoint: &checkpoint,
            compute: &options.compute,
            spill: &spill,
            work: &work,
        };
        let mut applied: Vec<PassRun<'p>> = Vec::new();
        for pass in passes {
            let model = applied.last().map_or(&source, |before| &before.result).clone();
            applied.push(PassRun::new(*pass, model, applied.is_empty(), &place)?);
        }
        let last =
            applied.last().ok_or_else(|| Error::new(Kind::Usage, "there is no pass to run"))?;
        check_loadable(&last.result, &checkpoint)?;
        let shards = shards(&last.declaration, options.max_shard_size)?;
        let mut side_files = side_files::of_result(&checkpoint, last.result.family);
        let rewritten = side_files::loadable(&mut side_files, &checkpoint, last.result.vocab)?;
        let held_out = held_out_of(last.pass);
        let read_held_out = |held_out: HeldOut<'_>| {
            let live = |tokens| {
                measured_bytes(&source, &last.result, tokens, held_out.sequence_length, &work)
            };
            trust::corpus(
                &held_out,
                input,
                source.vocab,
                budget::room(work.budget, "--held-out-tokens", live),
            )
        };
        let held_out = held_out.map(read_held_out).transpose()?;
        let reads = applied
            .iter()
            .flat_map(PassRun::reads)
            .chain(held_out.iter().flat_map(|held_out| &held_out.texts));
        let digests = digests_of(reads)?;
        let mut not_held_out = held_out::warnings(&applied, held_out.as_ref(), &digests)?;
        not_held_out.extend(held_out::learned_before(&applied, input)?);
        Ok(Self {
            checkpoint,
            source,
            applied,
            not_held_out,
            digests,
            shards,
            side_files,
            rewritten,
            writing: options.writing(),
            dtype: options.compute.dtype.as_str(),
            device: device_kind(&options.compute.device),
            router_dtype: options.compute.router_dtype.other_than_f32(),
            spill,
            held_out,
            stages: Vec::new(),
            trained: None,
        })
    }

    /// The last pass.
    pub fn last(&self) -> &PassRun<'p> {
        self.applied.last().expect("there is at least one pass")
    }

    /// What the decisions of the last pass are measured beside, if they are.
    pub fn baseline(&self) -> Result<Option<Model>> {
        let PassRun { source, transform, decisions, .. } = self.last();
        decisions.as_ref().map_or(Ok(None), |edits| transform.baseline(source, edits))
    }

    /// How many passes, the first ones, decide what takes little beside the writing.
    pub fn decided_at_once(&self) -> usize {
        let at_once = |run: &&PassRun<'_>| {
            run.pass.info().decides_at_once && matches!(run.open, Open::Decide(_))
        };
        self.applied.iter().take_while(at_once).count()
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
        self.applied.iter().flat_map(|applied| applied.planned.effects.clone()).collect()
    }

    /// What all passes warn of; once what several say.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings: Vec<String> = Vec::new();
        for warning in self.applied.iter().flat_map(|applied| &applied.planned.warnings) {
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
        warnings.extend(self.checkpoint.warnings().iter().cloned());
        for other in self.applied.iter().flat_map(|applied| &applied.beside.others) {
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
        self.applied.iter().flat_map(PassRun::reads).chain(held_out)
    }

    /// Experts of the result that are chosen together, where a pass made such and none behind it
    /// changed their number.
    pub fn group(&self) -> usize {
        let experts =
            |model: &Model| model.moes().map(|(_, moe)| moe.experts.len()).collect::<Vec<_>>();
        let (result, mut made) = (experts(self.result()), self.applied.iter());
        made.find(|made| made.planned.group > 1 && experts(&made.result) == result)
            .map_or(1, |made| made.planned.group)
    }

    /// Whether a pass was trained.
    pub fn is_trained(&self) -> bool {
        self.trained.is_some()
    }

    /// Says of how many experts nothing is known, since no token of the text chose them.
    fn unchosen(&self) -> Option<String> {
        let decided = self.applied.iter().filter_map(|applied| applied.decisions.as_ref());
        let trust = decided.flat_map(|d| d.layers.values()).filter_map(|l| l.record.trust.as_ref());
        let more = if self.applied.iter().any(|applied| applied.pass.inputs().statistics.is_some())
        {
            "add statistics of more text (observe --add)"
        } else if self.reads().any(|read| read.has_more) {
            "raise --data-tokens"
        } else {
            "give more --data"
        };
        unchosen(trust.map(|trust| &trust.load), more)
    }

    /// Whether deciding saves its costly steps in a [`crate::train::TrainingDir`].
    pub fn saves(&self) -> bool {
        let mut deciding = self.applied.iter().filter_map(PassRun::deciding);
        deciding.any(|deciding| deciding.decider.saves())
    }

    /// What the receipt says before anything is hashed or measured.
    pub fn receipt(&self) -> Receipt {
        let last = self.last();
        let source = |checkpoint: &Checkpoint, model: &Model| {
            let model_type =
                checkpoint.config().get("model_type").and_then(serde_json::Value::as_str);
            let dir =
                checkpoint.dir().canonicalize().unwrap_or_else(|_| checkpoint.dir().to_owned());
            let parameters = model.parameters();
            SourceRecord {
                name: dir.file_name().unwrap_or_default().to_string_lossy().into_owned(),
                model_type: model_type.unwrap_or_default().to_owned(),
                total_parameters: parameters.total(),
                active_parameters: parameters.active(),
                bytes: checkpoint.tensors().values().map(|tensor| tensor.bytes()).sum(),
                sha256: BTreeMap::new(),
            }
        };
        let others = self
            .applied
            .iter()
            .flat_map(|applied| applied.beside.others.iter().zip(&applied.beside.models));
        let effects = self.effects();
        Receipt {
            tool: Tool::this(),
            before: self.applied[..self.applied.len() - 1].iter().map(EarlierPass::of).collect(),
            pass: last.pass.info(),
            options: last.pass.options(),
            source: source(&self.checkpoint, &self.source),
            others: others.map(|(other, model)| source(other, model)).collect(),
            texts: BTreeMap::new(),
            observed: self.observed(),
            written: self.written(),
            dtype: self.dtype,
            device: self.device,
            writing: self.writing,
            router_dtype: self.router_dtype,
            result: ResultRecord::of(last),
            identity: Identity::of(&effects),
            effects,
            measured: None,
            held_out: None,
            training: self.trained.clone(),
            decided: last.decisions.as_ref().map(|decisions| decisions.by),
            pool: last.deciding().and_then(|deciding| deciding.pulled),
            layers: last.planned.layers.clone(),
            warnings: self.warnings(),
            left_out: self.side_files.left_out.clone(),
            files: BTreeMap::new(),
        }
    }

    /// Hashes of the text that statistics were gathered on, by name.
    fn observed(&self) -> BTreeMap<String, String> {
        let mut all = BTreeMap::new();
        for (name, hash) in self.applied.iter().flat_map(PassRun::observed) {
            statistics::add_text(&mut all, name, hash);
        }
        all
    }

    /// Hashes of the plans that were written, by name.
    fn written(&self) -> BTreeMap<String, String> {
        let names = plan_names(self.applied.iter().map(|applied| applied.pass));
        let written = self
            .applied
            .iter()
            .filter_map(|applied| applied.pass.outputs().plan.zip(applied.written.clone()));
        written.filter_map(|(path, hash)| Some((names.get(path)?.clone(), hash))).collect()
    }

    /// Hashes of everything that is read.
    pub fn hashes(&self) -> Result<Hashes> {
        let texts: Vec<&Path> =
            self.applied.iter().flat_map(|applied| applied.pass.inputs().files()).collect();
        Hashes::of(
            &self.checkpoint,
            self.applied.iter().flat_map(|applied| &applied.beside.others),
            &texts,
            &self.digests,
        )
    }

    /// Refuses sources that have changed since they were read.
    ///
    /// # Errors
    /// [`Kind::Io`], naming the file.
    pub fn check_unchanged(&self) -> Result<()> {
        self.checkpoint.check_unchanged()?;
        self.applied.iter().try_for_each(PassRun::check_unchanged)
    }
}

fn shards(declaration: &Declaration, max_shard_size: ByteSize) -> Result<Vec<ShardPlan>> {
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
