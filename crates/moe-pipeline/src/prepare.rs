//! A pass applied to checkpoints, validated down to every output name and every text before the first weight is read.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use moe_checkpoint::{
    CONFIG_FILE, Checkpoint, Declared, Error, Kind, Result, Saved, ShardPlan, Spill, json, plan_shards, sha256_file,
    write_file_atomically,
};
use moe_forward::{Corpus, EvalReport, Sweep, TOKENIZER_FILE, TokenizeOptions, load_prompts};
use moe_math::Compute;
use moe_model::{Declaration, Model};
use moe_passes::{Decisions, Identity, LayerStatistics, Pass, Plan, Sources, SurveyText, TextSource, TrainingText};
use rayon::prelude::*;

use crate::convert::ConvertOptions;
use crate::deciding::Deciding;
use crate::fingerprint::{self, Fingerprint};
use crate::progress::{Progress, Unit};
use crate::receipt::{Receipt, ResultRecord, SourceRecord, Tool};
use crate::resources::{ByteSize, directory_of};
use crate::statistics::StatisticsFile;
use crate::train::{Need, Subject, TrainingDir, TrainingRecord, TrainingTask};
use crate::trust::{self, StageReport};

/// A pass applied to a checkpoint.
pub(crate) struct Prepared {
    pub checkpoint: Checkpoint,
    /// The checkpoints that it reads beside, in order.
    others: Vec<Checkpoint>,
    pub source: Model,
    pub plan: Plan,
    pub declaration: Declaration,
    /// The declaration read back: names and config as loaders find them, weights still lazy.
    pub result: Model,
    pub shards: Vec<ShardPlan>,
    /// The text of each of the plan's surveys.
    texts: Vec<SurveyText>,
    /// The models of `others`.
    models: Vec<Model>,
    others_differ: bool,
    statistics: Option<StatisticsFile>,
    given_plan: Option<serde_json::Value>,
    spill: Arc<Spill>,
    /// Further files that a result depends on, or is measured on.
    files: Vec<PathBuf>,
    /// What decides in a sweep.
    deciding: Option<Deciding>,
    /// Text that the result is measured on.
    pub held_out: Option<Corpus>,
    /// What it measured behind each stage of deciding, where there are several.
    pub stages: Vec<StageReport>,
    /// What was decided, once it is.
    pub decisions: Option<Decisions>,
    /// How the plan's model is trained, if it is.
    training: Option<TrainingTask>,
    /// How it was, once it is.
    trained: Option<TrainingRecord>,
}

impl Prepared {
    pub fn new<P: Pass>(pass: &P, input: &Path, output: &Path, options: &ConvertOptions) -> Result<Self> {
        let compute = &options.compute;
        let checkpoint = Checkpoint::open(input)?;
        let source = Model::read(&checkpoint)?;
        let others = pass.others().iter().map(|dir| Checkpoint::open(dir)).collect::<Result<Vec<_>>>()?;
        let models = others.iter().map(Model::read).collect::<Result<Vec<_>>>()?;
        let place = |dir: &Path| dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
        let others_differ = pass.others().iter().any(|other| place(other) != place(input));
        let statistics = pass.statistics().map(|path| open_statistics(path, &source, &checkpoint)).transpose()?;
        let spill = Arc::new(Spill::new(directory_of(output)));
        let given_plan: Option<serde_json::Value> = pass.given_plan().map(json::read_tree).transpose()?;
        let sources = Sources {
            model: &source,
            others: &models,
            others_differ,
            compute,
            statistics: statistics.as_ref().map(|file| file as &dyn LayerStatistics),
            given_plan: given_plan.as_ref(),
            spill: Some(&spill),
            decisions: None,
        };
        let plan = pass.plan(&sources)?;
        let decider = pass.decider(&sources)?;
        check_tokenizers(input, pass.others())?;
        let (declaration, result, shards) = declared(&plan, options.max_shard_size)?;
        let texts = plan.surveys.iter().map(|survey| load(&survey.text, input, source.vocab)).collect::<Result<_>>()?;
        let deciding = decider.map(|decider| Deciding::new(decider, input, source.vocab)).transpose()?;
        let held_out = pass.held_out().map(|held_out| trust::corpus(&held_out, input, source.vocab)).transpose()?;
        let read = |training| TrainingTask::read(training, &checkpoint, source.vocab);
        let training = pass.training().map(read).transpose()?;
        Ok(Self {
            checkpoint,
            others,
            source,
            plan,
            declaration,
            result,
            shards,
            texts,
            models,
            others_differ,
            statistics,
            given_plan,
            spill,
            files: further_files(pass),
            deciding,
            held_out,
            stages: Vec::new(),
            decisions: None,
            training,
            trained: None,
        })
    }

