//! Bytes that the program has asked for and not given back. They are the same on any machine, unlike resident memory, in which
//! an allocator's spare pages and huge pages count, too.

use std::cell::Cell;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

/// A thread keeps to itself what it takes or gives back up to this many bytes: threads that all add to one number slow each
/// other down. By so much, for each thread, the numbers here can be off.
const UNREPORTED_BYTES: i64 = 64 << 10;

/// How much is handed out between two looks at resident memory, at least.
const LOOK_EVERY_BYTES: i64 = 32 << 20;
/// What the allocator may hold beside a quarter of what is asked for: the program itself, stacks and spare pages.
const SPARE_BYTES: u64 = 64 << 20;

/// What was handed out since the last look.
static TURNOVER: AtomicI64 = AtomicI64::new(0);
static BUDGET: AtomicU64 = AtomicU64::new(u64::MAX);
static HELD: AtomicI64 = AtomicI64::new(0);
/// The most of the running stage.
static PEAK: AtomicI64 = AtomicI64::new(0);
/// The most of the stages before it.
static EARLIER_PEAK: AtomicI64 = AtomicI64::new(0);

thread_local! {
    static UNREPORTED: Cell<i64> = const { Cell::new(0) };
}

/// Counts `bytes` that the program's allocator is about to hand out. Whether now is the time to look at how much of what was given
/// back the allocator still holds.
pub fn count_allocated(bytes: usize) -> bool {
    count(bytes as i64)
}

/// Counts `bytes` that it gets back.
pub fn count_freed(bytes: usize) {
    count(-(bytes as i64));
}

fn count(bytes: i64) -> bool {
    let unreported = UNREPORTED.get() + bytes;
    if unreported.abs() < UNREPORTED_BYTES {
        UNREPORTED.set(unreported);
        return false;
    }
    UNREPORTED.set(0);
    let held = HELD.fetch_add(unreported, Relaxed) + unreported;
    // A peak is rare beside what is counted: reading first leaves the line with all threads.
    if held > PEAK.load(Relaxed) {
        PEAK.fetch_max(held, Relaxed);
    }
    let turnover = TURNOVER.fetch_add(unreported.max(0), Relaxed) + unreported.max(0);
    let due = turnover >= LOOK_EVERY_BYTES.max(held / 8);
    if due {
        TURNOVER.store(0, Relaxed);
    }
    due
}

/// The most resident bytes that the allocator should keep the program at, so that resident memory follows from what is asked for.
pub fn resident_limit() -> u64 {
    let peak = PEAK.load(Relaxed).max(EARLIER_PEAK.load(Relaxed)).max(0) as u64;
    (peak + peak / 4 + SPARE_BYTES).min(BUDGET.load(Relaxed))
}

/// Says that resident memory should stay below `budget` bytes.
pub fn limit_resident_memory(budget: u64) {
    BUDGET.store(budget, Relaxed);
}

/// Bytes that are held now. `None` where the program's allocator doesn't count.
pub fn live_bytes() -> Option<u64> {
    known(HELD.load(Relaxed))
}

/// The most bytes that were held at once. `None` where the program's allocator doesn't count.
pub fn peak_live_bytes() -> Option<u64> {
    known(PEAK.load(Relaxed).max(EARLIER_PEAK.load(Relaxed)))
}

/// The most bytes that were held at once since this was called before: a stage ends.
pub(crate) fn peak_live_bytes_of_stage() -> Option<u64> {
    let peak = PEAK.swap(HELD.load(Relaxed), Relaxed);
    EARLIER_PEAK.fetch_max(peak, Relaxed);
    known(peak)
}

fn known(bytes: i64) -> Option<u64> {
    u64::try_from(bytes).ok().filter(|bytes| *bytes > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_at_once_is_counted() {
        const MEGABYTE: usize = 1 << 20;
        count_allocated(5 * MEGABYTE);
        count_freed(4 * MEGABYTE);
        (0..1000).for_each(|_| count_allocated(MEGABYTE / 1000));
        let [held, peak] = [live_bytes(), peak_live_bytes()].map(|bytes| bytes.unwrap() as f64 / MEGABYTE as f64);
        assert!((1.9..=2.0).contains(&held), "{held}");
        assert!((5.0..5.1).contains(&peak), "{peak}");
        let stages = [(); 2].map(|()| peak_live_bytes_of_stage().unwrap());
        assert!(stages[0] > stages[1] && peak_live_bytes() == Some(stages[0]), "{stages:?}");
    }
}
