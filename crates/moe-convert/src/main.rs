//! `moe-convert`: converts and compresses Mixture-of-Experts checkpoints.

#![deny(clippy::unwrap_used)]

mod bar;
mod cli;
mod commands;
mod interrupt;
mod manual;
mod render;
mod usage;

use std::process::ExitCode;

use clap::Parser;
use moe_checkpoint::Kind;

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
    calm_candle();
    calm_panics();
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage::report(&error),
    };
    interrupt::listen();
    let done = commands::run(cli);
    interrupt::give_way();
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            bar::say(&format!("error: {error:#}"));
            ExitCode::from(exit_code(&error))
        }
    }
}

/// candle adds and multiplies large tensors on threads that wait for each other in a busy loop. Wherever something else runs,
/// that made a training three times as long, and where nothing does, one thread is no slower: what is costly runs on rayon.
fn calm_candle() {
    const THREADS: &str = "CANDLE_NUM_THREADS";
    if std::env::var_os(THREADS).is_none() {
        // SAFETY: no other thread runs yet.
        unsafe { std::env::set_var(THREADS, "1") };
    }
}

/// Some panics of libraries become errors, of which nobody needs to read twice.
fn calm_panics() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !moe_forward::panic_is_caught() {
            usual(panic);
        }
    }));
}

/// 1 failed, 2 bad usage, 3 a quality gate not met.
fn exit_code(error: &anyhow::Error) -> u8 {
    match commands::kind(error) {
        Some(Kind::Usage) => 2,
        Some(Kind::Gate) => 3,
        _ => 1,
    }
}
