//! The integration tests of `moe-math`, in one executable.

// A test reports by panicking.
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
