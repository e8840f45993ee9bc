//! The commands that convert, one for each pass.

use std::path::PathBuf;

use clap::{ArgMatches, Args, Command, Error, FromArgMatches, Subcommand};
use moe_passes::{PASSES, Pass, PassInfo};
use moe_pipeline::WritingOptions;

/// A conversion: input, output, and the pass with its options.
pub struct Convert {
    pub places: ModelPaths,
    pub pass: Box<dyn Pass>,
    pub writing: Writing,
}

/// The checkpoint that is read, and the path of the result.
#[derive(Args)]
pub struct ModelPaths {
    /// Checkpoint directory to read
    pub model: PathBuf,

    /// Directory to write; it appears when it is complete
    #[arg(long, short, alias = "out", value_name = "OUT")]
    pub output: PathBuf,
}

/// Options of everything that writes a checkpoint.
#[derive(Args)]
#[command(next_help_heading = "Writing")]
pub struct Writing {
    /// Replace an earlier result of moe-convert that was not edited and contains no other files,
    /// and an unedited plan at --plan-out
    #[arg(long)]
    pub overwrite: bool,

    /// Keep OUT if it is the finished result of the same pass, options, source and build;
    /// continue a training that was killed
    #[arg(long)]
    pub resume: bool,

    /// Print the plan with sizes and a memory estimate; write nothing
    #[arg(long)]
    pub dry_run: bool,

    #[command(flatten)]
    pub options: WritingOptions,
}

impl Subcommand for Convert {
    fn augment_subcommands(program: Command) -> Command {
        program.subcommands(PASSES.map(command))
    }

    fn augment_subcommands_for_update(program: Command) -> Command {
        Self::augment_subcommands(program)
    }

    fn has_subcommand(name: &str) -> bool {
        PassInfo::named(name).is_some()
    }
}

/// The command of a pass.
fn command(info: &PassInfo) -> Command {
    let command = info.options.add_to(ModelPaths::augment_args(Command::new(info.name)));
    // This comes after the groups of options: clap takes a group's description for the command's.
    Writing::augment_args(command).about(info.about).after_help(info.examples)
}

impl FromArgMatches for Convert {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let called = matches.subcommand();
        let (info, given) = called
            .and_then(|(name, given)| Some((PassInfo::named(name)?, given)))
            .ok_or_else(|| Error::new(clap::error::ErrorKind::MissingSubcommand))?;
        Ok(Self {
            places: ModelPaths::from_arg_matches(given)?,
            pass: info.options.from_arguments(given)?,
            writing: Writing::from_arg_matches(given)?,
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
