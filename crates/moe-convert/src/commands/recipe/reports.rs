//! Files that report on a run of a recipe: JUnit XML and a summary in Markdown.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Result;
use moe_checkpoint::{
    Error, FoundFile, Kind, Locations, StagedFile, check_file, is_stream, lies_in_a_model,
    open_stream, open_to_append, unless_closed,
};
use moe_pipeline::{
    Average, JUNIT, Progress, StepOutcome, StepStatus, check_summary, junit, markdown,
};

/// The files that report on a recipe's steps.
pub(in crate::commands) struct Reports {
    junit: Option<PathBuf>,
    /// Whether an earlier JUnit file is replaced.
    overwrite: bool,
    summary: Option<PathBuf>,
    /// The JUnit file as this run last saw or wrote it; only that may be replaced.
    found: FoundFile,
    /// The JUnit output if it is a stream. It is opened before the steps, since its reader may be
    /// gone when they are done.
    junit_stream: Option<StagedFile>,
    /// The summary output if it isn't a file. It is opened once: the reader of a pipe would take a
    /// second opening for the end.
    stream: Option<File>,
    /// The first error of writing the JUnit file while steps ran; it stops no step.
    failed: Option<Error>,
}

impl Reports {
    /// Reports that go to the files `junit` and `summary`. An earlier JUnit file is replaced with
    /// `overwrite`.
    pub fn new(junit: Option<PathBuf>, overwrite: bool, summary: Option<PathBuf>) -> Self {
        let found = FoundFile::default();
        Self { junit, overwrite, summary, found, junit_stream: None, stream: None, failed: None }
    }

    pub(super) fn paths(&self) -> Vec<&Path> {
        [&self.junit, &self.summary].into_iter().filter_map(|path| path.as_deref()).collect()
    }

    /// Refuses outputs that can't be written to, or that hold something else, before any step runs.
    pub(super) fn check(&mut self) -> Result<()> {
        check_folder("--junit", self.junit.as_deref())?;
        check_folder("--summary", self.summary.as_deref())?;
        if let Some(path) = &self.junit {
            self.found = check_file(path, &JUNIT, self.overwrite)?;
            if self.found.is_stream() {
                self.junit_stream = Some(StagedFile::create(path, self.found)?);
            }
        }
        if let Some(path) = &self.summary {
            check_summary(path)?;
            if is_stream(path) {
                self.stream = Some(open_stream(path)?);
            } else {
                try_to_append(path)?;
            }
        }
        Ok(())
    }

    pub(super) fn write(
        &mut self,
        recipe: &str,
        steps: &[StepOutcome],
        averages: &[Average],
    ) -> Result<()> {
        let junit = self.write_junit(recipe, steps);
        if let Some(path) = &self.summary {
            let text = markdown(recipe, steps, averages);
            let written = match &mut self.stream {
                Some(stream) => unless_closed(stream.write_all(text.as_bytes())),
                // Steps of a CI job share this file.
                None => open_to_append(path)?.write_all(text.as_bytes()),
            };
            written.map_err(|e| Error::io("cannot write this summary", path, e))?;
        }
        junit?;
        self.failed.take().map_or(Ok(()), |error| Err(error.into()))
    }

    /// Writes the JUnit file before a step, so that a killed job leaves one that names the step. A
    /// report that can't be written stops no step.
    pub(super) fn note_junit(
        &mut self,
        recipe: &str,
        steps: &[StepOutcome],
        progress: &dyn Progress,
    ) {
        // The reader of a pipe expects one report.
        if self.found.is_stream() {
            return;
        }
        let had_failed = self.failed.is_some();
        // The final report may succeed all the same, and otherwise reports the error.
        let failed = self.write_junit(recipe, steps).err();
        let said = failed.as_ref().or(self.failed.as_ref()).filter(|_| !had_failed);
        if let Some(error) = said {
            progress.note(&format!("the JUnit file: {}", error.briefly()));
        }
    }

    /// Replaces the JUnit file. If somebody else has put a file in its place meanwhile, that stays,
    /// and from then on the report goes into a file next to it.
    fn write_junit(&mut self, recipe: &str, steps: &[StepOutcome]) -> Result<(), Error> {
        let Some(path) = &self.junit else { return Ok(()) };
        let file =
            self.junit_stream.take().map_or_else(|| StagedFile::create(path, self.found), Ok)?;
        let placed = file.place(|file| file.write_all(junit(recipe, steps).as_bytes()))?;
        self.found = placed.found;
        if let Some((place, error)) = placed.elsewhere {
            self.junit = Some(place);
            self.failed.get_or_insert(error);
        }
        Ok(())
    }

    /// Reports that the recipe was refused because of `error`.
    pub(super) fn refused(&mut self, recipe: &str, error: Error) -> anyhow::Error {
        let status = StepStatus::failed(Some(error.kind()), error.to_string());
        let refused = [StepOutcome { name: "the recipe".to_owned(), seconds: 0.0, status }];
        // The reason of the refusal matters more than a report that couldn't be written.
        let _ = self.write(recipe, &refused, &[]);
        error.into()
    }

    /// Reports a refusal that came before the outputs of reports were checked. They are checked
    /// now, and nothing is written if that fails.
    pub(super) fn refused_early(&mut self, recipe: &str, error: Error) -> anyhow::Error {
        match self.check() {
            Ok(()) => self.refused(recipe, error),
            Err(_) => error.into(),
        }
    }

    /// Reports that the recipe `path` can't be parsed. Of its inputs only the recipe itself is
    /// known, so no report is written into a folder of a model or result.
    pub(super) fn refused_unread(&mut self, path: &Path, error: Error) -> anyhow::Error {
        let mut locations = Locations::default();
        locations.reads(path);
        if self
            .paths()
            .into_iter()
            .any(|report| lies_in_a_model(report) || locations.writes(report).is_err())
        {
            return error.into();
        }
        self.refused_early(&path.file_stem().unwrap_or_default().to_string_lossy(), error)
    }
}

fn check_folder(option: &str, path: Option<&Path>) -> Result<(), Error> {
    let Some(path) = path else { return Ok(()) };
    let is_there = |folder: &Path| folder.as_os_str().is_empty() || folder.is_dir();
    if path.parent().is_none_or(is_there) {
        return Ok(());
    }
    let what = format!("{option} can't be written here, since the folder doesn't exist");
    Err(Error::new(Kind::Usage, what).file(path).remedy("give a file in a folder that exists"))
}

/// Opens `path` without writing, so that a place that can't be written to is found before the
/// steps.
fn try_to_append(path: &Path) -> Result<(), Error> {
    let is_new = path.symlink_metadata().is_err();
    drop(open_to_append(path)?);
    if is_new {
        fs::remove_file(path)
            .map_err(|e| Error::io("cannot remove this empty file again", path, e))?;
    }
    Ok(())
}
