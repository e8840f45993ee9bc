//! `moe-convert`: converts and compresses Mixture-of-Experts checkpoints.

#![deny(clippy::unwrap_used)]

mod allocator;
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
