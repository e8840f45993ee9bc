//! Keys that are meant for several steps, and that one of them has no use for: it runs without
//! them, if another step uses them.

use std::collections::{BTreeMap, BTreeSet};

use moe_checkpoint::{Error, Result};

use super::keys::{KeyOrigin, StepKeys};
use super::mistake::Mistake;
use super::parsed::Step;
use super::steps::parse_step;

/// Records the keys that some step used, and those that were left out of steps, with the reason.
#[derive(Default)]
pub(super) struct Spare {
    used: BTreeSet<KeyOrigin>,
    passed: BTreeMap<KeyOrigin, Error>,
}

/// A key that was left out of a step.
pub(super) struct LeftOutKey {
    pub origin: KeyOrigin,
    /// The command whose defaults have it; None if the step itself does.
    pub defaults: Option<String>,
    /// The error that says why the key has no effect in the step.
    pub mistake: Mistake,
}

impl Spare {
    /// Parses a step with `keys` without those that have no effect in it; returns the step and
    /// these keys.
    ///
    /// # Errors
    /// Any other mistake in the step.
    pub fn parse(&mut self, mut keys: StepKeys) -> Result<(Step, Vec<LeftOutKey>), Mistake> {
        let mut passed = Vec::new();
        loop {
            // Most steps parse at once.
            let mistake = match parse_step(keys.table.clone()) {
                Ok(step) => {
                    self.used.extend(keys.origins());
                    return Ok((Step { keys, ..step }, passed));
                }
                Err(mistake) => mistake,
            };
            match keys.pass_by(mistake.pass, &mistake.error) {
                Some((origin, defaults)) => passed.push(LeftOutKey { origin, defaults, mistake }),
                None => return Err(mistake),
            }
        }
    }

    /// Records that the key at `origin` was left out; `error` is returned if no step uses it.
    pub fn pass(&mut self, origin: KeyOrigin, error: Error) {
        self.passed.entry(origin).or_insert(error);
    }

    /// Refuses keys that no step uses.
    ///
    /// # Errors
    /// The error about the first of them, from the first step that it was left out of.
    pub fn check(self) -> Result<()> {
        match self.passed.into_iter().find(|(origin, _)| !self.used.contains(origin)) {
            Some((_, error)) => Err(error),
            None => Ok(()),
        }
    }
}

/// The step of `keys` without one that has no effect on its model according to `error`, and where
/// that key was written. None where there is no such key, or it is for this step alone.
///
/// # Errors
/// Mistakes in the remaining step.
pub(super) fn without(keys: &mut StepKeys, error: &Error) -> Result<Option<(Step, KeyOrigin)>> {
    let passed = (0..keys.written.len()).find_map(|at| keys.pass_by(at, error));
    let Some((origin, _)) = passed else { return Ok(None) };
    let step = parse_step(keys.table.clone()).map_err(Mistake::into_error)?;
    Ok(Some((step, origin)))
}
