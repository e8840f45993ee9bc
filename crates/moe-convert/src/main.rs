//! `moe-convert`: converts and compresses Mixture-of-Experts checkpoints.

#![deny(clippy::unwrap_used)]

mod bar;
mod cli;
mod commands;
mod render;

use std::process::ExitCode;

use clap::Parser;
use moe_checkpoint::{Error, Kind};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Layers come and go with buffers of the same sizes: freed memory is kept, or the system would be asked for fresh pages most
/// of the time of a sweep; and one heap serves all threads, or each would keep what only one of them needs. glibc can be told
/// the same, but leaves holes between buffers wherever something small outlives a layer.
// SAFETY: nothing else has this name, which jemalloc reads before anything is allocated; it ends in a zero as C wants it.
#[unsafe(export_name = "_rjem_malloc_conf")]
static ALLOCATOR_OPTIONS: &[u8; 78] =
    b"narenas:1,oversize_threshold:0,dirty_decay_ms:-1,muzzy_decay_ms:-1,thp:always\0";

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    match commands::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            bar::say(&format!("error: {error:#}"));
            ExitCode::from(exit_code(&error))
        }
    }
}

/// 1 failed, 2 bad usage, 3 a quality gate not met.
fn exit_code(error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<Error>().map(Error::kind) {
        Some(Kind::Usage) => 2,
        Some(Kind::Gate) => 3,
        _ => 1,
    }
}
