//! Checks on all steps of a recipe together, so that a long run neither fails at its end nor
//! averages what doesn't belong together.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use moe_checkpoint::{Error, Kind, Locations, Result, Snapshot, is_stream};
use moe_forward::DataSpec;
use moe_passes::{Inputs, Pass};

use super::mistake::usage;
use super::parsed::{Recipe, Step, StepKind};
use crate::train::TrainingDir;

/// `steps` without those that would only repeat an earlier one, such as steps that several
/// combinations of choices share.
pub(super) fn shared(steps: Vec<Step>) -> Vec<Step> {
    let mut kept: Vec<Step> = Vec::new();
    // Keyed by output, which repeated steps share: there can be thousands of steps.
    let mut by_output: BTreeMap<OsString, Vec<usize>> = BTreeMap::new();
    for step in steps {
        let Some((output, _)) = step.output() else {
            kept.push(step);
            continue;
        };
        let alike = by_output.entry(output.as_os_str().to_owned()).or_default();
        // Its inputs and outputs must be unchanged since the earlier step.
        let touched: Vec<&Path> = step.reads().into_iter().chain(step.writes()).collect();
        let touches = |other: &Step| other.writes().iter().any(|path| touched.contains(path));
        let twin = alike.iter().copied().rev().find(|other| kept[*other].does_as(&step));
        let twin = twin.filter(|twin| !kept[twin + 1..].iter().any(touches));
        match twin.map(|twin| &mut kept[twin]) {
            Some(twin) => twin.chosen = common(&twin.chosen, &step.chosen),
            None => {
                alike.push(kept.len());
                kept.push(step);
            }
        }
    }
    kept
}

/// Whether `path` is one of `outputs`, or lies in one.
pub(super) fn lies_within<P: Borrow<Path> + Ord>(path: &Path, outputs: &BTreeSet<P>) -> bool {
    path.ancestors().any(|ancestor| outputs.contains(ancestor))
}

/// The remedy for a path of a recipe that doesn't exist.
fn absent_remedy(path: &Path) -> &'static str {
    let text = path.to_string_lossy();
    if text.starts_with('~') || text.contains(['*', '$']) {
        "write the path out: recipes expand no ~, * or $NAME, but ${variables} of their own"
    } else {
        "correct the path, or write it in an earlier step"
    }
}

/// The choices that two lists have in common.
fn common(a: &str, b: &str) -> String {
    let of_b: Vec<&str> = b.split(", ").collect();
    a.split(", ").filter(|choice| of_b.contains(choice)).collect::<Vec<_>>().join(", ")
}

/// Refuses steps that write over each other without being told to, and evaluations that share a row
/// but not the text or the original.
pub(super) fn steps(steps: &[Step]) -> Result<()> {
    check_written(steps)?;
    check_rows(steps)
}

/// Refuses steps that write over each other without being told to.
fn check_written(steps: &[Step]) -> Result<()> {
    let mut written: BTreeMap<&Path, usize> = BTreeMap::new();
    for (number, step) in (1..).zip(steps) {
        let overwrite = step.output().is_some_and(|(_, overwrite)| overwrite);
        for output in step.writes().into_iter().filter(|output| !is_stream(output)) {
            if let Some(earlier) = written.insert(output, number).filter(|_| !overwrite) {
                let (name, output) = (step.name(), output.display());
                let what =
                    format!("step {number} ({name}) writes to {output}, as step {earlier} does");
                return Err(usage(what, "let a variable tell them apart, or say overwrite = true"));
            }
        }
    }
    Ok(())
}

/// Refuses evaluations that share a row but not the text or the original.
fn check_rows(steps: &[Step]) -> Result<()> {
    let evaluations =
        (1..).zip(steps).filter(|(_, step)| matches!(step.kind, StepKind::Eval { .. }));
    let mut rows: BTreeMap<String, (usize, &Step)> = BTreeMap::new();
    for (number, step) in evaluations {
        let (earlier, first) = *rows.entry(step.row()).or_insert((number, step));
        if !first.measures_as(step) {
            let (name, row) = (step.name(), step.row());
            let what = format!(
                "step {number} ({name}) has the label of step {earlier}, {row:?}, but not its data, \
                 limits and original: runs of one label are averaged"
            );
            let remedy = "give it a label of its own, or the same text, limits and original";
            return Err(usage(what, remedy));
        }
    }
    Ok(())
}

/// Whether both have the same passes with the same options and the same further outputs.
fn same_work(a: &[Box<dyn Pass>], b: &[Box<dyn Pass>]) -> bool {
    a.len() == b.len()
        && a.iter().zip(b).all(|(a, b)| {
            (a.name(), a.options(), a.outputs()) == (b.name(), b.options(), b.outputs())
        })
}

