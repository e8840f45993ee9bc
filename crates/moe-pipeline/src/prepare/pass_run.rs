//! A pass applied to a model: its plan, and all that it reads.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use moe_checkpoint::{
    Checkpoint, Error, Kind, Result, ScratchStore, Seal, Snapshot, StagedFile, check_file,
    file_exists, is_stream, json, sha256_bytes,
};
use moe_forward::{
    Corpus, ForwardWork, Storage, TOKENIZER_FILE, TextRead, TokenizeOptions, load_prompts,
};
use moe_math::Compute;
use moe_model::{Declaration, Model};
use moe_passes::{
    Decide, Effect, Kept, LayerEdits, Next, Pass, Plan, PlannedModel, Sources, Survey, SurveyText,
    TextSource, Transform, same_bytes, same_source,
};

use super::beside::Beside;
use crate::budget;
use crate::deciding::Deciding;
use crate::memory::Text;
use crate::needs::{Needs, Share, Work};
use crate::outputs::PLAN;
use crate::train::{Need, TrainingRecord, TrainingTask};

/// Where a pass finds what it reads, and what it makes goes.
pub(super) struct RunContext<'a> {
    /// The directory of the checkpoint.
    pub input: &'a Path,
    pub checkpoint: &'a Checkpoint,
    pub compute: &'a Compute,
    pub spill: &'a Arc<ScratchStore>,
    pub work: &'a Work<'a>,
}

/// What a plan leaves open, with the text that it is found out on.
pub(crate) enum Open {
    /// Nothing, or nothing but what surveys find.
    Ready,
    /// What is decided without text.
    Decide(Decide),
    /// What is decided in a sweep.
    Layers(Box<Deciding>),
    /// The weights of the planned model.
    Train(Box<TrainingTask>),
}

/// A pass applied to a model.
pub(crate) struct PassRun<'p> {
    pub pass: &'p dyn Pass,
    /// What it converts: the checkpoint's model, or what the pass before makes of that.
    pub source: Model,
    pub planned: PlannedModel,
    /// What makes that again, with what was found out.
    pub transform: Box<dyn Transform>,
    /// What is still to be found out, and how.
    pub open: Open,
    pub declaration: Declaration,
    /// The declaration read back: names and config as loaders find them, weights still lazy.
    pub result: Model,
    /// The text of each of the plan's surveys.
    pub texts: Vec<SurveyText>,
    /// What was read for them.
    survey_reads: Vec<TextRead>,
    /// What it reads beside the source and text.
    pub beside: Beside,
    /// What was decided, once it is.
    pub decisions: Option<LayerEdits>,
    /// What its user gave beside checkpoints.
    snapshot: Snapshot,
    /// Where decisions are written.
    plan_file: Option<StagedFile>,
    /// The hash of what was written there.
    pub written: Option<String>,
}

impl<'p> PassRun<'p> {
    /// Applies `pass` to `source`, which an earlier pass makes unless it is the `first`.
    pub(super) fn new(
        pass: &'p dyn Pass,
        source: Model,
        first: bool,
        place: &RunContext<'_>,
    ) -> Result<Self> {
        let RunContext { input, checkpoint, compute, spill, work } = *place;
        let mut snapshot = Snapshot::default();
        snapshot.extend(pass.inputs().files());
        let beside = Beside::read(pass, &source, first, checkpoint)?;
        let sources = beside.sources(&source, compute, Some(spill));
        let Plan { mut planned, next, transform } = pass.plan(&sources)?;
        check_tokenizers(input, pass.inputs().models)?;
        let (declaration, result) = declared(&planned.model)?;
        let mut survey_reads = Vec::new();
        let mut texts = Vec::new();
        for survey in &planned.surveys {
            texts.push(load(survey, input, &source, work, &mut survey_reads)?);
        }
        let open = match next {
            Next::Ready => Open::Ready,
            Next::Decide(decide) => Open::Decide(decide),
            Next::Layers(decider) => {
                Open::Layers(Box::new(Deciding::new(decider, &source, input, work)?))
            }
            Next::Train(training) => {
                let teacher = beside.models.first();
                let task = TrainingTask::read(training, &planned.model, teacher, checkpoint, work)?;
                // What passes before make isn't there to be read.
                let same = if first { same_bytes } else { same_source };
                planned.warnings.extend(task.idle(&planned.model, same)?.map(str::to_owned));
                Open::Train(Box::new(task))
            }
        };
        Ok(Self {
            pass,
            source,
            planned,
            transform,
            open,
            declaration,
            result,
            texts,
            survey_reads,
            beside,
            decisions: None,
            snapshot,
            plan_file: None,
            written: None,
        })
    }

