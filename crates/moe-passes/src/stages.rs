//! Where the time of a decision goes.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Wall time by stage, in the order in which stages were first entered.
#[derive(Debug, Default)]
pub(crate) struct Stages(Mutex<Vec<(&'static str, Duration)>>);

impl Stages {
    /// Runs `stage`, and adds the time that it took to that of all stages of its name.
    pub fn time<T>(&self, name: &'static str, stage: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = stage();
        self.add(name, start.elapsed());
        result
    }

    pub fn add(&self, name: &'static str, time: Duration) {
        // Times stay true whichever thread panicked.
        let mut stages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match stages.iter_mut().find(|(stage, _)| *stage == name) {
            Some((_, sum)) => *sum += time,
            None => stages.push((name, time)),
        }
    }

    pub fn all(&self) -> Vec<(&'static str, Duration)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
