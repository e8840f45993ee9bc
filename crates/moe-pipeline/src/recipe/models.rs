//! What models that are there say of a recipe's steps before the first one runs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use moe_checkpoint::{CONFIG_FILE, Checkpoint, Error, Kind, Result};
use moe_forward::check_vocabularies;
use moe_math::Compute;
use moe_model::Model;
use moe_passes::Pass;

use super::check::lies_within;
use super::spare::Origin;
use super::{Recipe, Step, StepKind};
use crate::fingerprint::Fingerprint;
use crate::observe::no_mixture;
use crate::run::check_passes;

/// What is known so far.
struct Known<'a> {
    compute: &'a Compute,
    /// Checkpoints by their directories: many steps read the same few.
    models: BTreeMap<PathBuf, (Checkpoint, Model)>,
    /// What passes make, by passes and source: combinations of choices repeat what they have in
    /// common.
    results: BTreeMap<String, Facts>,
    /// What the steps so far write.
    made: BTreeSet<PathBuf>,
}

/// What is asked of a model that a step reads.
#[derive(Debug, Clone, Copy)]
struct Facts {
    vocab: usize,
    has_experts: bool,
}

impl Recipe {
    /// Refuses steps whose options don't fit the model that they read, as far as its config and
    /// shapes say it: models that are there, and those that earlier steps make of them. No weight
    /// and no text is read. Keys for several steps that do nothing for the model of one of them
    /// pass by it, if they do something for another.
    ///
    /// # Errors
    /// What the step itself would end with, naming the step.
    pub fn fit_models(&mut self, compute: &Compute) -> Result<()> {
        let (models, results, made) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
        let mut known = Known { compute, models, results, made };
        let mut passed: BTreeMap<Origin, Error> = BTreeMap::new();
        for index in 0..self.steps.len() {
            while let Err(error) = self.check_model(index, &mut known) {
                let step = &mut self.steps[index];
                let within = format!("step {} ({})", index + 1, step.name());
                let Some((fitting, origin)) = step.keys.without(&error)? else {
                    return Err(error.within(&within));
                };
                step.kind = fitting.kind;
                passed.entry(origin).or_insert_with(|| error.within(&within));
            }
            known.made.extend(self.steps[index].writes().into_iter().map(Path::to_owned));
        }
        let used: BTreeSet<Origin> =
            self.steps.iter().flat_map(|step| step.keys.origins()).collect();
        match passed.into_iter().find(|(origin, _)| !used.contains(origin)) {
            Some((_, error)) => Err(error),
            None => Ok(()),
        }
    }

    fn check_model(&self, index: usize, known: &mut Known<'_>) -> Result<()> {
        let step = &self.steps[index];
        match &step.kind {
            StepKind::Convert { passes, .. } => {
                self.check_statistics(index, known)?;
                if !step.reads().into_iter().any(|path| lies_within(path, &known.made)) {
                    let passes: Vec<&dyn Pass> = passes.iter().map(Box::as_ref).collect();
                    known.convert(&passes, &step.model)?;
                } else if let Some((passes, source)) = self.lineage(index, &known.made) {
                    known.convert(&passes, source)?;
                }
                Ok(())
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
            // What is wrong with the model is what they are to find.
            StepKind::Eval { original: None, .. } | StepKind::Verify | StepKind::Inspect => Ok(()),
        }
    }

    /// What step `index` finds at `path`: a checkpoint that is there, or what earlier steps make;
    /// none where that can't be known yet.
    fn facts(&self, path: &Path, index: usize, known: &mut Known<'_>) -> Result<Option<Facts>> {
        if !lies_within(path, &known.made) {
            let (_, model) = known.open(path)?;
            return Ok(Some(Facts::of(model)));
        }
        match self.makers(path, index, &known.made) {
            Some((passes, source)) => known.convert(&passes, source).map(Some),
            None => Ok(None),
        }
    }

    /// Refuses statistics that an earlier step is to make of another model than the one that step
    /// `index` converts.
    fn check_statistics(&self, index: usize, known: &mut Known<'_>) -> Result<()> {
        let step = &self.steps[index];
        let StepKind::Convert { passes, .. } = &step.kind else { return Ok(()) };
        for statistics in passes.iter().filter_map(|pass| pass.inputs().statistics) {
            let writes =
                |earlier: &&Step| earlier.output().is_some_and(|(path, _)| path == statistics);
            let Some(observed) =
                self.steps[..index].iter().rev().find(writes).map(|maker| maker.model.as_path())
            else {
                continue;
            };
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
}

impl Known<'_> {
    fn open(&mut self, dir: &Path) -> Result<&(Checkpoint, Model)> {
        if !self.models.contains_key(dir) {
            let checkpoint = Checkpoint::open(dir)?;
            let model = Model::read(&checkpoint)?;
            self.models.insert(dir.to_owned(), (checkpoint, model));
        }
        Ok(&self.models[dir])
    }

    /// What `passes` make of the checkpoint `source`, or why they can't.
    fn convert(&mut self, passes: &[&dyn Pass], source: &Path) -> Result<Facts> {
        let key = described(passes, source);
        if let Some(facts) = self.results.get(&key) {
            return Ok(*facts);
        }
        let compute = self.compute;
        let (checkpoint, model) = self.open(source)?;
        let facts = Facts::of(&check_passes(passes, checkpoint, model, compute)?);
        self.results.insert(key, facts);
        Ok(facts)
    }
}

impl Facts {
    fn of(model: &Model) -> Self {
        Self { vocab: model.vocab, has_experts: model.moes().next().is_some() }
    }
}

/// Passes with their options, and what they convert.
fn described(passes: &[&dyn Pass], source: &Path) -> String {
    let passes = passes.iter().map(|pass| format!("{}{}", pass.name(), pass.options()));
    passes.chain([source.display().to_string()]).collect::<Vec<_>>().join("\n")
}
