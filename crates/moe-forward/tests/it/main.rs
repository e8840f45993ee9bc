//! The tests of `moe-forward` from outside, in one executable.

// A panic is a test's report.
#![allow(clippy::unwrap_used)]

mod common;
mod data;
mod fp8;
mod gradients;
mod parity;
mod quantized;
mod routing;
mod training;
