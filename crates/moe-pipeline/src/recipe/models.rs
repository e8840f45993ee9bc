//! Checks a recipe's steps against models before the first step runs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use moe_checkpoint::{CONFIG_FILE, Checkpoint, Error, Kind, Result};
use moe_forward::check_vocabularies;
use moe_math::Compute;
use moe_model::Model;
use moe_passes::Pass;

use super::check::lies_within;
use super::keys::KeyOrigin;
use super::parsed::{Recipe, Step, StepKind};
use super::spare::without;
use crate::fingerprint::Fingerprint;
use crate::observe::no_mixture;
use crate::run::check_passes;

/// The facts that are known so far.
struct KnownModels<'a> {
    compute: &'a Compute,
    /// Checkpoints by directory: many steps read the same few.
    models: BTreeMap<PathBuf, (Checkpoint, Model)>,
    /// Results of passes, by passes and source, since combinations of choices have much in common.
    results: BTreeMap<String, ModelFacts>,
    /// The paths that earlier steps write.
    made: BTreeSet<PathBuf>,
}

/// The properties of a model that steps check.
#[derive(Debug, Clone, Copy)]
struct ModelFacts {
    vocab: usize,
    has_experts: bool,
}

impl Recipe {
    /// Refuses steps whose options don't fit their model, judging by config and shapes alone:
    /// existing models, and those that earlier steps make of them. Reads neither weights nor text.
    /// A key that is meant for several steps may have no effect on the model of one of them, if it
    /// has one elsewhere.
    ///
    /// # Errors
    /// The error that the step itself would end with, naming the step.
    pub fn fit_models(&mut self, compute: &Compute) -> Result<()> {
        let (models, results, made) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
        let mut known = KnownModels { compute, models, results, made };
        let mut passed: BTreeMap<KeyOrigin, Error> = BTreeMap::new();
        for index in 0..self.steps.len() {
            while let Err(error) = self.check_model(index, &mut known) {
                let step = &mut self.steps[index];
                let within = format!("step {} ({})", index + 1, step.name());
                let fitting = without(&mut step.keys, &error)?;
                let error = step.in_keys(error).within(&within);
                let Some((fitting, origin)) = fitting else {
                    return Err(error);
                };
                step.kind = fitting.kind;
                passed.entry(origin).or_insert(error);
            }
            known.made.extend(self.steps[index].writes().into_iter().map(Path::to_owned));
        }
        let used: BTreeSet<KeyOrigin> =
            self.steps.iter().flat_map(|step| step.keys.origins()).collect();
        match passed.into_iter().find(|(origin, _)| !used.contains(origin)) {
            Some((_, error)) => Err(error),
            None => Ok(()),
        }
    }

    fn check_model(&self, index: usize, known: &mut KnownModels<'_>) -> Result<()> {
        let step = &self.steps[index];
        match &step.kind {
            StepKind::Convert { passes, .. } => {
                self.check_statistics(index, known)?;
                let passes = passes.iter().map(Box::as_ref).collect();
                self.check_conversion(index, passes, known)
            }
            StepKind::Observe { .. } => match self.facts(&step.model, index, known)? {
                Some(facts) if !facts.has_experts => Err(no_mixture(&step.model)),
                _ => Ok(()),
            },
            StepKind::Eval { original: Some(path), .. } => {
                let facts =
                    [self.facts(&step.model, index, known)?, self.facts(path, index, known)?];
                let [Some(model), Some(original)] = facts else { return Ok(()) };
                check_vocabularies(model.vocab, original.vocab, &path.join(CONFIG_FILE))
            }
            // Finding errors of the model is the task of these steps.
            StepKind::Eval { original: None, .. } | StepKind::Verify | StepKind::Inspect => Ok(()),
        }
    }

