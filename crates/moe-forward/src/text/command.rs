//! Commands that convert a file to readable data, for remedies.

use std::ffi::OsStr;

use moe_checkpoint::shell_word;

/// Replaces FILE in `remedy` by the name of a file, quoted for a shell.
pub(super) fn naming_file(remedy: &str, file: impl AsRef<OsStr>) -> String {
    remedy.replace("FILE", &shell_word(&file.as_ref().to_string_lossy()))
}

/// Returns the command that makes records of FILE with a jq filter.
pub(super) fn jq(filter: &str) -> String {
    format!("jq -c {} FILE > data.jsonl", shell_word(filter))
}
