//! Counts the memory that a template's values hold, and their nesting depth. Values count
//! themselves; counters are per thread, since each template runs on a thread of its own.

use std::cell::Cell;

use super::value::Value;
use super::{Fail, Fallible, MAX_BYTES};

/// Maximum nesting depth of values. Python's own limit for printing them is 1,000.
const MAX_NESTING: usize = 1000;
/// Maximum number of comparisons of values.
const MAX_COMPARED: u64 = 50_000_000;

/// Number of bytes that two strings compare in the time of one value.
const BYTES_COMPARED_AT_ONCE: u64 = 64;

thread_local! {
    static ALLOWED: Cell<usize> = const { Cell::new(usize::MAX) };
    static HELD: Cell<usize> = const { Cell::new(0) };
    static DEEPEST: Cell<usize> = const { Cell::new(0) };
    static COMPARED: Cell<u64> = const { Cell::new(0) };
}

/// Sets the number of bytes that this thread's template may hold.
pub(super) fn allow(bytes: usize) {
    ALLOWED.set(bytes);
}

/// Returns the maximum length of a string that is made in one go, in bytes.
pub(super) fn longest_text() -> usize {
    ALLOWED.get() / 4
}

/// Checks that a template may hold `bytes` bytes more.
pub(super) fn room(bytes: usize) -> Fallible<()> {
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

/// Describes which limit this thread's template has exceeded; None if it keeps to all.
pub(super) fn excess() -> Option<&'static str> {
    if DEEPEST.get() > MAX_NESTING {
        Some("nests values more than 1,000 deep")
    } else if COMPARED.get() > MAX_COMPARED {
        Some("runs out of fuel: it compares more than 50,000,000 values")
    } else {
        None
    }
}

/// Returns one more than the depth of the deepest of `values`.
pub(super) fn depth_of<'a>(values: impl Iterator<Item = &'a Value>) -> usize {
    let depth = 1 + values.map(Value::depth).max().unwrap_or(0);
    DEEPEST.set(DEEPEST.get().max(depth));
    depth
}

/// Counts bytes as held until it is dropped.
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

/// Counts a comparison of two values, which looks at `bytes` bytes if they are strings. Returns
/// false if the limit is exceeded; then the template's next step fails.
pub(super) fn may_compare(bytes: usize) -> bool {
    COMPARED.set(COMPARED.get() + 1 + bytes as u64 / BYTES_COMPARED_AT_ONCE);
    COMPARED.get() <= MAX_COMPARED
}

/// Counts a comparison, and returns an error if the limit is exceeded.
pub(super) fn check_compared(bytes: usize) -> Fallible<()> {
    if may_compare(bytes) {
        Ok(())
    } else {
        Err(Fail::new(format!("the template {}", excess().unwrap_or_default())))
    }
}
