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
    /// The name of the pass on the command line, in recipes and in receipts.
    pub name: &'static str,
    /// The line that help has for the pass.
    pub about: &'static str,
    /// Commands that show it and its guide, which help prints after the options.
    pub examples: &'static str,
    /// The functions that read its options.
    pub options: PassOptions,
    /// The minimal options of the pass, in TOML. `inspect` plans with them to see whether the pass
    /// takes a model. No text is opened.
    pub least_options: &'static str,
    /// The families that its option `target` can name for a model of this family; empty for a pass
    /// without that option.
    pub targets: fn(&Family) -> &[String],
    /// The options of its benchmark, in TOML and without text; None where it isn't benchmarked.
    pub benchmark: Option<fn(&BenchmarkedModel) -> String>,
    /// The baseline that its results are compared with. None if there is none.
    pub baseline: Option<Baseline>,
    /// The option that chooses among experts; None where the pass doesn't choose, or has no such
    /// option.
    pub choice: Option<Choice>,
    /// The type of its details of each layer; None where it has none.
    pub details: Option<DetailsType>,
    /// The kind of report for its results.
    pub report: ReportKind,
    /// The options that `heal` should get for its results; None where they needn't be healed.
    pub healed_with: Option<&'static str>,
    /// Whether a run that was killed continues where it was, rather than from the start.
    pub resumes_midway: bool,
    /// Whether decisions without text are cheap compared with the writing. Then a dry run decides
    /// too: it shows which experts stay, and fails where the run would.
    pub decides_at_once: bool,
    /// The options that lower its memory, for the remedy of an error.
    pub less_memory: &'static str,
}

/// The model that a result is compared with on held-out text. It has the same size and was made
/// without evidence.
#[derive(Debug, Clone, Copy)]
pub struct Baseline {
    /// Its name, in a few words.
    pub name: &'static str,
    /// The sentence of a report where it was measured.
    pub measured: &'static str,
    /// The sentence of a report where it wasn't measured.
    pub unmeasured: &'static str,
}

/// The option by which a pass chooses among experts.
#[derive(Debug, Clone, Copy)]
pub struct Choice {
    /// The name of the option, as recipes spell it.
    pub option: &'static str,
    /// The words that a report has for a value of the option; None for a value that explains
    /// itself.
    pub words: fn(&str) -> Option<&'static str>,
}

/// The kind of report for a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReportKind {
    /// Which experts stay, and what became of the others.
    Experts {
        /// The sentence of the model card where no layer loses mass.
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
    /// The number of experts of a layer.
    pub experts: usize,
    /// The number of neurons that a token uses in a layer.
    pub active_width: usize,
    /// The number of tokens of its text.
    pub tokens: usize,
}

/// How the options of a pass, which are fields of its type, are read.
pub struct PassOptions {
    arguments: fn(Command) -> Command,
    from_arguments: fn(&ArgMatches) -> Result<Box<dyn Pass>, clap::Error>,
    from_table: fn(toml::Table) -> Result<Box<dyn Pass>, toml::de::Error>,
}

impl PassOptions {
    /// The options of the pass `P`.
    pub const fn of<P: Pass + Args + DeserializeOwned + 'static>() -> Self {
        Self {
            arguments: P::augment_args,
            from_arguments: |matches| Ok(Box::new(P::from_arg_matches(matches)?)),
            from_table: |table| Ok(Box::new(P::deserialize(toml::Value::Table(table))?)),
        }
    }

    /// Adds these options to `command`.
    pub fn add_to(&self, command: Command) -> Command {
        (self.arguments)(command)
    }

    /// The pass, with options from a command line that [`Self::add_to`] made.
    ///
    /// # Errors
    /// Those of clap.
    pub fn from_arguments(&self, matches: &ArgMatches) -> Result<Box<dyn Pass>, clap::Error> {
        (self.from_arguments)(matches)
    }

    /// The pass, with options from a table of a recipe.
    ///
    /// # Errors
    /// Errors of serde for unknown or missing keys, and for values of the wrong type.
    pub fn from_table(&self, table: toml::Table) -> Result<Box<dyn Pass>, toml::de::Error> {
        (self.from_table)(table)
    }
}

