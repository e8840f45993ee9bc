//! The tests of `moe-model` from outside, in one executable.

// A panic is a test's report.
#![allow(clippy::unwrap_used)]

mod engines;
mod goldens;
