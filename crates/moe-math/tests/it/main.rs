//! The tests of `moe-math` from outside, in one executable.

// A panic is a test's report.
#![allow(clippy::unwrap_used)]

mod common;

mod adamw;
mod clustering;
mod distillation;
mod golden;
mod merging;
mod packing;
mod quantize;
mod scale;
