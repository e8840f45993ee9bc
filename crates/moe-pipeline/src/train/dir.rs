//! The folder next to a result in which its training is saved.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use moe_checkpoint::{
    Error, Kind, LOG_FILE, Result, Saved, SavedFolder, open_to_append, read_text,
    write_file_atomically,
};

use super::log::{self, LoggedSteps};

/// The state that a training of the whole model resumes from.
pub(super) const STATE_FILE: &str = "state.safetensors";
/// Maximum size of a log, larger than that of years of training.
const MAX_LOG_BYTES: u64 = 4 << 30;

/// The note where `--resume` finds nothing to resume from.
pub(crate) const NOTHING_SAVED: &str = "nothing was saved here: training begins anew";

/// The folder with a training's saved state and its log.
pub(crate) struct TrainingDir(SavedFolder);

impl TrainingDir {
    /// The folder of the result `output`, next to it.
    pub fn of(output: &Path) -> Self {
        let name = output.file_name().unwrap_or_default().to_string_lossy();
        Self(SavedFolder::new(
            output.with_file_name(format!("{name}.training")),
            &[STATE_FILE, LOG_FILE],
        ))
    }

    /// The path of the folder.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// The path of its log.
    pub fn log(&self) -> PathBuf {
        self.path().join(LOG_FILE)
    }

    /// Refuses a folder that holds other files and, unless a run may `resume` or `overwrite`, the
    /// state that a killed run has left.
    ///
    /// # Errors
    /// [`Kind::Usage`] for these; as for [`SavedFolder::is_used`].
    pub fn check(&self, resume: bool, overwrite: bool) -> Result<()> {
        if !self.0.is_used()? || resume || overwrite {
            return Ok(());
        }
        Err(Error::new(Kind::Usage, "the training of a stopped run is saved here")
            .file(self.path())
            .remedy("give --resume to go on with it, or --overwrite to start over"))
    }

    /// Whether a killed run has left something to resume from.
    pub fn is_used(&self) -> Result<bool> {
        self.0.is_used()
    }

    /// Opens the folder for the run of this `key`.
    ///
    /// # Errors
    /// As for [`SavedFolder::open`].
    pub fn open(self, key: String, resume: bool) -> Result<Saved> {
        self.0.open(key, resume)
    }

    /// Removes the folder if a failed run has saved nothing to resume from.
    pub fn remove_unless_saved(&self) {
        if self.0.holds_only(LOG_FILE) {
            // The error of the run matters more than one about a log.
            let _ = self.0.remove();
        }
    }

    /// Removes the folder once the result contains everything that it was for.
    ///
    /// # Errors
    /// As for [`SavedFolder::remove`].
    pub fn remove(&self) -> Result<()> {
        self.0.remove()
    }
}

/// The folder next to the result `output` in which a stopped training is saved; None where there is
/// none.
pub fn training_left(output: &Path) -> Option<PathBuf> {
    let training = TrainingDir::of(output);
    training.is_used().is_ok_and(|used| used).then(|| training.path().to_owned())
}

/// Opens the log of the training in `saved` for appending after the part that was `written` when
/// the state after `steps` steps was saved; later lines are dropped. Returns the remaining text,
/// too.
///
/// # Errors
/// [`Kind::Malformed`] where the log begins with anything else; [`Kind::Io`] where writing fails.
pub(super) fn open_log(saved: &Saved, steps: u64, written: &LoggedSteps) -> Result<(File, String)> {
    let path = saved.path(LOG_FILE);
    let kept = if written.bytes > 0 { beginning(&path, steps, written)? } else { String::new() };
    write_file_atomically(&path, |file| file.write_all(kept.as_bytes()))?;
    Ok((open_to_append(&path)?, kept))
}

/// The number of steps in the log of `saved`, from a stopped training; 0 without a log.
pub(super) fn logged_steps(saved: &Saved) -> u64 {
    let text = read_text(&saved.path(LOG_FILE), MAX_LOG_BYTES).unwrap_or_default();
    log::lines(&text).filter(|line| line.is_of_step).filter_map(|line| line.step).max().unwrap_or(0)
}

/// The beginning of the log `path`, which must be the part `written` by the first `steps` steps.
fn beginning(path: &Path, steps: u64, written: &LoggedSteps) -> Result<String> {
    const REMEDY: &str = "put the log back that the training wrote, or begin anew without --resume and with --overwrite";
    let malformed = |what: String| Error::new(Kind::Malformed, what).file(path).remedy(REMEDY);
    let mut text = read_text(path, MAX_LOG_BYTES).map_err(|e| {
        malformed("the log of this training can't be read".to_owned()).source(e.briefly())
    })?;
    let bytes = usize::try_from(written.bytes).unwrap_or(usize::MAX);
    if !text.is_char_boundary(bytes) || LoggedSteps::of(&text.as_bytes()[..bytes]) != *written {
        return Err(malformed(differs(&text, steps)));
    }
    text.truncate(bytes);
    Ok(text)
}

/// Explains why the log `text` isn't the one that `steps` steps have written.
fn differs(text: &str, steps: u64) -> String {
    let mut taken = 0;
    for (number, line) in log::lines(text).enumerate() {
        let Some(step) = line.step else {
            if taken < steps {
                return format!("line {} is not a training step", number + 1);
            }
            break;
        };
        taken += u64::from(line.is_of_step && step == taken + 1);
    }
    if taken < steps {
        format!("{steps} steps were taken, but the log has only the first {taken}")
    } else {
        "the log and the state next to it come from different runs, or the log was changed"
            .to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_goes_on_after_the_steps_that_count() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(LOG_FILE);
        let kept = |text: &str, saved: &str| {
            std::fs::write(&path, text).unwrap();
            beginning(&path, 1, &LoggedSteps::of(saved.as_bytes()))
        };
        let [first, measured, second] =
            ["{\"step\":1,\"loss\":2}", "{\"step\":1,\"held_out\":{}}", "{\"step\":2,\"loss\":1}"];
        let (all, begun) =
            (format!("{first}\n{measured}\n{second}\n"), format!("{first}\n{measured}\n"));
        assert_eq!(kept(&all, &all).unwrap(), all);
        assert_eq!(kept(&all, &begun).unwrap(), begun);
        // The last line was cut when the run was killed.
        assert_eq!(kept(&format!("{all}{{\"ste"), &all).unwrap(), all);
        let edited = all.replace("\"loss\":2", "\"loss\":1");
        for (log, saved) in [
            (&*begun, &all),
            ("", &begun),
            (second, &begun),
            ("wörter\n", &begun),
            (&edited, &begun),
        ] {
            let error = kept(log, saved).unwrap_err();
            assert!(
                error.kind() == Kind::Malformed && error.to_string().contains(LOG_FILE),
                "{error}"
            );
        }
        std::fs::remove_file(&path).unwrap();
        assert!(beginning(&path, 1, &LoggedSteps::of(b"x")).is_err());
    }
}
