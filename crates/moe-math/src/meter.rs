//! Where the time of computing goes.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What a stage has to do at least, by the mathematics alone.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Work {
    /// Floating point operations.
    pub flops: f64,
    /// Bytes that are read or written once.
    pub bytes: f64,
}

impl Work {
    /// Nothing that can be counted.
    pub const UNCOUNTED: Self = Self { flops: 0.0, bytes: 0.0 };

    /// Floating point operations.
    pub fn flops(flops: f64) -> Self {
        Self { flops, bytes: 0.0 }
    }

    /// Products of `rows` with matrices of `weights` elements.
    pub fn products(rows: usize, weights: usize) -> Self {
        Self::flops(2.0 * rows as f64 * weights as f64)
    }

    /// Bytes.
    pub fn bytes(bytes: u64) -> Self {
        Self { flops: 0.0, bytes: bytes as f64 }
    }
}

/// A stage, all of its calls together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StageTime {
    /// Its name.
    pub name: &'static str,
    /// Time on the threads that entered it, less that of stages within.
    pub time: Duration,
    /// How often it was entered.
    pub calls: u64,
    /// What it did.
    pub work: Work,
}

/// Stages in the order in which they first ended. Clones write to the same ones.
#[derive(Debug, Clone, Default)]
pub struct Meter {
    stages: Arc<Mutex<Vec<StageTime>>>,
    /// One more than the expert that is at work, and how many there are: two numbers of 32 bits in
    /// one, since another thread looks at them.
    expert: Arc<AtomicU64>,
    pub(crate) waits: bool,
}

thread_local! {
    /// Time of the stages within each open one, the innermost last.
    static WITHIN: RefCell<Vec<Duration>> = const { RefCell::new(Vec::new()) };
}

impl Meter {
    /// One for which a device finishes what it was given before a stage ends. Without, a stage on a
    /// device has the time until its work was queued, and whoever needs a result first has the
    /// rest; waiting costs some of what overlaps.
    pub fn waiting() -> Self {
        Self { waits: true, ..Self::default() }
    }

    /// Runs `stage`, and adds its time and `work` to those of all stages of its name.
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
        // Times stay true whichever thread panicked.
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

    /// Says that expert `index` of the layer's `count` is at work.
    pub fn at_expert(&self, index: usize, count: usize) {
        self.expert.store((index as u64 + 1) << 32 | count as u64 & u64::from(u32::MAX), Relaxed);
    }

    /// Says that none is.
    pub fn at_no_expert(&self) {
        self.expert.store(0, Relaxed);
    }

    /// The expert that is at work, and how many the layer has.
    pub fn expert(&self) -> Option<(usize, usize)> {
        let both = self.expert.load(Relaxed);
        let index = (both >> 32).checked_sub(1)?;
        Some((index as usize, (both & u64::from(u32::MAX)) as usize))
    }

    /// The stages since the last time that they were taken.
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
    fn clones_say_which_expert_is_at_work() {
        let meter = Meter::default();
        assert_eq!(meter.expert(), None);
        meter.clone().at_expert(57, 128);
        assert_eq!(meter.expert(), Some((57, 128)));
        meter.at_no_expert();
        assert_eq!(meter.clone().expert(), None);
    }

    /// A stage of another thread isn't within those of this one.
    #[test]
    fn threads_have_stages_of_their_own() {
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
