//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use moe_math::DeviceChoice;
use moe_pipeline::spelling::folded;
use moe_pipeline::{BenchOptions, ByteSize, EvalOptions, ObserveOptions};

pub use crate::convert::{Convert, Writing};
use crate::idle;
use crate::refusal::Refusal;
use crate::spelling::{Respelled, respell};

/// Converts and compresses Mixture-of-Experts checkpoints
#[derive(Parser)]
#[command(version, propagate_version = true, max_term_width = 110, after_help = EXAMPLES)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    #[command(flatten)]
    pub common: Common,
    /// Notes about the spelling of the command line.
    #[arg(skip)]
    pub notes: std::collections::BTreeSet<String>,
}

const EXAMPLES: &str = "\
Examples:
  moe-convert inspect golden/models/dense
  moe-convert upcycle golden/models/dense -o target/moe-8x --experts 8 --top-k 2
  moe-convert eval target/moe-8x --original golden/models/dense --data golden/text/code.heldout.txt
  moe-convert run recipes/quickstart.toml

Exit codes: 0 done, 1 failed, 2 bad usage, 3 a quality gate not met, 128 + N stopped by signal N (130: Ctrl-C).
Results go to stdout, everything else to stderr.";

impl Cli {
    /// Parses `arguments`, which begin with the program's name.
    pub fn read<T: Into<OsString>>(
        arguments: impl IntoIterator<Item = T>,
    ) -> Result<Self, Refusal> {
        let words: Vec<OsString> = arguments.into_iter().map(Into::into).collect();
        let mut program = lenient(Self::command());
        // Words are respelled by the options of a command, which has the common ones once it is
        // built.
        program.build();
        let respelled = match called_of(&program, &as_text(words.iter().cloned())) {
            Some(command) => respell(words, command)?,
            None => Respelled::as_written(words),
        };
        let mut matches = program.try_get_matches_from_mut(respelled.words)?;
        idle::check(&matches)?;
        let read = Self::from_arg_matches_mut(&mut matches);
        let read = read.map_err(|error| error.format(&mut program))?;
        Ok(Self { notes: respelled.notes, ..read })
    }
}

/// `words` as text, for messages.
pub fn as_text(words: impl IntoIterator<Item = OsString>) -> Vec<String> {
    words.into_iter().map(|word| word.to_string_lossy().into_owned()).collect()
}

/// The first of `words` that is `option`, in any spelling that the command line takes, with a value
/// after `=` or without.
pub fn place_of(words: &[String], option: &str) -> Option<usize> {
    let name = |word: &String| folded(word.split('=').next().unwrap_or_default());
    words[..end_of_options(words)].iter().position(|word| name(word) == option)
}

/// The number of `words` before `--`, after which no option is read.
pub fn end_of_options(words: &[String]) -> usize {
    words.iter().position(|word| word == "--").unwrap_or(words.len())
}

/// `command`, where options with values accept negative numbers, and words that aren't options may be
/// in another case. The option says better than clap that a number is wrong, since clap takes it
/// for an unknown option.
fn lenient(command: clap::Command) -> clap::Command {
    let of_arg = |arg: clap::Arg| {
        let is_size = arg.get_value_parser().type_id() == std::any::TypeId::of::<ByteSize>();
        if !arg.get_action().takes_values() {
            arg
        } else if arg.is_positional() {
            arg.ignore_case(true)
        } else if is_size {
            // A size has a unit, so that clap doesn't see a number.
            arg.allow_hyphen_values(true)
        } else {
            arg.allow_negative_numbers(true)
        }
    };
    command.mut_args(of_arg).mut_subcommands(lenient)
}

/// The command that `arguments` call; None where they call none. They begin with the program's
/// name.
pub fn called(arguments: &[String]) -> Option<clap::Command> {
    called_of(&program(), arguments).cloned()
}

fn called_of<'p>(program: &'p clap::Command, arguments: &[String]) -> Option<&'p clap::Command> {
    arguments.iter().skip(1).find_map(|word| program.find_subcommand(word))
}

/// The whole command line, where each command has the common options.
pub fn program() -> clap::Command {
    let mut program = Cli::command();
    program.build();
    program
}

/// Options that every command takes.
#[derive(Args)]
#[command(next_help_heading = "Common options")]
pub struct Common {
    /// Device to compute on: auto, cpu, cuda:N or metal. auto takes a GPU if this build and machine
    /// have one
    #[arg(long, global = true, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceChoice,

    /// Dtype of matrix products; bf16 is for GPUs, where it is several times as fast, but less
    /// precise
    #[arg(long, global = true, value_name = "TYPE", default_value = "f32")]
    pub dtype: ComputeType,