    /// Decides what the plan left open, and plans anew.
    pub fn decide<P: Pass>(
        &mut self,
        pass: &P,
        options: &ConvertOptions,
        output: &Path,
        progress: &dyn Progress,
    ) -> Result<()> {
        let decisions = match self.deciding.take() {
            Some(mut deciding) => {
                if deciding.decider.saves() {
                    let saved = self.saved(pass, &deciding, options, output)?;
                    if options.resume && TrainingDir::of(output).path().is_dir() {
                        progress.note("what was trained before is taken from what was saved");
                    }
                    deciding.decider.save_in(saved);
                }
                let mut measured = |decisions: &Decisions| -> Result<Option<EvalReport>> {
                    let Some(corpus) = &self.held_out else { return Ok(None) };
                    let plan = pass.plan(&self.sources(&options.compute, Some(decisions)))?;
                    let (_, result, _) = declared(&plan, options.max_shard_size)?;
                    let name = "measure on held-out text";
                    trust::evaluated(name, &result, &self.source, corpus, options, output, progress).map(Some)
                };
                let (decisions, stages) =
                    deciding.run(&self.source, options, directory_of(output), progress, &mut measured)?;
                (self.stages, self.deciding) = (stages, Some(deciding));
                Some(decisions)
            }
            None => pass.decide(&self.sources(&options.compute, None))?,
        };
        let Some(decisions) = decisions else { return Ok(()) };
        self.plan = pass.plan(&self.sources(&options.compute, Some(&decisions)))?;
        (self.declaration, self.result, self.shards) = declared(&self.plan, options.max_shard_size)?;
        if let Some(path) = pass.plan_out() {
            let text = json::to_pretty(&pass.describe_decisions(&self.source, &decisions));
            write_file_atomically(path, |file| file.write_all(text.as_bytes()))?;
        }
        self.decisions = Some(decisions);
        Ok(())
    }

    /// Where the costly steps of `deciding` are saved beside `output`.
    fn saved<P: Pass>(&self, pass: &P, deciding: &Deciding, options: &ConvertOptions, output: &Path) -> Result<Saved> {
        let data = deciding.decider.text().data.iter().map(|spec| spec.path.as_path());
        let texts = data.chain(self.files.iter().map(PathBuf::as_path));
        let key = fingerprint::of_run(&serde_json::to_value(pass).unwrap_or_default(), [&self.checkpoint], texts)?;
        Saved::new(TrainingDir::of(output).path(), key, options.resume)
    }

    /// Trains the planned model, if the pass has that done; whether it has.
    pub fn train<P: Pass>(
        &mut self,
        pass: &P,
        options: &ConvertOptions,
        output: &Path,
        progress: &dyn Progress,
    ) -> Result<bool> {
        let Some(task) = &self.training else { return Ok(false) };
        let subject = Subject {
            model: &self.plan.model,
            source: &self.checkpoint,
            teacher: task.training.teacher.and_then(|_| self.others.first().zip(self.models.first())),
            task,
            options: serde_json::to_value(pass).unwrap_or_default(),
            output,
            resume: options.resume,
            memory_budget: options.memory_budget,
            compute: &options.compute,
        };
        let (model, record) = subject.train(progress)?;
        self.plan.model = model;
        self.trained = Some(record);
        (self.declaration, self.result, self.shards) = declared(&self.plan, options.max_shard_size)?;
        Ok(true)
    }

    /// Whether deciding saves its costly steps in a [`TrainingDir`].
    pub fn saves(&self) -> bool {
        self.deciding.as_ref().is_some_and(|deciding| deciding.decider.saves())
    }

