//! Bytes that the program has asked for and not given back. They are the same on any machine,
//! unlike resident memory, in which an allocator's spare pages and huge pages count, too.

use std::cell::Cell;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

/// A thread keeps to itself what it takes or gives back up to this many bytes: threads that all add
/// to one number slow each other down. By so much, for each thread, the numbers here can be off.
const UNREPORTED_BYTES: i64 = 64 << 10;
/// How much is handed out between two looks at resident memory, at least.
const LOOK_EVERY_BYTES: i64 = 16 << 20;
/// What the program holds before it does anything: its code, stacks, and what its libraries keep
/// for each thread.
const PROGRAM_BYTES: u64 = 24 << 20;

/// Resident bytes of a program that asks for `live` bytes at once: what is promised before it runs,
/// and what the allocator is held to while it does.
pub(crate) fn resident_bytes(live: u64) -> u64 {
    PROGRAM_BYTES + live + live / 8
}

thread_local! {
    static UNREPORTED: Cell<i64> = const { Cell::new(0) };
    /// The last large allocation of this thread, until the thread asks for more or gives something
    /// back: by then it was written to.
    static UNTOUCHED: Cell<i64> = const { Cell::new(0) };
}

static LIVE: Live = Live::new();

/// What is held of memory.
struct Live {
    held: AtomicI64,
    /// The most of the running stage.
    peak: AtomicI64,
    /// The most of the stages before it.
    earlier_peak: AtomicI64,
    /// What was handed out since the last look at resident memory.
    turnover: AtomicI64,
    /// Large allocations that aren't resident yet, of all threads.
    untouched: AtomicI64,
    /// What the running work was said to hold: giving memory back takes time, and nobody expects
    /// less.
    promised: AtomicU64,
    budget: AtomicU64,
}

impl Live {
    const fn new() -> Self {
        Self {
            held: AtomicI64::new(0),
            peak: AtomicI64::new(0),
            earlier_peak: AtomicI64::new(0),
            turnover: AtomicI64::new(0),
            untouched: AtomicI64::new(0),
            promised: AtomicU64::new(0),
            budget: AtomicU64::new(u64::MAX),
        }
    }

    /// Adds `bytes`; whether now is the time to look at resident memory.
    fn add(&self, bytes: i64) -> bool {
        let held = self.held.fetch_add(bytes, Relaxed) + bytes;
        // A peak is rare beside what is counted: reading first leaves the line with all threads.
        if held > self.peak.load(Relaxed) {
            self.peak.fetch_max(held, Relaxed);
        }
        let taken = bytes.max(0);
        // Near a ceiling, looks must come more often.
        let often = if self.budget.load(Relaxed) == u64::MAX { 1 } else { 4 };
        let due = self.turnover.fetch_add(taken, Relaxed) + taken
            >= LOOK_EVERY_BYTES.max(held / 8) / often;
        if due {
            self.turnover.store(0, Relaxed);
        }
        due
    }

    fn peak(&self) -> i64 {
        self.peak.load(Relaxed).max(self.earlier_peak.load(Relaxed))
    }

    fn end_stage(&self) -> i64 {
        let peak = self.peak.swap(self.held.load(Relaxed), Relaxed);
        self.earlier_peak.fetch_max(peak, Relaxed);
        peak
    }

    fn begin_step(&self) {
        self.promised.store(0, Relaxed);
        self.peak.store(self.held.load(Relaxed), Relaxed);
        self.earlier_peak.store(0, Relaxed);
    }

    fn resident_limit(&self) -> u64 {
        let peak = self.peak().max(0) as u64;
        resident_bytes(peak).max(self.promised.load(Relaxed)).min(self.budget.load(Relaxed))
    }
}

/// Counts `bytes` that the program's allocator is about to hand out. Whether now is the time to
/// look at how much of what was given back the allocator still holds.
pub fn count_allocated(bytes: usize) -> bool {
    count(bytes as i64)
}