    /// What decides in a sweep, if that is how the pass decides.
    pub fn deciding(&self) -> Option<&Deciding> {
        if let Open::Layers(deciding) = &self.open { Some(deciding) } else { None }
    }

    /// The same, to run it.
    pub fn deciding_mut(&mut self) -> Option<&mut Deciding> {
        if let Open::Layers(deciding) = &mut self.open { Some(deciding) } else { None }
    }

    /// How the planned model is trained, if it is.
    pub fn training(&self) -> Option<&TrainingTask> {
        if let Open::Train(task) = &self.open { Some(task) } else { None }
    }

    /// What the pass reads.
    pub fn sources<'a>(
        &'a self,
        compute: &'a Compute,
        spill: &'a Arc<ScratchStore>,
    ) -> Sources<'a> {
        self.beside.sources(&self.source, compute, Some(spill))
    }

    /// Converts `source` instead, whose layers have become what they were only planned to be.
    pub(super) fn converts(
        &mut self,
        source: Model,
        compute: &Compute,
        spill: &Arc<ScratchStore>,
    ) -> Result<()> {
        if let Some(deciding) = self.deciding_mut() {
            deciding.decider.model_mut().clone_from(&source);
        }
        self.source = source;
        let planned = self.transform.apply(&self.sources(compute, spill), None)?;
        self.replan(planned)
    }

    /// Puts what was decided in its place.
    pub(super) fn decided(
        &mut self,
        decisions: LayerEdits,
        compute: &Compute,
        spill: &Arc<ScratchStore>,
    ) -> Result<()> {
        let planned = self.transform.apply(&self.sources(compute, spill), Some(&decisions))?;
        self.decisions = Some(decisions);
        self.replan(planned)
    }

    /// Puts `model`, which was trained, in the place of the planned one.
    pub(super) fn trained(&mut self, model: Model, record: &TrainingRecord) -> Result<()> {
        self.planned.model = model;
        if let Some(effect) = self.training().and_then(|task| task.training.effect(record.steps)) {
            self.planned.effects = vec![effect];
        }
        if record.steps > 0 && record.written == 0 {
            let why = "no measurement was better than the one before the first step: the weights are the source's";
            self.planned.effects = vec![Effect {
                option: "train".to_owned(),
                kept: Kept::Exactly,
                why: why.to_owned(),
            }];
            let remedy = "try another --learning-rate, more --steps or more text";
            self.planned.warnings.push(format!("training changed nothing, since {why}; {remedy}"));
        }
        (self.declaration, self.result) = declared(&self.planned.model)?;
        Ok(())
    }

    fn replan(&mut self, planned: PlannedModel) -> Result<()> {
        (self.declaration, self.result) = declared(&planned.model)?;
        self.planned = planned;
        Ok(())
    }

    /// All windows of text that it surveys, decides or trains on.
    pub(super) fn windows(&self) -> impl Iterator<Item = &[u32]> {
        let surveyed = self.texts.iter().flat_map(|text| text.batch().sequences());
        let decided = self.deciding().into_iter().flat_map(Deciding::windows);
        surveyed.chain(decided).chain(self.training().into_iter().flat_map(TrainingTask::windows))
    }

    /// Hashes of the text that its statistics were gathered on, by name.
    pub(super) fn observed(&self) -> &BTreeMap<String, String> {
        const NONE: &BTreeMap<String, String> = &BTreeMap::new();
        self.beside.statistics.as_ref().map_or(NONE, |file| &file.about().texts)
    }

    /// What was read of text that isn't measured on.
    pub(super) fn reads(&self) -> impl Iterator<Item = &TextRead> {
        let deciding = self.deciding().into_iter().flat_map(|deciding| &deciding.read);
        let trained = self.training().into_iter().flat_map(TrainingTask::reads);
        self.survey_reads.iter().chain(deciding).chain(trained)
    }

    /// Refuses what has changed since it was read.
    pub(super) fn check_unchanged(&self) -> Result<()> {
        self.beside.others.iter().try_for_each(Checkpoint::check_unchanged)?;
        self.snapshot.check()
    }

    /// Makes sure that decisions can be written where its user wants them.
    pub(super) fn stage_plan(&mut self, overwrite: bool) -> Result<()> {
        let Some(path) = self.pass.outputs().plan else { return Ok(()) };
        self.plan_file = Some(StagedFile::create(path, check_file(path, &PLAN, overwrite)?)?);
        Ok(())
    }

    /// Writes them there.
    pub(super) fn write_plan(&mut self) -> Result<()> {
        let Some((file, decisions)) = self.plan_file.take().zip(self.decisions.as_ref()) else {
            return Ok(());
        };
        let text =
            Seal::JSON.close(&json::to_pretty(&self.transform.described(&self.source, decisions)));
        // What went to a pipe can't be looked at again.
        let is_kept = self.pass.outputs().plan.is_some_and(|path| !is_stream(path));
        self.written = is_kept.then(|| sha256_bytes(text.as_bytes()));
        file.commit(|file| file.write_all(text.as_bytes())).map(drop)
    }

    /// Whether it can decide in the sweep in which `before` does, whose layers it converts.
    pub(super) fn joins(&self, before: &Self) -> bool {
        let whole = before.planned.surveys.is_empty() && before.training().is_none();
        let of =
            |applied: &'_ Self, test: fn(&Deciding) -> bool| applied.deciding().is_some_and(test);
        whole
            && of(before, |deciding| deciding.decider.sweeps_once())
            && of(self, |deciding| {
                deciding.decider.sweeps_once() && !deciding.decider.looks_ahead()
            })
    }

    /// About how many floating-point operations surveys, decisions and training take.
    pub(super) fn flops(&self) -> f64 {
        let surveyed = self.texts.iter().map(|text| text.batch());
        let surveyed = surveyed
            .map(|batch| ForwardWork::of(&self.source, batch.tokens(), batch.longest()).total());
        let decided = self.deciding().map_or(0.0, Deciding::flops);
        let trained = self.training().map_or(0.0, |task| {
            let (options, text) = (&task.training.options, &task.training.text);
            let model = &self.planned.model;
            let tokens = options.batch_tokens * options.accumulate;
            let head = 2.0 * tokens as f64 * model.hidden as f64 * model.vocab as f64;
            let step = ForwardWork::of(model, tokens, text.sequence_length).total() + head;
            // Backwards takes twice as much, and layers whose graphs aren't kept run again; a
            // teacher runs beside.
            let times = if task.training.teacher.is_some() { 5.0 } else { 4.0 };
            options.steps as f64 * times * step
        });
        surveyed.sum::<f64>() + decided + trained
    }

    /// Bytes on the disk, until the result is written, of weights that are made and of a training.
    pub(super) fn disk_bytes(&self) -> u64 {
        let made = self
            .declaration
            .tensors
            .iter()
            .map(|(_, weight)| weight)
            .filter(|weight| weight.stored().is_none());
        // What is decided is kept until it is written; other weights are made only then.
        let decides = matches!(self.open, Open::Decide(_) | Open::Layers(_));
        let made = if decides { made.map(moe_model::Weight::bytes).sum() } else { 0 };
        made + self
            .training()
            .map_or(0, |task| Need::disk_bytes(&self.planned.model, &task.training))
    }

    /// What surveys and training hold, each of which runs by itself.
    pub(super) fn needs(&self, work: &Work<'_>) -> Result<Vec<Needs>> {
        let mut needs = Vec::new();
        for (survey, text) in self.planned.surveys.iter().zip(&self.texts) {
            let batch = text.batch();
            let live = |share: Share, length| {
                Ok(surveyed(survey, &self.source, share.of(batch.tokens()), length, work))
            };
            needs.push(match &survey.text {
                TextSource::Data { .. } => Needs::of_text("--data-tokens", batch.longest(), live)?,
                TextSource::Prompts { .. } => Needs::fixed(live(Share::All, batch.longest())?),
            });
        }
        if let Some(task) = self.training() {
            let teacher = task.training.teacher.and(self.beside.models.first());
            needs.push(task.needs(&self.planned.model, teacher, work)?);
        }
        Ok(needs)
    }

    /// What deciding holds.
    pub(super) fn deciding_needs(&self, work: &Work<'_>) -> Result<Needs> {
        self.deciding().map_or(Ok(Needs::default()), |deciding| deciding.needs(&self.source, work))
    }

    /// Tokens that its training is measured on.
    pub(super) fn measured_tokens(&self) -> Option<usize> {
        self.training().and_then(TrainingTask::measured_tokens)
    }
}

