//! Results of conversions that are finished already, or that an earlier step has made.

use std::path::Path;

use anyhow::Result;
use moe_checkpoint::shown_path;
use moe_passes::Pass;
use moe_pipeline::{ConvertOptions, FoundResult, Progress, Run};

use crate::commands::{Session, other_result};

/// The conversion that a step makes.
pub(super) struct Conversion<'r> {
    pub passes: Vec<&'r dyn Pass>,
    pub input: &'r Path,
    pub output: &'r Path,
    pub options: ConvertOptions,
}

impl<'r> Conversion<'r> {
    pub fn new(
        passes: &'r [Box<dyn Pass>],
        input: &'r Path,
        output: &'r Path,
        options: ConvertOptions,
    ) -> Self {
        Self { passes: passes.iter().map(Box::as_ref).collect(), input, output, options }
    }

    /// The run that makes it.
    pub fn run<'c>(&'c self, progress: &'c dyn Progress) -> Run<'c> {
        Run::new(&self.passes, self.input, self.output, &self.options, progress)
    }
}

/// Whether the output of `run` is what it would make.
fn is_finished(run: &mut Run<'_>) -> Result<bool> {
    match run.find() {
        // The old output is replaced, whatever is wrong with it. A missing input is reported, or
        // made by an earlier step, later.
        Err(_) if run.overwrites() || !run.input().exists() => Ok(false),
        Err(error) => Err(error.into()),
        Ok(FoundResult::Same) => Ok(true),
        Ok(FoundResult::Other(found)) if !run.overwrites() => {
            Err(other_result(&found, run.output()).into())
        }
        Ok(FoundResult::Other(_) | FoundResult::Nothing) => Ok(false),
    }
}

impl Session {
    /// Whether the output of `run` is finished, or was copied from one of the results `alike`.
    pub(super) fn reuse(&self, run: &mut Run<'_>, alike: &[&Path]) -> Result<bool> {
        let output = run.output();
        if is_finished(run)? {
            self.kept(output)?;
            return Ok(true);
        }
        for from in alike {
            if run.copy_finished(from)? {
                self.print_copied(from, output)?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn print_copied(&self, from: &Path, output: &Path) -> Result<()> {
        let value = serde_json::json!({
            "finished": output.to_string_lossy(),
            "copied_from": from.to_string_lossy(),
        });
        self.print(&value, || {
            let (output, from) = (shown_path(output), shown_path(from));
            format!("{output} is a copy of {from}: same passes, options and source\n")
        })
    }
}
