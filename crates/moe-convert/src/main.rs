//! `moe-convert`: converts and compresses Mixture-of-Experts checkpoints.

#![deny(clippy::unwrap_used)]

mod bar;
mod cli;
mod commands;
mod render;

use std::process::ExitCode;

use clap::Parser;
use moe_checkpoint::{Error, Kind};

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    match commands::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
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