/// Live bytes of a survey of `source` on so many tokens, in sequences of `length` at most.
fn surveyed(survey: &Survey, source: &Model, tokens: usize, length: usize, work: &Work<'_>) -> u64 {
    // A surveyor sees all tokens of a layer at once, so that no budget makes blocks of them.
    let text = Text::first(tokens, length, Storage::default());
    text.surveyed(source, survey.surveyor.working_bytes(source, tokens), work.compute)
}

/// Names and config of a planned model, and the model that loaders will find: a contradiction shows
/// here, before the first byte.
pub(super) fn declared(model: &Model) -> Result<(Declaration, Model)> {
    let declaration = model.declare().map_err(|e| e.file(&model.config_file))?;
    let result = declaration.reread()?;
    Ok((declaration, result))
}

/// Reads the text of a survey of `source`; `reads` is told what was read.
fn load(
    survey: &Survey,
    model_dir: &Path,
    source: &Model,
    work: &Work<'_>,
    reads: &mut Vec<TextRead>,
) -> Result<SurveyText> {
    match &survey.text {
        TextSource::Data { specs, sequence_length, max_tokens } => {
            let live = |tokens| Ok(surveyed(survey, source, tokens, *sequence_length, work));
            let options = TokenizeOptions {
                sequence_length: *sequence_length,
                vocab: source.vocab,
                max_tokens: Some(*max_tokens),
                room: budget::room(work.budget, "--data-tokens", live),
                ..TokenizeOptions::default()
            };
            let corpus = Corpus::load(specs, model_dir, options)?;
            let batch = corpus.batch();
            reads.extend(corpus.texts);
            Ok(SurveyText::Data(batch))
        }
        TextSource::Prompts { path, sets } => {
            let prompts = load_prompts(path, model_dir, *sets)?;
            prompts.batch.check_vocabulary(source.vocab, path)?;
            Ok(SurveyText::Prompts(prompts))
        }
    }
}

/// Refuses models that give the same ids other meanings.
fn check_tokenizers(base: &Path, others: &[PathBuf]) -> Result<()> {
    let read = |dir: &Path| -> Result<Option<serde_json::Value>> {
        let path = dir.join(TOKENIZER_FILE);
        if file_exists(&path)? { json::read(&path).map(Some) } else { Ok(None) }
    };
    let Some(wanted) = (if others.is_empty() { None } else { read(base)? }) else { return Ok(()) };
    for other in others.iter().filter(|other| *other != base) {
        let Some(found) = read(other)? else { continue };
        if let Some(part) =
            ["model", "added_tokens"].into_iter().find(|part| wanted[*part] != found[*part])
        {
            return Err(Error::new(
                Kind::Usage,
                format!("this tokenizer has another {part:?} than the base's"),
            )
            .file(other.join(TOKENIZER_FILE))
            .remedy("give models that were fine-tuned from one base, with its tokenizer"));
        }
    }
    Ok(())
}
