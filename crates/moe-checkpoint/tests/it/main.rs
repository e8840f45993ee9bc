//! The integration tests of `moe-checkpoint`, in one executable.

// A test reports by panicking.
#![allow(clippy::unwrap_used)]

mod round_trips;
