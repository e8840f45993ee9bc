//! Where the time of a decision goes.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A stage of a decision, all layers together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StageTime {
    /// Its name.
    pub name: &'static str,
    /// Wall time.
    pub time: Duration,
    /// How often it was entered.
    pub calls: u64,
    /// Floating point operations, where they are what takes the time: those that the mathematics asks for.
    pub flops: f64,
}

/// Stages in the order in which they were first entered.
#[derive(Debug, Default)]
pub(crate) struct Stages(Mutex<Vec<StageTime>>);

impl Stages {
    /// Runs `stage`, and adds the time that it took to that of all stages of its name.
    pub fn time<T>(&self, name: &'static str, stage: impl FnOnce() -> T) -> T {
        self.work(name, 0.0, stage)
    }

    /// The same for a stage of `flops` floating point operations.
    pub fn work<T>(&self, name: &'static str, flops: f64, stage: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = stage();
        self.add(name, start.elapsed(), flops);
        result
    }

    pub fn add(&self, name: &'static str, time: Duration, flops: f64) {
        // Times stay true whichever thread panicked.
        let mut stages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match stages.iter_mut().find(|stage| stage.name == name) {
            Some(stage) => {
                stage.time += time;
                stage.calls += 1;
                stage.flops += flops;
            }
            None => stages.push(StageTime { name, time, calls: 1, flops }),
        }
    }

    pub fn all(&self) -> Vec<StageTime> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