    /// Refuses `passes` of step `index` that its model doesn't take, where that can be known.
    fn check_conversion(
        &self,
        index: usize,
        passes: Vec<&dyn Pass>,
        known: &mut KnownModels<'_>,
    ) -> Result<()> {
        let step = &self.steps[index];
        let reads_made = step.reads().into_iter().any(|path| lies_within(path, &known.made));
        let of_existing = if reads_made {
            self.lineage(index, &known.made)
        } else {
            Some((passes, step.model.as_path()))
        };
        match of_existing {
            Some((passes, source)) => known.convert(&passes, source).map(drop),
            None => Ok(()),
        }
    }

    /// Properties of the model at `path` for step `index`: an existing checkpoint, or the result of
    /// earlier steps; None where they can't be known yet.
    fn facts(
        &self,
        path: &Path,
        index: usize,
        known: &mut KnownModels<'_>,
    ) -> Result<Option<ModelFacts>> {
        if !lies_within(path, &known.made) {
            let (_, model) = known.open(path)?;
            return Ok(Some(ModelFacts::of(model)));
        }
        match self.makers(path, index, &known.made) {
            Some((passes, source)) => known.convert(&passes, source).map(Some),
            None => Ok(None),
        }
    }

    /// Refuses statistics that an earlier step is to make of a model other than the one that step
    /// `index` converts.
    fn check_statistics(&self, index: usize, known: &mut KnownModels<'_>) -> Result<()> {
        let step = &self.steps[index];
        for statistics in step.passes().iter().filter_map(|pass| pass.inputs().statistics) {
            let Some(observed) = self.observed(statistics, index) else { continue };
            let is_made = |path: &Path| lies_within(path, &known.made);
            if observed == step.model || is_made(observed) || is_made(&step.model) {
                continue;
            }
            let of = Fingerprint::of(&known.open(observed)?.0)?;
            if of != Fingerprint::of(&known.open(&step.model)?.0)? {
                let what =
                    format!("these statistics will be of another model, {}", observed.display());
                return Err(Error::new(Kind::Mismatch, what)
                    .file(statistics)
                    .remedy("observe the model that this step converts, or convert the one that is observed"));
            }
        }
        Ok(())
    }

    /// The model that a step before step `index` observes for `statistics`; None where no step
    /// makes them.
    fn observed(&self, statistics: &Path, index: usize) -> Option<&Path> {
        let mut earlier = self.steps[..index].iter().rev();
        let writes = |step: &&Step| step.output().is_some_and(|(path, _)| path == statistics);
        earlier.find(writes).map(|maker| maker.model.as_path())
    }
}

impl KnownModels<'_> {
    fn open(&mut self, dir: &Path) -> Result<&(Checkpoint, Model)> {
        if !self.models.contains_key(dir) {
            let checkpoint = Checkpoint::open(dir)?;
            let model = Model::read(&checkpoint)?;
            self.models.insert(dir.to_owned(), (checkpoint, model));
        }
        Ok(&self.models[dir])
    }

    /// The result of `passes` on the checkpoint `source`, or the reason why they can't run.
    fn convert(&mut self, passes: &[&dyn Pass], source: &Path) -> Result<ModelFacts> {
        let key = described(passes, source);
        if let Some(facts) = self.results.get(&key) {
            return Ok(*facts);
        }
        let compute = self.compute;
        let (checkpoint, model) = self.open(source)?;
        let facts = ModelFacts::of(&check_passes(passes, checkpoint, model, compute)?);
        self.results.insert(key, facts);
        Ok(facts)
    }
}

impl ModelFacts {
    fn of(model: &Model) -> Self {
        Self { vocab: model.vocab, has_experts: model.moes().next().is_some() }
    }
}

/// A key for passes with their options, and their source.
fn described(passes: &[&dyn Pass], source: &Path) -> String {
    let passes = passes.iter().map(|pass| format!("{}{}", pass.name(), pass.options()));
    passes.chain([source.display().to_string()]).collect::<Vec<_>>().join("\n")
}
