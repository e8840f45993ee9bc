//! Tests of the public interface of `moe-pipeline`, in one executable.

// A panic is how a test fails.
#![allow(clippy::unwrap_used)]

mod common;
mod distill;
mod initialisations;
mod loaders;
mod merge;
mod pruning;
mod quantize;
mod recipe;
mod reuse;
mod routers;
mod together;
mod upcycle;
mod widths;