impl Recipe {
    /// Refuses missing inputs, on which a late step would fail after all others have run: files and
    /// checkpoints that don't exist and that no earlier step makes.
    ///
    /// # Errors
    /// [`Kind::Missing`], naming the step.
    pub fn check_inputs(&self) -> Result<()> {
        let mut made: BTreeSet<&Path> = BTreeSet::new();
        for (index, step) in self.steps.iter().enumerate() {
            let is_there = |path: &&Path| path.exists() || lies_within(path, &made);
            if let Some(path) =
                step.reads().into_iter().chain(step.texts()).find(|path| !is_there(path))
            {
                let what = format!(
                    "step {} ({}) reads a path that isn't there and that no earlier step writes",
                    index + 1,
                    step.name()
                );
                return Err(Error::new(Kind::Missing, what).file(path).remedy(absent_remedy(path)));
            }
            if let StepKind::Eval { options, .. } = &step.kind {
                let place = format!("step {} ({})", index + 1, step.name());
                options.check_golden().map_err(|error| step.in_keys(error).within(&place))?;
            }
            made.extend(step.writes());
        }
        Ok(())
    }

    /// Refuses outputs that overlap with inputs that no earlier step makes, with the recipe `path`,
    /// or with each other. `reports` are written in addition to the steps' results.
    ///
    /// # Errors
    /// As for [`Locations::writes`].
    pub fn check_outputs(&self, path: &Path, reports: &[&Path]) -> Result<()> {
        let mut locations = Locations::default();
        locations.reads(path);
        let mut made: BTreeSet<&Path> = BTreeSet::new();
        for step in &self.steps {
            // Results of a step may be read, and replaced, by later steps. No step makes text.
            let is_made = |path: &&Path| lies_within(path, &made);
            step.reads()
                .into_iter()
                .filter(|path| !is_made(path))
                .for_each(|path| locations.reads(path));
            step.texts()
                .into_iter()
                .filter(|path| !made.contains(path))
                .for_each(|path| locations.reads(path));
            made.extend(step.writes());
        }
        let outputs: BTreeSet<&Path> = self.steps.iter().flat_map(Step::writes).collect();
        outputs.iter().try_for_each(|path| locations.writes(path))?;
        let trainings: BTreeSet<PathBuf> = self.steps.iter().filter_map(Step::training).collect();
        trainings.iter().try_for_each(|path| locations.writes(path))?;
        reports.iter().try_for_each(|path| locations.writes(path))
    }

    /// The results that steps before step `index` made by the same passes with the same options.
    pub fn made_alike(&self, index: usize) -> Vec<&Path> {
        let StepKind::Convert { passes, .. } = &self.steps[index].kind else { return Vec::new() };
        // Only the result can be copied, not a plan.
        if passes.iter().any(|pass| pass.outputs().plan.is_some()) {
            return Vec::new();
        }
        let earlier = self.steps[..index].iter().filter_map(|step| match &step.kind {
            StepKind::Convert { passes: other, output, .. } if same_work(passes, other) => {
                Some(output.as_path())
            }
            _ => None,
        });
        earlier.collect()
    }

    /// The passes that lead to the result of step `index` from an existing checkpoint, and that
    /// checkpoint. None unless the step's own model is yet to be made and all its other inputs
    /// exist. Paths in `stale` count as missing.
    pub fn lineage(
        &self,
        index: usize,
        stale: &BTreeSet<PathBuf>,
    ) -> Option<(Vec<&dyn Pass>, &Path)> {
        let step = &self.steps[index];
        let StepKind::Convert { passes: own, .. } = &step.kind else { return None };
        let is_there = |path: &Path| path.exists() && !stale.contains(path);
        let lacks = |path: &&Path| **path != step.model && !is_there(path);
        // Statistics belong to a checkpoint, and there is none between these passes.
        if is_there(&step.model)
            || step.reads().iter().any(lacks)
            || own.iter().any(|pass| pass.inputs().statistics.is_some())
        {
            return None;
        }
        let (mut passes, source) = self.makers(&step.model, index, stale)?;
        passes.extend(own.iter().map(Box::as_ref));
        Some((passes, source))
    }

    /// The passes by which steps before step `index` make the missing `model` from an existing
    /// checkpoint, and that checkpoint. None where no step makes it, or another input of these
    /// steps is missing, too.
    pub(super) fn makers(
        &self,
        model: &Path,
        index: usize,
        stale: &BTreeSet<PathBuf>,
    ) -> Option<(Vec<&dyn Pass>, &Path)> {
        let is_there = |path: &Path| path.exists() && !stale.contains(path);
        let (mut passes, mut model, mut end) = (Vec::new(), model, index);
        loop {
            let writes = |step: &Step| step.output().is_some_and(|(path, _)| path == model);
            let at = self.steps[..end].iter().rposition(writes)?;
            let step = &self.steps[at];
            let StepKind::Convert { passes: own, .. } = &step.kind else { return None };
            passes.splice(0..0, own.iter().map(Box::as_ref));
            if step.reads().iter().any(|path| *path != step.model && !is_there(path)) {
                return None;
            }
            if is_there(&step.model) {
                return Some((passes, &step.model));
            }
            if own.iter().any(|pass| pass.inputs().statistics.is_some()) {
                return None;
            }
            (model, end) = (&step.model, at);
        }
    }

