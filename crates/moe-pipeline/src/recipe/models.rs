//! What models that are there say of a recipe's steps before the first one runs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use moe_checkpoint::{Checkpoint, Result};
use moe_forward::check_vocabularies;
use moe_math::Compute;
use moe_model::Model;
use moe_passes::Pass;

use super::{Recipe, Step, StepKind};
use crate::observe::check_mixtures;
use crate::prepare::check_passes;

/// Checkpoints by their directories: many steps read the same few.
#[derive(Default)]
struct Models(BTreeMap<PathBuf, (Checkpoint, Model)>);

impl Models {
    fn open(&mut self, dir: &Path) -> Result<()> {
        if !self.0.contains_key(dir) {
            let checkpoint = Checkpoint::open(dir)?;
            let model = Model::read(&checkpoint)?;
            self.0.insert(dir.to_owned(), (checkpoint, model));
        }
        Ok(())
    }
}

impl Recipe {
    /// Refuses steps whose options don't fit the model that they read, as far as its config and shapes say it: models that are
    /// there, and those that earlier steps make of them. No weight and no text is read.
    ///
    /// # Errors
    /// What the step itself would end with, naming the step.
    pub fn check_models(&self, compute: &Compute) -> Result<()> {
        let mut models = Models::default();
        // Combinations of choices repeat what they have in common.
        let mut checked: BTreeSet<String> = BTreeSet::new();
        let mut made: BTreeSet<PathBuf> = BTreeSet::new();
        for (index, step) in self.steps.iter().enumerate() {
            self.check_model(index, &made, &mut models, &mut checked, compute)
                .map_err(|error| error.within(&format!("step {} ({})", index + 1, step.name())))?;
            made.extend(step.writes().into_iter().map(Path::to_owned));
        }
        Ok(())
    }

    fn check_model(
        &self,
        index: usize,
        made: &BTreeSet<PathBuf>,
        models: &mut Models,
        checked: &mut BTreeSet<String>,
        compute: &Compute,
    ) -> Result<()> {
        let step = &self.steps[index];
        let StepKind::Convert { passes, .. } = &step.kind else { return check_reader(step, made, models) };
        let is_made = |path: &Path| made.iter().any(|output| path.starts_with(output));
        let (passes, source) = match step.reads().into_iter().any(is_made) {
            false => (passes.iter().map(Box::as_ref).collect(), step.model.as_path()),
            true => match self.lineage(index, made) {
                Some(lineage) => lineage,
                None => return Ok(()),
            },
        };
        if checked.insert(described(&passes, source)) {
            models.open(source)?;
            let (checkpoint, model) = &models.0[source];
            check_passes(&passes, checkpoint, model, compute)?;
        }
        Ok(())
    }
}

/// The same for a step that only reads.
fn check_reader(step: &Step, made: &BTreeSet<PathBuf>, models: &mut Models) -> Result<()> {
    let reads = step.reads();
    if reads.iter().any(|path| made.iter().any(|output| path.starts_with(output))) {
        return Ok(());
    }
    match &step.kind {
        StepKind::Observe { .. } => {
            models.open(&step.model)?;
            check_mixtures(&models.0[&step.model].1, &step.model)
        }
        StepKind::Eval { against: Some(against), .. } => {
            models.open(&step.model)?;
            models.open(against)?;
            check_vocabularies(&models.0[&step.model].1, &models.0[against].1)
        }
        // What is wrong with the model is what they are to find.
        _ => Ok(()),
    }
}

/// Passes with their options, and what they convert.
fn described(passes: &[&dyn Pass], source: &Path) -> String {
    let passes = passes.iter().map(|pass| format!("{}{}", pass.name(), pass.options()));
    passes.chain([source.display().to_string()]).collect::<Vec<_>>().join("\n")
}