/// Counts `bytes` that it gets back.
pub fn count_freed(bytes: usize) {
    count(-(bytes as i64));
}

/// Bytes that were handed out and aren't resident yet, since nothing was written to them: about
/// these, resident memory will grow.
pub fn untouched_bytes() -> u64 {
    LIVE.untouched.load(Relaxed).max(0) as u64
}

fn count(bytes: i64) -> bool {
    let touched = UNTOUCHED.take();
    if touched > 0 {
        LIVE.untouched.fetch_sub(touched, Relaxed);
    }
    if bytes >= UNREPORTED_BYTES {
        UNTOUCHED.set(bytes);
        LIVE.untouched.fetch_add(bytes, Relaxed);
    }
    let unreported = UNREPORTED.get() + bytes;
    if unreported.abs() < UNREPORTED_BYTES {
        UNREPORTED.set(unreported);
        return false;
    }
    UNREPORTED.set(0);
    LIVE.add(unreported)
}

/// The most resident bytes that the allocator should keep the program at, so that resident memory
/// follows from what is asked for.
pub fn resident_limit() -> u64 {
    LIVE.resident_limit()
}

/// Says that the work which begins was promised to hold `resident` bytes.
pub(crate) fn promise_resident_memory(resident: u64) {
    LIVE.promised.store(resident, Relaxed);
}

/// Says that resident memory should stay below `budget` bytes.
pub(crate) fn limit_resident_memory(budget: u64) {
    LIVE.budget.store(budget, Relaxed);
}

/// Whether resident memory has a ceiling.
pub fn has_budget() -> bool {
    LIVE.budget.load(Relaxed) != u64::MAX
}

/// Bytes that are held now. `None` where the program's allocator doesn't count.
pub fn live_bytes() -> Option<u64> {
    known(LIVE.held.load(Relaxed))
}

/// The most bytes that were held at once. `None` where the program's allocator doesn't count.
pub fn peak_live_bytes() -> Option<u64> {
    known(LIVE.peak())
}

/// Counts the most bytes that are held at once from now on, of which nothing is promised yet.
pub(crate) fn begin_step() {
    LIVE.begin_step();
}

/// The most bytes that were held at once since this was called before: a stage ends.
pub(crate) fn peak_live_bytes_of_stage() -> Option<u64> {
    known(LIVE.end_stage())
}

fn known(bytes: i64) -> Option<u64> {
    u64::try_from(bytes).ok().filter(|bytes| *bytes > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEGABYTE: i64 = 1 << 20;

    #[test]
    fn what_is_held_at_once_is_counted() {
        let live = Live::new();
        for megabytes in [5, -4, 1] {
            live.add(megabytes * MEGABYTE);
        }
        assert_eq!((live.held.load(Relaxed), live.peak()), (2 * MEGABYTE, 5 * MEGABYTE));
        assert_eq!([live.end_stage(), live.end_stage()], [5 * MEGABYTE, 2 * MEGABYTE]);
        assert_eq!(live.peak(), 5 * MEGABYTE);
        live.begin_step();
        assert_eq!(live.peak(), 2 * MEGABYTE);
    }

    #[test]
    fn resident_memory_is_looked_at_after_so_much_turnover_and_has_a_limit() {
        let live = Live::new();
        let due = |_| {
            let due = live.add(8 * MEGABYTE);
            live.add(-8 * MEGABYTE);
            due
        };
        assert_eq!([0; 4].map(due), [false, true, false, true]);
        assert_eq!(live.resident_limit(), resident_bytes(8 << 20));
        live.promised.store(100 << 20, Relaxed);
        assert_eq!(live.resident_limit(), 100 << 20);
        live.budget.store(7, Relaxed);
        assert_eq!(live.resident_limit(), 7);
        live.begin_step();
        live.budget.store(u64::MAX, Relaxed);
        assert_eq!(live.resident_limit(), resident_bytes(0));
    }
}
