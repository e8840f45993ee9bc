//! Measures the computing time of each stage.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The minimum work that the mathematics of a stage requires, without any overhead.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Work {
    /// Floating point operations.
    pub flops: f64,
    /// Bytes that are read or written, each counted once.
    pub bytes: f64,
}

impl Work {
    /// Work that can't be counted.
    pub const UNCOUNTED: Self = Self { flops: 0.0, bytes: 0.0 };

    /// Work of `flops` floating point operations.
    pub fn flops(flops: f64) -> Self {
        Self { flops, bytes: 0.0 }
    }

    /// Work of multiplying `rows` with matrices of `weights` elements in total.
    pub fn products(rows: usize, weights: usize) -> Self {
        Self::flops(2.0 * rows as f64 * weights as f64)
    }

    /// Work of moving `bytes` bytes.
    pub fn bytes(bytes: u64) -> Self {
        Self { flops: 0.0, bytes: bytes as f64 }
    }
}

/// Totals over all calls of one stage.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StageTime {
    /// The name that was passed to `Meter::stage`.
    pub name: &'static str,
    /// Time on the threads that entered the stage, without that of nested stages.
    pub time: Duration,
    /// Number of calls.
    pub calls: u64,
    /// Work of all calls.
    pub work: Work,
}

/// Stages in the order in which they first ended. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Meter {
    stages: Arc<Mutex<Vec<StageTime>>>,
    /// In the upper 32 bits the index of the current expert plus one, in the lower 32 the number of
    /// experts. One atomic, since another thread reads it.
    expert: Arc<AtomicU64>,
    pub(crate) waits: bool,
}

thread_local! {
    /// The time of nested stages within each open stage, the innermost last.
    static WITHIN: RefCell<Vec<Duration>> = const { RefCell::new(Vec::new()) };
}

impl Meter {
    /// A meter for which each stage waits until the device has finished its work. Otherwise a stage
    /// on a device is charged only for queueing, and the stage that needs the result first is
    /// charged for the rest. Waiting costs some overlap.
    pub fn waiting() -> Self {
        Self { waits: true, ..Self::default() }
    }

    /// Runs `stage`, and adds its time and `work` to the totals of its name.
    pub fn stage<T>(&self, name: &'static str, work: Work, stage: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        WITHIN.with_borrow_mut(|within| within.push(Duration::ZERO));
        let result = stage();
        let time = start.elapsed();
        let own = WITHIN.with_borrow_mut(|within| {
            let inner = within.pop().unwrap_or_default();
            if let Some(outer) = within.last_mut() {
                *outer += time;
            }
            time.saturating_sub(inner)
        });
        // The times are valid even if another thread panicked.
        let mut stages = self.stages.lock().unwrap_or_else(PoisonError::into_inner);
        match stages.iter_mut().find(|stage| stage.name == name) {
            Some(stage) => {
                stage.time += own;
                stage.calls += 1;
                stage.work.flops += work.flops;
                stage.work.bytes += work.bytes;
            }
            None => stages.push(StageTime { name, time: own, calls: 1, work }),
        }
        result
    }

    /// Records that expert `index` of the layer's `count` is running.
    pub fn at_expert(&self, index: usize, count: usize) {
        self.expert.store((index as u64 + 1) << 32 | count as u64 & u64::from(u32::MAX), Relaxed);
    }

    /// Records that no expert is running.
    pub fn at_no_expert(&self) {
        self.expert.store(0, Relaxed);
    }

    /// The expert that is running and the layer's number of experts; None if none is running.
    pub fn expert(&self) -> Option<(usize, usize)> {
        let both = self.expert.load(Relaxed);
        let index = (both >> 32).checked_sub(1)?;
        Some((index as usize, (both & u64::from(u32::MAX)) as usize))
    }

    /// Takes the stages since the last call.
    pub fn take(&self) -> Vec<StageTime> {
        std::mem::take(&mut self.stages.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_counts_once_and_work_adds_up() {
        let meter = Meter::default();
        let pause = || std::thread::sleep(Duration::from_millis(20));
        for _ in 0..2 {
            meter.clone().stage("outer", Work::bytes(1), || {
                meter.stage("inner", Work::products(2, 3), pause)
            });
        }
        let stages = meter.take();
        assert_eq!(
            stages.iter().map(|s| (s.name, s.calls)).collect::<Vec<_>>(),
            [("inner", 2), ("outer", 2)]
        );
        assert!(
            stages[0].time >= Duration::from_millis(40) && stages[1].time < stages[0].time,
            "{stages:?}"
        );
        assert_eq!([stages[0].work.flops, stages[1].work.bytes], [24.0, 2.0]);
        assert!(meter.take().is_empty());
    }

    #[test]
    fn clones_share_the_running_expert() {
        let meter = Meter::default();
        assert_eq!(meter.expert(), None);
        meter.clone().at_expert(57, 128);
        assert_eq!(meter.expert(), Some((57, 128)));
        meter.at_no_expert();
        assert_eq!(meter.clone().expert(), None);
    }

    /// A stage of another thread isn't nested in this thread's stages.
    #[test]
    fn stages_of_threads_are_not_nested_in_each_other() {
        let meter = Meter::default();
        let pause = || std::thread::sleep(Duration::from_millis(20));
        meter.stage("waits", Work::UNCOUNTED, || {
            std::thread::scope(|scope| {
                scope.spawn(|| meter.stage("works", Work::UNCOUNTED, pause)).join().unwrap()
            });
        });
        assert!(meter.take().iter().all(|stage| stage.time >= Duration::from_millis(20)));
    }
}
