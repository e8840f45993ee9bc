//! The speed of a training.

use std::time::{Duration, Instant};

/// Tokens per second over the last few steps.
pub(super) struct Speed {
    started: Instant,
    tokens: f64,
    rate: f64,
}

impl Speed {
    pub(super) fn new() -> Self {
        Self { started: Instant::now(), tokens: 0.0, rate: 0.0 }
    }

    pub(super) fn tokens_per_second(&mut self, tokens: f64) -> f64 {
        self.tokens += tokens;
        let passed = self.started.elapsed();
        if passed > Duration::from_secs(2) || self.rate == 0.0 {
            self.rate = self.tokens / passed.as_secs_f64().max(1e-9);
            (self.started, self.tokens) = (Instant::now(), 0.0);
        }
        self.rate
    }
}
