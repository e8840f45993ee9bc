//! A pass applied to a model: its plan, and its inputs.

use std::collections::BTreeMap;

use moe_checkpoint::{Checkpoint, Result, Snapshot};
use moe_forward::TextRead;
use moe_model::{Declaration, Model};
use moe_passes::{
    Decide, Effect, Kept, LayerEdits, Next, Pass, Plan, PlannedModel, Sources, SurveyText,
    Transform, same_bytes, same_source,
};

use super::opened::Opened;
use super::other_inputs::OtherInputs;
use super::plan_file::PlanFile;
use super::texts;
use crate::deciding::Deciding;
use crate::train::{TrainingRecord, TrainingTask};

/// The work that a plan leaves open, with the text that it is decided or trained on.
pub(crate) enum Open {
    /// Nothing, or only the results of surveys.
    Ready,
    /// Decisions that need no text.
    Decide(Decide),
    /// Decisions that are taken in a sweep.
    Layers(Box<Deciding>),
    /// The weights of the planned model, which are trained.
    Train(Box<TrainingTask>),
}

impl Open {
    /// Reads the text for `next`; the pass leads from the first of two models to the second.
    fn read(
        next: Next,
        [source, planned]: [&Model; 2],
        teacher: Option<&Model>,
        opened: &Opened<'_>,
    ) -> Result<Self> {
        let (run, work) = (&opened.run, opened.run.work());
        Ok(match next {
            Next::Ready => Self::Ready,
            Next::Decide(decide) => Self::Decide(decide),
            Next::Layers(sweep) => {
                Self::Layers(Box::new(Deciding::new(sweep, source, run.input, &work)?))
            }
            Next::Train(training) => {
                let checkpoint = &opened.checkpoint;
                let task = TrainingTask::read(training, planned, teacher, checkpoint, &work)?;
                Self::Train(Box::new(task))
            }
        })
    }

    /// The warning where `model` is trained and training can't change it; `first` is whether the
    /// first pass trains it.
    fn idle(&self, model: &Model, first: bool) -> Result<Option<&'static str>> {
        let Self::Train(task) = self else { return Ok(None) };
        // The results of earlier passes can't be read yet.
        task.idle(model, if first { same_bytes } else { same_source })
    }
}

/// A pass applied to a model.
pub(crate) struct PassRun<'p> {
    pub pass: &'p dyn Pass,
    /// The model that the pass converts: the checkpoint's, or the result of the pass before.
    pub source: Model,
    pub planned: PlannedModel,
    /// Makes the planned model again, with the decisions.
    pub transform: Box<dyn Transform>,
    /// The work that is left: deciding or training.
    pub open: Open,
    pub declaration: Declaration,
    /// The declaration read back: names and config as loaders see them, with lazy weights.
    pub result: Model,
    /// The text of each of the plan's surveys.
    pub texts: Vec<SurveyText>,
    /// Records of the text that was read for surveys.
    survey_reads: Vec<TextRead>,
    /// Inputs other than the source and text.
    pub inputs: OtherInputs,
    /// The decisions; None until they are taken.
    pub decisions: Option<LayerEdits>,
    /// The state of the user's files other than checkpoints.
    snapshot: Snapshot,
    /// The file to write decisions to.
    plan_file: Option<PlanFile<'p>>,
    /// The hash of the written plan.
    pub written: Option<String>,
}

