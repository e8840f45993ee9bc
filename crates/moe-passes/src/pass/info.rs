//! What is known of a pass without its options.

use std::fmt;

use clap::{ArgMatches, Args, Command};
use moe_model::Family;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{DetailsType, Pass};

/// A row of [`crate::PASSES`]. The command line, recipes and their schema, receipts, reports,
/// `inspect` and `bench` read it, so that none of them has a list of passes of its own.
pub struct PassInfo {
    /// The word for it on the command line, in recipes and in receipts.
    pub name: &'static str,
    /// What it does, in a line of help.
    pub about: &'static str,
    /// Commands that show it and its guide, which help prints behind the options.
    pub examples: &'static str,
    /// How its options are read.
    pub options: PassOptions,
    /// The fewest options that it needs, in TOML: `inspect` plans with them to see what it says to
    /// a model. No text is opened.
    pub least_options: &'static str,
    /// The families that its option `target` can name for a model of this family; none without such
    /// an option.
    pub targets: fn(&Family) -> &[String],
    /// The options of its benchmark, in TOML, but for the text; None where it isn't benchmarked.
    pub benchmark: Option<fn(&BenchmarkedModel) -> String>,
    /// What its results are measured beside; None where they are measured by themselves.
    pub baseline: Option<Baseline>,
    /// How it chooses among experts; None where it doesn't, or has no option for it.
    pub choice: Option<Choice>,
    /// The type of what it says of each layer in details; None where it says nothing.
    pub details: Option<DetailsType>,
    /// Which kind of report shows what it did.
    pub report: ReportKind,
    /// Options that `heal` should get for its results, None where these needn't be healed.
    pub healed_with: Option<&'static str>,
    /// Whether a run that was killed goes on where it was, rather than from the start.
    pub resumes_midway: bool,
    /// Whether what it decides without text takes little beside the writing. A dry run decides then,
    /// too: it shows what stays, and fails where the run would.
    pub decides_at_once: bool,
    /// Options that make it hold less memory, as the remedy of an error.
    pub less_memory: &'static str,
}

/// What a result is measured beside on held-out text: a model of the same size that was made
/// without evidence.
#[derive(Debug, Clone, Copy)]
pub struct Baseline {
    /// What it is, in a few words.
    pub name: &'static str,
    /// What a report says where it was measured.
    pub measured: &'static str,
    /// What a report says where it was not.
    pub unmeasured: &'static str,
}

/// The option that says how a pass chooses among experts.
#[derive(Debug, Clone, Copy)]
pub struct Choice {
    /// The option, as recipes spell it.
    pub option: &'static str,
    /// What a report says of a value of it; None for values that speak for themselves.
    pub words: fn(&str) -> Option<&'static str>,
}

/// How a report shows a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReportKind {
    /// Which experts stay, and what became of the others.
    Experts {
        /// What the model card says where no layer loses saliency mass.
        none_lost: &'static str,
    },
    /// How experts were quantized.
    Quantized,
    /// How layers became dense.
    Dense,
    /// How training went.
    Training,
}

/// The random model that a benchmark runs on.
#[derive(Debug, Clone, Copy)]
pub struct BenchmarkedModel {
    /// Experts of a layer.
    pub experts: usize,
    /// Neurons that a token uses in a layer.
    pub active_width: usize,
    /// Tokens of its text.
    pub tokens: usize,
}

/// How a pass reads its options, which are its fields.
pub struct PassOptions {
    arguments: fn(Command) -> Command,
    from_arguments: fn(&ArgMatches) -> Result<Box<dyn Pass>, clap::Error>,
    from_table: fn(toml::Table) -> Result<Box<dyn Pass>, toml::de::Error>,
}

impl PassOptions {
    /// Those of the pass `P`.
    pub const fn of<P: Pass + Args + DeserializeOwned + 'static>() -> Self {
        Self {
            arguments: P::augment_args,
            from_arguments: |matches| Ok(Box::new(P::from_arg_matches(matches)?)),
            from_table: |table| Ok(Box::new(P::deserialize(toml::Value::Table(table))?)),
        }
    }

    /// `command` with these options.
    pub fn add_to(&self, command: Command) -> Command {
        (self.arguments)(command)
    }

    /// The pass, with the options that [`Self::add_to`] let the command line have.
    ///
    /// # Errors
    /// What clap returns.
    pub fn from_arguments(&self, matches: &ArgMatches) -> Result<Box<dyn Pass>, clap::Error> {
        (self.from_arguments)(matches)
    }

    /// The pass, with options as recipes have them.
    ///
    /// # Errors
    /// What serde says of keys that aren't known, are missing, or have another kind of value.
    pub fn from_table(&self, table: toml::Table) -> Result<Box<dyn Pass>, toml::de::Error> {
        (self.from_table)(table)
    }
}

impl PassInfo {
    /// Whether it has the option `--name`.
    pub fn has_option(&self, name: &str) -> bool {
        self.options
            .add_to(Command::new(self.name))
            .get_arguments()
            .any(|option| option.get_long() == Some(name))
    }
}

impl PartialEq for PassInfo {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl fmt::Debug for PassInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl fmt::Display for PassInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl Serialize for PassInfo {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name)
    }
}

/// By its name, as receipts have it.
impl<'de> Deserialize<'de> for &'static PassInfo {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        PassInfo::named(&name)
            .ok_or_else(|| D::Error::custom(format_args!("there is no pass {name:?}")))
    }
}
