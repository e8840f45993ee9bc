//! What a template holds of memory and how deep its values are, counted by the values themselves: a
//! template runs on a thread of its own.

use std::cell::Cell;

use super::value::Value;
use super::{Fail, MAX_BYTES, Outcome};

/// Lists may stand this deep in one another. Python's own limit for printing them is 1,000.
const MAX_NESTING: usize = 1000;
/// How many values may be compared with one another.
const MAX_COMPARED: u64 = 50_000_000;

/// Bytes of texts that are compared in the time of a value.
const BYTES_COMPARED_AT_ONCE: u64 = 64;

thread_local! {
    static ALLOWED: Cell<usize> = const { Cell::new(usize::MAX) };
    static HELD: Cell<usize> = const { Cell::new(0) };
    static DEEPEST: Cell<usize> = const { Cell::new(0) };
    static COMPARED: Cell<u64> = const { Cell::new(0) };
}

/// Lets this thread's template hold so many bytes.
pub(super) fn allow(bytes: usize) {
    ALLOWED.set(bytes);
}

/// How long a text may become that is made in one go.
pub(super) fn longest_text() -> usize {
    ALLOWED.get() / 4
}

/// Refuses what would hold `bytes` more than a template may.
pub(super) fn room(bytes: usize) -> Outcome<()> {
    if HELD.get().saturating_add(bytes) > ALLOWED.get() {
        let of_budget =
            if ALLOWED.get() < MAX_BYTES { ", a quarter of --memory-budget," } else { "" };
        let what = format!(
            "the template takes more than {} MiB{of_budget} for a conversation",
            ALLOWED.get() >> 20
        );
        return Err(Fail::new(what));
    }
    Ok(())
}

/// What this thread's template has too much of.
pub(super) fn excess() -> Option<&'static str> {
    if DEEPEST.get() > MAX_NESTING {
        Some("nests values more than 1,000 deep")
    } else if COMPARED.get() > MAX_COMPARED {
        Some("runs out of fuel: it compares more than 50,000,000 values")
    } else {
        None
    }
}

/// One level more than the deepest of `values`.
pub(super) fn depth_of<'a>(values: impl Iterator<Item = &'a Value>) -> usize {
    let depth = 1 + values.map(Value::depth).max().unwrap_or(0);
    DEEPEST.set(DEEPEST.get().max(depth));
    depth
}

/// Bytes that are held until this is dropped.
pub(super) struct Charge(usize);

impl Charge {
    pub fn new(bytes: usize) -> Self {
        HELD.set(HELD.get() + bytes);
        Self(bytes)
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        HELD.set(HELD.get().saturating_sub(self.0));
    }
}

/// Counts a comparison of two values, of so many bytes where they are texts; false where there were
/// too many, and the template's next step fails.
pub(super) fn may_compare(bytes: usize) -> bool {
    COMPARED.set(COMPARED.get() + 1 + bytes as u64 / BYTES_COMPARED_AT_ONCE);
    COMPARED.get() <= MAX_COMPARED
}

/// Counts a comparison, and refuses it where there were too many.
pub(super) fn check_compared(bytes: usize) -> Outcome<()> {
    let what = || Fail::new(format!("the template {}", excess().unwrap_or_default()));
    if may_compare(bytes) { Ok(()) } else { Err(what()) }
}