    /// Dtype of router computations; model rounds as transformers does for the family, to the dtype
    /// of the router's weights
    #[arg(long, global = true, value_name = "TYPE", default_value = "f32")]
    pub router_dtype: RouterType,

    /// Use at most this much of a GPU's memory for what is worked on together [default: a third of
    /// what is free]
    #[arg(long, global = true, value_name = "SIZE")]
    pub device_memory: Option<ByteSize>,

    /// Threads for computing [default: all cores]
    #[arg(long, global = true, value_name = "N")]
    pub threads: Option<usize>,

    /// Refuse work that would hold more than this in memory, such as 8GiB
    #[arg(long, global = true, value_name = "SIZE")]
    pub memory_budget: Option<ByteSize>,

    /// Print where the time went, and peak memory, to stderr
    #[arg(long, global = true)]
    pub timings: bool,

    /// Print results as JSON, and a failure as an object with the key "error"
    #[arg(long, global = true)]
    pub json: bool,

    /// No progress and no notes on stderr
    #[arg(long, short, global = true)]
    pub quiet: bool,
}

/// A format that has a JSON Schema.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum SchemaOf {
    /// Recipes.
    #[default]
    Recipe,
    /// Receipts: moe-convert.json of results.
    Receipt,
}

/// The dtype of matrix products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ComputeType {
    #[value(alias = "float32")]
    F32,
    #[value(alias = "bfloat16")]
    Bf16,
}

/// The dtype of router computations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum RouterType {
    #[value(alias = "float32")]
    F32,
    Model,
}

#[derive(Subcommand)]
pub enum Command {
    /// Show the contents of a checkpoint, from headers alone
    #[command(after_help = "Example:\n  moe-convert inspect golden/models/moe")]
    Inspect {
        /// Checkpoint directory
        model: PathBuf,
    },

    #[command(flatten)]
    Convert(Convert),

    /// Observe an MoE on calibration text: statistics that add up, which prune and merge accept
    /// instead of text
    #[command(after_help = "Examples:\n  \
        moe-convert observe golden/models/moe -o target/stats --data-tokens 4096 \\\n    \
        --data english=golden/text/english.calibration.txt --data code=golden/text/code.calibration.txt\n  \
        moe-convert observe golden/models/moe -o target/both --add target/stats --data-tokens 4096 \\\n    \
        --data golden/text/spanish.calibration.txt\n\ndocs/pruning.md is the guide.")]
    Observe {
        /// Checkpoint directory
        model: PathBuf,
        /// File to write
        #[arg(long, short, alias = "out", value_name = "STATS")]
        output: PathBuf,
        /// Replace a file of statistics, whatever their model and text
        #[arg(long)]
        overwrite: bool,
        #[command(flatten)]
        options: ObserveOptions,
    },

    /// Measure a checkpoint on held-out text: loss, distance to an original, expert load
    #[command(after_help = "Examples:\n  \
        moe-convert eval golden/models/moe --data golden/text/english.heldout.txt\n  \
        moe-convert eval target/moe-8x --original golden/models/dense --max-kl 1e-6 \\\n    \
        --data english=golden/text/english.heldout.txt --data code=golden/text/code.heldout.txt")]
    Eval {
        /// Checkpoint directory
        model: PathBuf,
        /// Checkpoint to compare with, of the same vocabulary
        #[arg(long, value_name = "ORIGINAL")]
        original: Option<PathBuf>,
        #[command(flatten)]
        options: EvalOptions,
    },

    /// Check a checkpoint: hashes, shapes, finite values, every expert present, loader traps
    #[command(after_help = "Example:\n  moe-convert verify golden/models/moe")]
    Verify {
        /// Checkpoint directory
        model: PathBuf,
    },

    /// Render the report of a result from its receipt
    ///
    /// The page is written to stdout or, with --output, to a directory; a result of several passes
    /// has a page for each. In the working directory of the run, the page is byte for byte the one
    /// that the run wrote: paths are shown relative to that directory, and paths outside of it by
    /// their names. The result itself isn't changed, since its files are listed by their hashes.
    #[command(after_help = "Examples:\n  \
        moe-convert prune golden/models/moe -o target/pruned --experts 12 --criterion aimer\n  \
        moe-convert report target/pruned > target/page.html\n  \
        moe-convert report target/pruned -o target/pages\n\ndocs/json.md describes receipts.")]
    Report {
        /// Directory that moe-convert has written
        model: PathBuf,
        /// Directory to write pages to, instead of that of the last pass to stdout
        #[arg(long, short, alias = "out", value_name = "DIR")]
        output: Option<PathBuf>,
        /// Replace pages of earlier reports, unless somebody edited them
        #[arg(long, requires = "output")]
        overwrite: bool,
    },

