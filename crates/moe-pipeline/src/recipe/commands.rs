//! The commands that steps can run, and their passes.

use moe_passes::PASSES;

/// The command of a step that runs several passes.
pub(super) const CONVERT: &str = "convert";

/// The key of `eval` whose value is a table of gates.
pub(super) const GATES: &str = "gates";

/// Keys that belong to a step: its passes don't have them.
pub(super) const OF_STEPS: [&str; 6] =
    ["model", "output", "overwrite", "label", "max-shard-size", "probe-tokens"];

/// All commands that a step can run.
pub(crate) fn all_commands() -> Vec<&'static str> {
    pass_names().chain([CONVERT, "observe", "eval", "verify", "inspect"]).collect()
}

/// The names of all passes.
pub(super) fn pass_names() -> impl Iterator<Item = &'static str> + Clone {
    PASSES.iter().map(|info| info.name)
}
