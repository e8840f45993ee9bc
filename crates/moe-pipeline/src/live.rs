//! Counts live bytes: those that the program has asked for and not given back. They are the same on
//! any machine, unlike resident memory, which includes an allocator's spare pages and huge pages.

use std::cell::Cell;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

/// Each thread reports its allocations only when they add up to this many bytes, since threads that
/// all add to one number slow each other down. For each thread, the numbers here can be off by as
/// much.
const UNREPORTED_BYTES: i64 = 64 << 10;
/// The minimum number of bytes that are handed out between two looks at resident memory.
const LOOK_EVERY_BYTES: i64 = 16 << 20;
/// Memory that the program holds from the start: its code, stacks, and what its libraries keep for
/// each thread.
const PROGRAM_BYTES: u64 = 24 << 20;

/// Resident bytes of a program that asks for `live` bytes at once: the promise before the run, and
/// the limit that the allocator keeps to during it.
pub(crate) fn resident_bytes(live: u64) -> u64 {
    PROGRAM_BYTES + live + live / 8
}

thread_local! {
    static UNREPORTED: Cell<i64> = const { Cell::new(0) };
    /// Bytes of the last large allocation of this thread, until the thread asks for more or gives
    /// something back: by then they were written to.
    static UNTOUCHED: Cell<i64> = const { Cell::new(0) };
}

static LIVE: Live = Live::new();

/// Counters of live memory.
struct Live {
    held: AtomicI64,
    /// Peak of the running stage.
    peak: AtomicI64,
    /// Peak of the stages before it.
    earlier_peak: AtomicI64,
    /// Bytes that were handed out since the last look at resident memory.
    turnover: AtomicI64,
    /// Large allocations of all threads that aren't resident yet.
    untouched: AtomicI64,
    /// Resident bytes that were promised for the running work. Memory below that isn't given back,
    /// which would take time.
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

    /// Adds `bytes`. Returns whether to look at resident memory now.
    fn add(&self, bytes: i64) -> bool {
        let held = self.held.fetch_add(bytes, Relaxed) + bytes;
        // A new peak is rare: reading first keeps the cache line shared between threads.
        if held > self.peak.load(Relaxed) {
            self.peak.fetch_max(held, Relaxed);
        }
        let taken = bytes.max(0);
        // Near a ceiling, looks must be more frequent.
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

/// Counts `bytes` that the program's allocator is about to hand out. Returns whether to look now at
/// how much of the freed memory the allocator still holds.
pub fn count_allocated(bytes: usize) -> bool {
    count(bytes as i64)
}

/// Counts `bytes` that were given back to the allocator.
pub fn count_freed(bytes: usize) {
    count(-(bytes as i64));
}

/// Bytes that were handed out and aren't resident yet, since nothing was written to them: resident
/// memory will grow by about as much.
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

/// The number of resident bytes that the allocator should keep the program below, so that resident
/// memory follows from live bytes.
pub fn resident_limit() -> u64 {
    LIVE.resident_limit()
}

/// Records that the work that now begins was promised to hold `resident` bytes.
pub(crate) fn promise_resident_memory(resident: u64) {
    LIVE.promised.store(resident, Relaxed);
}

/// Sets the budget that resident memory should stay below, in bytes.
pub(crate) fn limit_resident_memory(budget: u64) {
    LIVE.budget.store(budget, Relaxed);
}

/// Whether resident memory has a ceiling.
pub fn has_budget() -> bool {
    LIVE.budget.load(Relaxed) != u64::MAX
}

/// Live bytes now. `None` where the program's allocator doesn't count.
pub fn live_bytes() -> Option<u64> {
    known(LIVE.held.load(Relaxed))
}

/// Peak of live bytes. `None` where the program's allocator doesn't count.
pub fn peak_live_bytes() -> Option<u64> {
    known(LIVE.peak())
}

/// Starts a new peak of live bytes, and drops the last promise.
pub(crate) fn begin_step() {
    LIVE.begin_step();
}

/// Peak of live bytes since the last call, which ended the stage before.
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