impl PassInfo {
    /// Whether the pass has the option `--name`.
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

/// Reads the name of a pass, as receipts have it.
impl<'de> Deserialize<'de> for &'static PassInfo {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        PassInfo::named(&name)
            .ok_or_else(|| D::Error::custom(format_args!("there is no pass {name:?}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(pass: &str, table: &str) -> serde_json::Value {
        let table = table.parse().unwrap_or_else(|e| panic!("{table}: {e}"));
        PassInfo::named(pass).unwrap().options.from_table(table).unwrap().options()
    }

    /// Options of a pass, and further ones that change nothing, since they are defaults or say the
    /// same.
    const SAME: [(&str, &str, &str); 17] = [
        ("upcycle", "experts = 8\ntop-k = 2", "router-std = 0.02\nlayers = 'ALL'"),
        ("upcycle", "experts = 8\ntop-k = 2\nrouter = 'zeros'", "router-std = 1e-6"),
        (
            "upcycle",
            "experts = 8\ntop-k = 2\nrouter = 'zeros'\ngranularity = 2",
            "router-std = 1e-4",
        ),
        (
            "prune",
            "keep = 0.5\ndata = ['x.txt']",
            "criterion = 'leave-one-out-cosine'\ndivisible-by = 1",
        ),
        ("merge", "keep = 0.5\ndata = ['x.txt']", "algorithm = 'dern'\ndern-threshold = 0.3"),
        ("merge", "keep = 0.5\nalgorithm = 'ream'", "grouping = 'nearest'\ngroup-cap = 16"),
        ("merge", "keep = 0.5\nalgorithm = 'hc-smoe'", "all-experts-every = 1"),
        ("merge", "keep = 0.5\nalgorithm = 'average'", "all-experts-every = 1"),
        ("quantize", "data = ['x.txt']", "scheme = 'w4a16'\nsolver = 'gptq'"),
        ("quantize", "data = ['x.txt']", "format = 'compressed-tensors'\nper-expert = true"),
        ("quantize", "data = ['x.txt']", "scheme = 'int4'\ncalibrate-on = 'per-expert'"),
        ("quantize", "target-bits = 5.5", "format = 'compressed-tensors'\nprofile = 'engine'"),
        ("quantize", "scheme = 'fp8-block'", "format = 'fp8'\nsolver = 'rtn'"),
        ("quantize", "scheme = 'fp8'", "format = 'compressed-tensors'"),
        ("distill", "data = ['x.txt']", "data-tokens = 65536\nsteps = 200"),
        ("heal", "data = ['x.txt']", "warmup = 10\ndata-tokens = 409600\ntrain = ['router']"),
        ("heal", "data = ['x.txt']\nsteps = 0", "data-tokens = 2048"),
    ];

    #[test]
    fn defaults_are_the_same_options_given_or_not() {
        for (pass, given, further) in SAME {
            let spelled = options(pass, &format!("{given}\n{further}"));
            assert_eq!(options(pass, given), spelled, "{pass}: {given} {further}");
        }
    }

    #[test]
    fn parts_are_the_same_in_any_order() {
        let parts = |pass: &str, option: &str, parts: &str| {
            options(pass, &format!("data = ['x.txt']\n{option} = {parts}"))
        };
        let included = |of: &str| parts("quantize", "include", of);
        assert_eq!(
            included("['attention', 'shared', 'attention']"),
            included("['shared', 'attention']")
        );
        assert_ne!(included("['shared']"), included("['attention']"));
        let trained = |of: &str| parts("heal", "train", of);
        assert_eq!(trained("['experts', 'router']"), trained("['router', 'experts']"));
        assert_eq!(trained("['norms', 'all']"), trained("['all']"));
        assert_ne!(trained("['router', 'experts']"), trained("['router']"));
    }

    /// Options whose default runs have its value, and those that aren't in use have none.
    #[test]
    fn options_in_use_have_values() {
        for (pass, given, option, value) in [
            ("merge", "algorithm = 'ream'", "group-cap", "16"),
            ("merge", "algorithm = 'ream'", "dern-threshold", "null"),
            ("merge", "algorithm = 'dern'", "dern-threshold", "0.3"),
            ("merge", "algorithm = 'dern'", "grouping", "null"),
            ("merge", "algorithm = 'average'", "all-experts-every", "1"),
            ("merge", "algorithm = 'average'\nstats = 's'", "all-experts-every", "null"),
            ("quantize", "per-expert = true", "calibrate-on", "\"per-expert\""),
            ("quantize", "per-expert = true", "per-expert", "null"),
            ("quantize", "target-bits = 5", "scheme", "null"),
            ("quantize", "scheme = 'fp8-block'", "format", "\"fp8\""),
            ("quantize", "format = 'gptq'", "format", "\"gptq\""),
            ("heal", "data = ['x.txt']\nsteps = 60", "warmup", "3"),
            ("heal", "data = ['x.txt']\nsteps = 0", "warmup", "null"),
            ("heal", "data = ['x.txt']\nsteps = 3\naccumulate = 2", "data-tokens", "12288"),
            ("heal", "data = ['x.txt']\ndata-tokens = 64", "data-tokens", "64"),
            ("upcycle", "experts = 8\ntop-k = 2\nrouter = 'kmeans'", "router-std", "null"),
            ("upcycle", "experts = 8\ntop-k = 2\nrouter = 'orthogonal'", "router-std", "0.02"),
        ] {
            let found = options(pass, given)[option].to_string();
            assert_eq!(found, value, "{pass}: {given}: {option}");
        }
    }
}