impl<'p> PassRun<'p> {
    /// Applies `pass` to `source`, which is the result of an earlier pass unless this is the
    /// `first`.
    pub(super) fn new(
        pass: &'p dyn Pass,
        source: Model,
        first: bool,
        opened: &Opened<'_>,
    ) -> Result<Self> {
        let Opened { run, checkpoint, scratch, .. } = opened;
        let mut snapshot = Snapshot::default();
        snapshot.extend(pass.inputs().files());
        let inputs = OtherInputs::read(pass, &source, first, checkpoint)?;
        let sources = inputs.sources(&source, run.compute(), Some(scratch));
        let Plan { mut planned, next, transform } = pass.plan(&sources)?;
        texts::check_tokenizers(run.input, pass.inputs().models)?;
        let (declaration, result) = declared(&planned.model)?;
        let (texts, survey_reads) = texts::load_all(&planned.surveys, &source, run)?;
        let teacher = inputs.models.first();
        let open = Open::read(next, [&source, &planned.model], teacher, opened)?;
        planned.warnings.extend(open.idle(&planned.model, first)?.map(str::to_owned));
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
            inputs,
            decisions: None,
            snapshot,
            plan_file: None,
            written: None,
        })
    }

    /// The part that decides in a sweep; None if the pass doesn't decide that way.
    pub fn deciding(&self) -> Option<&Deciding> {
        if let Open::Layers(deciding) = &self.open { Some(deciding) } else { None }
    }

    /// The training of the planned model; None if it isn't trained.
    pub fn training(&self) -> Option<&TrainingTask> {
        if let Open::Train(task) = &self.open { Some(task) } else { None }
    }

    /// The sources of the pass.
    pub fn sources<'a>(&'a self, opened: &'a Opened<'_>) -> Sources<'a> {
        self.inputs.sources(&self.source, opened.run.compute(), Some(&opened.scratch))
    }

    /// Replaces the source by `source`, whose layers are now made and no longer only planned.
    pub(super) fn converts(&mut self, source: Model, opened: &Opened<'_>) -> Result<()> {
        if let Open::Layers(deciding) = &mut self.open {
            deciding.sweep.pass.model_mut().clone_from(&source);
        }
        self.source = source;
        let planned = self.transform.apply(&self.sources(opened), None)?;
        self.replan(planned)
    }

    /// Applies `decisions` to the planned model, and writes them to the plan's file, if there is
    /// one.
    pub(super) fn decided(&mut self, decisions: LayerEdits, opened: &Opened<'_>) -> Result<()> {
        let planned = self.transform.apply(&self.sources(opened), Some(&decisions))?;
        self.replan(planned)?;
        if let Some(file) = self.plan_file.take() {
            self.written = file.write(&self.transform.described(&self.source, &decisions))?;
        }
        self.decisions = Some(decisions);
        Ok(())
    }

    /// Replaces the planned model by `model`, which was trained.
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

    /// All windows of text that the pass surveys, decides or trains on.
    pub(super) fn windows(&self) -> impl Iterator<Item = &[u32]> {
        let surveyed = self.texts.iter().flat_map(|text| text.batch().sequences());
        let decided = self.deciding().into_iter().flat_map(Deciding::windows);
        surveyed.chain(decided).chain(self.training().into_iter().flat_map(TrainingTask::windows))
    }

    /// Hashes of the text that its statistics were gathered on, by name.
    pub(super) fn observed(&self) -> &BTreeMap<String, String> {
        const NONE: &BTreeMap<String, String> = &BTreeMap::new();
        self.inputs.statistics.as_ref().map_or(NONE, |file| &file.about().texts)
    }

    /// Records of all text that was read, except held-out text.
    pub(super) fn reads(&self) -> impl Iterator<Item = &TextRead> {
        let deciding = self.deciding().into_iter().flat_map(|deciding| &deciding.read);
        let trained = self.training().into_iter().flat_map(TrainingTask::reads);
        self.survey_reads.iter().chain(deciding).chain(trained)
    }

    /// Refuses inputs that have changed since they were read.
    pub(super) fn check_unchanged(&self) -> Result<()> {
        self.inputs.others.iter().try_for_each(Checkpoint::check_unchanged)?;
        self.snapshot.check()
    }

    /// Makes sure that decisions can be written to the file that the user named.
    pub(super) fn stage_plan(&mut self, overwrite: bool) -> Result<()> {
        let plan = self.pass.outputs().plan;
        self.plan_file = plan.map(|path| PlanFile::new(path, overwrite)).transpose()?;
        Ok(())
    }

    /// Whether it can decide in the same sweep as `before`, whose layers it converts.
    pub(super) fn joins(&self, before: &Self) -> bool {
        let whole = before.planned.surveys.is_empty() && before.training().is_none();
        let of =
            |applied: &'_ Self, test: fn(&Deciding) -> bool| applied.deciding().is_some_and(test);
        whole
            && of(before, |deciding| !deciding.has_stages())
            && of(self, |deciding| !deciding.has_stages() && !deciding.looks_ahead())
    }
}

/// Names and config of a planned model, and the model that loaders will see: a contradiction is
/// found here, before the first byte.
pub(super) fn declared(model: &Model) -> Result<(Declaration, Model)> {
    let declaration = model.declare().map_err(|e| e.file(&model.config_file))?;
    let result = declaration.reread()?;
    Ok((declaration, result))
}