    /// Run the steps of a recipe
    ///
    /// Steps run one after the other, those of a block for every combination of its choices.
    /// After them comes a table of the evaluations, averaged by label.
    #[command(after_help = "Examples:\n  moe-convert run recipes/quickstart.toml\n  \
                            moe-convert run recipes/quickstart.toml --set out=/tmp/quickstart\n  \
                            moe-convert run recipes/compare-samples.toml --dry-run\n\n\
                            docs/recipes.md is the guide.")]
    Run {
        /// Recipe file
        recipe: PathBuf,
        /// Replace a variable of the recipe; give TOML if the variable isn't a string
        #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
        set: Vec<(String, String)>,
        /// Continue trainings that were killed
        #[arg(long)]
        resume: bool,
        /// Run every step, even if its output is already the result of the same passes, options
        /// and inputs (by hash)
        #[arg(long, conflicts_with = "resume")]
        fresh: bool,
        /// Check every step and say what it would do, but write nothing
        #[arg(long)]
        dry_run: bool,
        /// Write the outcome of each step as JUnit XML, even if a step fails
        #[arg(long, value_name = "FILE")]
        junit: Option<PathBuf>,
        /// Replace the JUnit XML of an earlier run, unless somebody edited it. Outputs of steps
        /// are replaced if their key overwrite says so
        #[arg(long)]
        overwrite: bool,
        /// Append the same as Markdown to a file, such as $GITHUB_STEP_SUMMARY
        #[arg(long, value_name = "FILE")]
        summary: Option<PathBuf>,
    },

    /// Print the JSON Schema of recipes, for editors, or of receipts
    #[command(after_help = "Examples:\n  moe-convert schema\n  moe-convert schema receipt\n\n\
                            recipes/recipe.schema.json is what it prints; editors with taplo read it by a recipe's first line,\n\
                            #:schema ./recipe.schema.json. docs/receipt.schema.json is that of receipts, moe-convert.json.")]
    Schema {
        /// Kind of file that the schema is for
        #[arg(value_enum, default_value_t)]
        of: SchemaOf,
    },

    /// Run every pass on built-in models and compare with golden outputs, on any device
    #[command(
        after_help = "Examples:\n  moe-convert selftest\n  moe-convert selftest --device cpu --json"
    )]
    Selftest,

    /// Measure passes on a random model with layers of a real one's size
    ///
    /// Each stage is compared with the machine's own matrix product and copy, and times are
    /// extrapolated to the whole model.
    #[command(
        after_help = "Example:\n  moe-convert bench --like qwen3-30b-a3b --data-tokens 1024 --passes quantize"
    )]
    Bench(BenchOptions),

    /// Write the logits of given tokens
    ///
    /// The output is a safetensors file with one f32 tensor "logits" of shape [all tokens in order,
    /// vocab].
    #[command(after_help = "Example:\n  echo '[[1, 2, 3], [4, 5]]' > target/ids.json\n  \
                            moe-convert logits golden/models/moe --tokens target/ids.json -o target/logits.safetensors")]
    Logits {
        /// Checkpoint directory
        model: PathBuf,
        /// JSON file: [[ids of a sequence], …]
        #[arg(long, value_name = "IDS.json")]
        tokens: PathBuf,
        /// File to write
        #[arg(long, short, alias = "out", value_name = "OUT.safetensors")]
        output: PathBuf,
        /// Replace a file that holds logits, of whatever model they are
        #[arg(long)]
        overwrite: bool,
    },

    /// Print a script that lets a shell complete commands and options
    #[command(after_help = "Examples:\n  \
        source <(moe-convert completions bash)\n  \
        moe-convert completions zsh > target/_moe-convert\n  \
        moe-convert completions fish > target/moe-convert.fish\n\n\
        README.md says where each shell looks for it.")]
    Completions {
        /// Shell to write it for
        shell: clap_complete::Shell,
    },

    /// Write man pages, one for each command
    #[command(after_help = "Example:\n  moe-convert man target/man1\n\n\
        `man -l target/man1/moe-convert-prune.1` shows one. README.md says where man looks for them.")]
    Man {
        /// Directory to write them to
        dir: PathBuf,
        /// Replace earlier pages of moe-convert, unless somebody edited them
        #[arg(long)]
        overwrite: bool,
    },
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("give KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests;
