//! Earlier names of options.

/// The version that will no longer accept the earlier names.
pub(super) const GONE_WITH: &str = "0.3";

/// Commands, the earlier name of an option, and its current name.
pub(super) const RENAMED: &[(&[&str], &str, &str)] = &[
    (&["prune"], "method", "criterion"),
    (&["merge"], "method", "algorithm"),
    (&["quantize"], "method", "solver"),
    (&["observe", "merge"], "sample-every", "all-experts-every"),
    (&["eval"], "against", "original"),
    (&["heal"], "from", "original"),
    (&["heal"], "from-weight", "original-weight"),
    (&["heal"], "teacher", "original-logits"),
    (&["heal"], "teacher-tokens", "original-logits-per-token"),
    (&["eval"], "max-tokens", "data-tokens"),
    (&["quantize"], "samples", "calibrate-on"),
    (&["quantize"], "min-samples", "top-up-below"),
    (&["quantize"], "pool-take", "pool-added-tokens"),
    (&["quantize"], "ridge", "expert-damping"),
    (&["distill"], "learning-rate", "relative-learning-rate"),
    (&["upcycle"], "expert", "expert-model"),
    (&["upcycle"], "attention", "rest"),
    (&["distill"], "score", "criterion"),
    (&["bench"], "tokens", "data-tokens"),
    (&["prune", "merge", "distill"], "no-control", "no-baseline"),
];

/// The current name of the option of `command` that was called `was`.
pub(super) fn name_now(command: &str, was: &str) -> Option<&'static str> {
    let row = RENAMED
        .iter()
        .find(|(commands, earlier, _)| commands.contains(&command) && *earlier == was)?;
    Some(row.2)
}

/// The current names of all options that were called `was`.
pub(super) fn names_now(was: String) -> impl Iterator<Item = &'static str> {
    RENAMED.iter().filter(move |(_, earlier, _)| *earlier == was).map(|(.., now)| *now)
}

/// The earlier names of options of `command`, with the current ones.
pub(super) fn names_of(command: &str) -> impl Iterator<Item = (&'static str, &'static str)> {
    let rows = RENAMED.iter().filter(move |(commands, ..)| commands.contains(&command));
    rows.map(|(_, earlier, now)| (*earlier, *now))
}