    pub fn sources<'a>(&'a self, compute: &'a Compute, decisions: Option<&'a Decisions>) -> Sources<'a> {
        Sources {
            model: &self.source,
            others: &self.models,
            others_differ: self.others_differ,
            compute,
            statistics: self.statistics.as_ref().map(|file| file as &dyn LayerStatistics),
            given_plan: self.given_plan.as_ref(),
            spill: Some(&self.spill),
            decisions,
        }
    }

    /// Runs the plan's surveys, each a sweep over the source.
    pub fn survey(&mut self, compute: &Compute, progress: &dyn Progress) -> Result<()> {
        for (survey, text) in self.plan.surveys.iter_mut().zip(&self.texts) {
            let layers = self.source.layers.len();
            let tokens = text.batch().tokens();
            progress.stage(&format!("survey {tokens} tokens"), layers as u64, Unit::Layers { tokens });
            survey.surveyor.begin(text)?;
            let mut sweep = Sweep::new(&self.source, text.batch(), compute)?;
            for index in 0..layers {
                sweep.layer(index, survey.surveyor.as_mut())?;
                progress.advance(1);
            }
            for (layer, found) in survey.surveyor.found() {
                self.plan.layers.iter_mut().filter(|r| r.layer == layer).for_each(|r| r.found.push(found.clone()));
            }
        }
        Ok(())
    }

    /// What the receipt says before anything is hashed or measured.
    pub fn receipt<P: Pass>(&self, pass: &P) -> Receipt {
        let parameters = self.plan.model.parameters();
        let copied = self.declaration.tensors.iter().filter(|(_, w)| w.stored().is_some()).count();
        let source = |checkpoint: &Checkpoint, model: &Model| {
            let model_type = checkpoint.config().get("model_type").and_then(serde_json::Value::as_str);
            let dir = checkpoint.dir().canonicalize().unwrap_or_else(|_| checkpoint.dir().to_owned());
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
        Receipt {
            tool: Tool::this(),
            pass: P::NAME,
            options: serde_json::to_value(pass).unwrap_or_default(),
            source: source(&self.checkpoint, &self.source),
            others: self.others.iter().zip(&self.models).map(|(other, model)| source(other, model)).collect(),
            texts: BTreeMap::new(),
            result: ResultRecord {
                model_type: self.plan.model.family.model_type.clone(),
                total_parameters: parameters.total(),
                active_parameters: parameters.active(),
                parameters,
                tensors: self.declaration.tensors.len(),
                tensors_copied: copied,
                bytes: self.declaration.bytes(),
            },
            identity: Identity::of(&self.plan.effects),
            effects: self.plan.effects.clone(),
            measured: None,
            held_out: None,
            training: self.trained.clone(),
            decided: self.decisions.as_ref().map(|decisions| decisions.by),
            pool: self.deciding.as_ref().and_then(|deciding| deciding.pulled),
            layers: self.plan.layers.clone(),
            warnings: self.plan.warnings.clone(),
        }
    }

    /// Hashes of everything that is read.
    pub fn hashes(&self) -> Result<Hashes> {
        let surveyed = self.plan.surveys.iter().flat_map(|survey| survey.text.files());
        let pools: Vec<_> = self.deciding.iter().filter_map(|deciding| deciding.decider.pool_text()).collect();
        let decided = self.deciding.iter().map(|deciding| deciding.decider.text()).chain(&pools);
        let decided = decided.flat_map(|text| text.data.iter().map(|spec| spec.path.as_path()));
        let further = self.files.iter().map(PathBuf::as_path);
        let texts: Vec<&Path> =
            surveyed.chain(decided).chain(self.statistics.iter().map(StatisticsFile::path)).chain(further).collect();
        Ok(Hashes {
            source: hash_checkpoint(&self.checkpoint)?,
            others: self.others.iter().map(hash_checkpoint).collect::<Result<_>>()?,
            texts: hash_files(&texts)?,
        })
    }

    /// The probe's largest tensors: the head in f32 beside logits of both models, or a layer's weights; and a survey's
    /// hidden states.
    pub fn memory_estimate(&self, probe_tokens: usize) -> u64 {
        const WRITER_BYTES: u64 = 64 << 20;
        /// Hidden states, normalised ones, a network's activations and what is made of them, in f32.
        const STATES: usize = 8;
        let decided = self.deciding.iter().map(Deciding::most_tokens);
        let surveyed = self.texts.iter().map(|text| text.batch().tokens()).chain(decided).max().unwrap_or(0);
        let trained = self.training.as_ref().map(|task| Need::of(&self.plan.model, &task.training).bytes(false));
        let working = self.deciding.iter().map(|deciding| deciding.decider.working_bytes()).sum::<u64>();
        let survey = (surveyed * self.source.hidden * 4 * STATES) as u64 + working;
        let survey = survey.max(trained.unwrap_or(0));
        if probe_tokens == 0 {
            return WRITER_BYTES + survey;
        }
        let head = (self.source.vocab * self.source.hidden * 4) as u64;
        let logits = (self.source.vocab * probe_tokens * 8 * 6) as u64;
        WRITER_BYTES + survey.max(head + logits)
    }
}