    /// The first input of step `index` that an earlier step has yet to make, or has made from a
    /// `stale` one, and that step's number.
    pub fn awaited(&self, index: usize, stale: &BTreeSet<PathBuf>) -> Option<(&Path, usize)> {
        let reads = self.steps[index].reads();
        let earlier = self.steps[..index].iter().enumerate();
        let outputs = earlier.flat_map(|(index, step)| {
            step.writes().into_iter().map(move |output| (output, index + 1))
        });
        outputs.into_iter().find(|(output, _)| {
            reads.contains(output) && (!output.exists() || stale.contains(*output))
        })
    }
}

/// Adds `path` to `files`, and everything below it. A folder's time shows whether entries were
/// added or removed.
fn add_all(path: &Path, files: &mut Snapshot) {
    files.add(path);
    for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
        // Links to folders aren't followed, since a link could lead back here.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            add_all(&entry.path(), files);
        } else {
            files.add(&entry.path());
        }
    }
}

impl Step {
    /// The inputs of the step, except text.
    pub(super) fn reads(&self) -> Vec<&Path> {
        let mut all: Vec<&Path> = match &self.kind {
            StepKind::Convert { passes, .. } => passes
                .iter()
                .flat_map(|pass| {
                    let Inputs { models, statistics, plan, .. } = pass.inputs();
                    models.iter().map(PathBuf::as_path).chain(statistics).chain(plan)
                })
                .collect(),
            StepKind::Eval { original, .. } => original.iter().map(PathBuf::as_path).collect(),
            StepKind::Observe { .. } | StepKind::Verify | StepKind::Inspect => Vec::new(),
        };
        all.push(&self.model);
        all
    }

    /// The files of text, goldens and statistics to add to that the step reads.
    fn texts(&self) -> Vec<&Path> {
        match &self.kind {
            StepKind::Eval { options, .. } => {
                DataSpec::files(&options.data).chain(options.gates.golden.as_deref()).collect()
            }
            StepKind::Observe { options, .. } => DataSpec::files(&options.calibration.data)
                .chain(options.add.iter().map(PathBuf::as_path))
                .collect(),
            StepKind::Convert { passes, .. } => {
                passes.iter().flat_map(|pass| pass.inputs().texts()).collect()
            }
            StepKind::Verify | StepKind::Inspect => Vec::new(),
        }
    }

    /// All paths that the step writes.
    pub fn writes(&self) -> Vec<&Path> {
        let plans = self.passes().iter().filter_map(|pass| pass.outputs().plan);
        self.output().map(|(output, _)| output).into_iter().chain(plans).collect()
    }

    /// The state of all files that the step reads, and of everything at its outputs.
    pub fn snapshot(&self) -> Snapshot {
        let mut files = Snapshot::default();
        for path in self.reads().into_iter().chain(self.texts()).chain(self.writes()) {
            add_all(path, &mut files);
        }
        files
    }

    /// The directory of the step's saved training; None if it doesn't train.
    fn training(&self) -> Option<PathBuf> {
        let StepKind::Convert { passes, output, .. } = &self.kind else { return None };
        passes
            .iter()
            .any(|pass| pass.outputs().training)
            .then(|| TrainingDir::of(output).path().to_owned())
    }

    /// The output of the step, and whether an earlier one is replaced; None if it has none.
    pub(super) fn output(&self) -> Option<(&Path, bool)> {
        match &self.kind {
            StepKind::Convert { output, overwrite, .. }
            | StepKind::Observe { output, overwrite, .. } => Some((output, *overwrite)),
            StepKind::Eval { .. } | StepKind::Verify | StepKind::Inspect => None,
        }
    }

    /// Whether both make the same from the same inputs, at the same place.
    fn does_as(&self, other: &Self) -> bool {
        if self.model != other.model || self.output() != other.output() {
            return false;
        }
        match (&self.kind, &other.kind) {
            (
                StepKind::Convert { passes: a, writing: of, .. },
                StepKind::Convert { passes: b, writing: to, .. },
            ) => of == to && same_work(a, b),
            (StepKind::Observe { options: a, .. }, StepKind::Observe { options: b, .. }) => {
                serde_json::to_value(a).ok() == serde_json::to_value(b).ok()
            }
            _ => false,
        }
    }

    /// The output of the step or, without one, its model.
    pub(super) fn subject(&self) -> &Path {
        self.output().map_or(self.model.as_path(), |(output, _)| output)
    }

    /// Whether both evaluate on the same text, compared with the same original.
    fn measures_as(&self, other: &Self) -> bool {
        match (&self.kind, &other.kind) {
            (
                StepKind::Eval { original: a, options: of },
                StepKind::Eval { original: b, options: to },
            ) => {
                a == b
                    && (&of.data, of.sequence_length, of.data_tokens)
                        == (&to.data, to.sequence_length, to.data_tokens)
            }
            _ => false,
        }
    }
}
