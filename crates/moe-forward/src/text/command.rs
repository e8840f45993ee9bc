//! Commands that make readable data of a file, as remedies give them.

use std::ffi::OsStr;

use moe_checkpoint::shell_word;

/// `remedy` with the name of a file, as a word of a shell, where it says FILE.
pub(super) fn naming_file(remedy: &str, file: impl AsRef<OsStr>) -> String {
    remedy.replace("FILE", &shell_word(&file.as_ref().to_string_lossy()))
}

/// The command that makes records of FILE by a filter of jq.
pub(super) fn jq(filter: &str) -> String {
    format!("jq -c {} FILE > data.jsonl", shell_word(filter))
}
