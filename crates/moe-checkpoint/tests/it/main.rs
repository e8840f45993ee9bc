//! The tests of `moe-checkpoint` from outside, in one executable.

// A panic is a test's report.
#![allow(clippy::unwrap_used)]

mod round_trips;
