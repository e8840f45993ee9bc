//! Names of outputs while they are unfinished.

use std::path::{Path, PathBuf};

use crate::error::{Error, Kind, Result};

/// Hidden names for the output `target`: while it is unfinished, for an earlier one while it is
/// replaced, and for a complete one that waits until the earlier one is removed.
pub(crate) fn hidden_names(target: &Path) -> [PathBuf; 3] {
    ["partial", "replaced", "complete"].map(|state| hidden(target, state))
}

/// Whether `name` is the hidden name of a file that is being written.
pub(crate) fn is_hidden(name: &str) -> bool {
    name.starts_with('.') && name.ends_with(".partial-moe-convert")
}

/// The name of an earlier result while a new one takes its name.
pub(super) fn aside(target: &Path) -> PathBuf {
    hidden(target, "replaced")
}

/// The name of a complete result while the earlier one that it replaces is removed.
pub(super) fn complete(target: &Path) -> PathBuf {
    hidden(target, "complete")
}

/// Maximum length of a file's name, without directories, in usual file systems.
const MAX_NAME_BYTES: usize = 255;

/// The name of `target` until it is complete.
pub(super) fn partial(target: &Path) -> Result<PathBuf> {
    let Some(name) = target.file_name() else {
        return Err(Error::new(Kind::Usage, "the output has no name")
            .file(target)
            .remedy("give a path that ends in a name of its own"));
    };
    // The longest of its hidden names must also be valid.
    let length = hidden(target, "replaced").file_name().unwrap_or_default().len();
    if length > MAX_NAME_BYTES {
        let most = MAX_NAME_BYTES - (length - name.len());
        let what = format!(
            "the output's name has {} bytes; with the suffix of hidden files, at most {most} fit",
            name.len()
        );
        return Err(Error::new(Kind::Usage, what).file(target).remedy("choose a shorter name"));
    }
    Ok(hidden(target, "partial"))
}

/// The hidden name, next to `target`, of a directory or file in this `state`.
fn hidden(target: &Path, state: &str) -> PathBuf {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    target.with_file_name(format!(".{name}.{state}-moe-convert"))
}

/// The directory that contains `target`.
pub(super) fn parent_of(target: &Path) -> PathBuf {
    match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}
