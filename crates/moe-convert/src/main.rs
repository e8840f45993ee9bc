//! `moe-convert`: converts and compresses Mixture-of-Experts checkpoints.

#![deny(clippy::unwrap_used)]

mod allocator;
mod bar;
mod cli;
mod commands;
mod convert;
mod idle;
mod interrupt;
mod manual;
mod refusal;
mod render;
mod spelling;
mod stdout;
mod usage;

use std::process::ExitCode;

use moe_checkpoint::Kind;

fn main() -> ExitCode {
    calm_panics();
    let cli = match cli::Cli::read(std::env::args_os()) {
        Ok(cli) => cli,
        Err(refusal) => return usage::report(refusal),
    };
    // This must come first: all later calls may start threads.
    set_environment(cli.common.threads);
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

/// Sets environment variables that candle and rayon read.
///
/// candle adds and multiplies large tensors on threads that wait for each other in a busy loop.
/// Beside other load, that made a training take three times as long; without other load, one thread
/// is no slower, since expensive work runs on rayon.
fn set_environment(threads: Option<usize>) {
    const CANDLE: &str = "CANDLE_NUM_THREADS";
    let candle = std::env::var_os(CANDLE).is_none().then(|| (CANDLE, "1".to_owned()));
    // candle asks rayon how many threads a matrix product gets.
    let rayon = threads.map(|threads| ("RAYON_NUM_THREADS", threads.to_string()));
    for (name, value) in candle.into_iter().chain(rayon) {
        // SAFETY: this is called first in `main`, when the process has one thread, so that nothing
        // reads the environment at the same time.
        unsafe { std::env::set_var(name, value) };
    }
}

/// Hides the messages of panics in libraries that are caught and become errors.
fn calm_panics() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !moe_forward::panic_is_caught() {
            usual(panic);
        }
    }));
}

/// The exit code: 1 failed, 2 bad usage, 3 a quality gate not met.
fn exit_code(error: &anyhow::Error) -> u8 {
    match commands::kind(error) {
        Some(Kind::Usage) => 2,
        Some(Kind::Gate) => 3,
        _ => 1,
    }
}
