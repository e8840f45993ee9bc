//! The tests of `moe-pipeline` from outside, in one executable.

// A panic is a test's report.
#![allow(clippy::unwrap_used)]

mod common;
mod distill;
mod initialisations;
mod loaders;
mod merge;
mod pruning;
mod quantize;
mod recipe;
mod routers;
mod together;
mod upcycle;
mod widths;
