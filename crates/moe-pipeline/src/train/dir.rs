//! The directory beside a result in which its training is kept.

use std::path::{Path, PathBuf};

use moe_checkpoint::{Error, Kind, Result};

/// Where a training keeps what it goes on from, and its log.
pub(crate) struct TrainingDir(PathBuf);

const STATE_FILE: &str = "state.safetensors";
/// A line of JSON for each step and each measurement.
pub(crate) const LOG_FILE: &str = "training.jsonl";

impl TrainingDir {
    /// That of the result `output`, beside it.
    pub fn of(output: &Path) -> Self {
        let name = output.file_name().unwrap_or_default().to_string_lossy();
        Self(output.with_file_name(format!("{name}.training")))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Whether there is something to go on from.
    pub fn has_state(&self) -> bool {
        self.0.join(STATE_FILE).is_file()
    }

    /// Refuses to begin anew where a killed run has left something.
    ///
    /// # Errors
    /// [`Kind::Usage`] then.
    pub fn check_unused(&self) -> Result<()> {
        match self.0.is_dir() {
            false => Ok(()),
            true => Err(Error::new(Kind::Usage, "a run that was stopped left here what it had trained")
                .file(&self.0)
                .remedy("give --resume to go on with it, or --overwrite to begin anew")),
        }
    }

    /// The file of that.
    pub fn state(&self) -> PathBuf {
        self.0.join(STATE_FILE)
    }

    /// The log, kept up to the steps that were taken.
    pub fn log(&self, steps: u64) -> Result<std::fs::File> {
        let path = self.0.join(LOG_FILE);
        let fail = |e| Error::io("cannot write the log of this training", &path, e);
        let text = if steps > 0 { std::fs::read_to_string(&path).unwrap_or_default() } else { String::new() };
        let taken = |line: &&str| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap_or_default();
            line["step"].as_u64().is_some_and(|step| step <= steps)
        };
        let kept: String = text.lines().filter(taken).map(|line| format!("{line}\n")).collect();
        std::fs::write(&path, kept).map_err(fail)?;
        std::fs::OpenOptions::new().append(true).open(&path).map_err(fail)
    }
}