/// Names, config and shards of a plan, read back as loaders will find them.
fn declared(plan: &Plan, max_shard_size: ByteSize) -> Result<(Declaration, Model, Vec<ShardPlan>)> {
    let declaration = plan.model.declare().map_err(|e| e.file(&plan.model.config_file))?;
    // What loaders will find must be a model; a contradiction shows here, before the first byte.
    let result = declaration.reread()?;
    let declared: Vec<Declared> = declaration
        .tensors
        .iter()
        .map(|(name, w)| Declared { name: name.clone(), dtype: w.dtype(), shape: w.shape().to_vec() })
        .collect();
    let shards = plan_shards(&declared, max_shard_size.0)?;
    Ok((declaration, result, shards))
}

fn open_statistics(path: &Path, model: &Model, checkpoint: &Checkpoint) -> Result<StatisticsFile> {
    let file = StatisticsFile::open(path)?;
    file.check_model(model, &Fingerprint::of(checkpoint)?, checkpoint.dir())?;
    Ok(file)
}

/// SHA-256 of what was read.
pub(crate) struct Hashes {
    source: BTreeMap<String, String>,
    others: Vec<BTreeMap<String, String>>,
    texts: BTreeMap<String, String>,
}

impl Hashes {
    pub fn record(self, receipt: &mut Receipt) {
        receipt.source.sha256 = self.source;
        receipt.others.iter_mut().zip(self.others).for_each(|(record, hashes)| record.sha256 = hashes);
        receipt.texts = self.texts;
    }
}

/// SHA-256 of config and weights.
fn hash_checkpoint(checkpoint: &Checkpoint) -> Result<BTreeMap<String, String>> {
    let config = checkpoint.dir().join(CONFIG_FILE);
    let files: Vec<&Path> =
        std::iter::once(config.as_path()).chain(checkpoint.files().iter().map(|f| f.path())).collect();
    hash_files(&files)
}

/// The given plan, held-out text, and text that is trained on.
fn further_files<P: Pass>(pass: &P) -> Vec<PathBuf> {
    let held_out = pass.held_out().into_iter().flat_map(|held_out| held_out.data.iter().map(|spec| spec.path.clone()));
    let trained = pass.training().into_iter().flat_map(|training| {
        let TrainingText { data, held_out, .. } = training.text;
        data.into_iter().chain(held_out).map(|spec| spec.path)
    });
    pass.given_plan().map(Path::to_owned).into_iter().chain(held_out).chain(trained).collect()
}

/// SHA-256 by file name, or by path where several files have one name; files are hashed side by side.
fn hash_files(paths: &[&Path]) -> Result<BTreeMap<String, String>> {
    let paths: BTreeSet<&Path> = paths.iter().copied().collect();
    let unique = |path: &Path| paths.iter().filter(|other| other.file_name() == path.file_name()).count() == 1;
    let hash = |path: &&Path| -> Result<(String, String)> {
        let name = path.file_name().filter(|_| unique(path)).unwrap_or(path.as_os_str());
        Ok((name.to_string_lossy().into_owned(), sha256_file(path)?))
    };
    paths.par_iter().map(hash).collect()
}

fn load(text: &TextSource, model_dir: &Path, vocab: usize) -> Result<SurveyText> {
    match text {
        TextSource::Data { specs, sequence_length, max_tokens } => {
            let options = TokenizeOptions {
                sequence_length: *sequence_length,
                vocab,
                max_tokens: Some(*max_tokens),
                ..TokenizeOptions::default()
            };
            Ok(SurveyText::Data(Corpus::load(specs, model_dir, options)?.batch()))
        }
        TextSource::Prompts { path, sets } => {
            let prompts = load_prompts(path, model_dir, *sets)?;
            prompts.batch.check_vocabulary(vocab, path)?;
            Ok(SurveyText::Prompts(prompts))
        }
    }
}

/// Refuses models that give the same ids other meanings.
fn check_tokenizers(base: &Path, others: &[PathBuf]) -> Result<()> {
    let read = |dir: &Path| -> Result<Option<serde_json::Value>> {
        let path = dir.join(TOKENIZER_FILE);
        if path.is_file() { json::read(&path).map(Some) } else { Ok(None) }
    };
    let Some(wanted) = (if others.is_empty() { None } else { read(base)? }) else { return Ok(()) };
    for other in others.iter().filter(|other| *other != base) {
        let Some(found) = read(other)? else { continue };
        if let Some(part) = ["model", "added_tokens"].into_iter().find(|part| wanted[*part] != found[*part]) {
            return Err(Error::new(Kind::Usage, format!("this tokenizer has another {part:?} than the base's"))
                .file(other.join(TOKENIZER_FILE))
                .remedy("give models that were fine-tuned from one base, with its tokenizer"));
        }
    }
    Ok(())
}
