//! Recipes: a TOML file with steps that run one after the other, some of them for every combination of choices.

mod check;
mod expand;
mod outcome;
mod schema;
mod source;
#[cfg(test)]
mod tests;
mod variables;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use moe_checkpoint::{Error, Kind, Result, read_text};
use moe_passes::{DistillOptions, HealOptions, MergeOptions, PruneOptions, QuantizeOptions, UpcycleOptions};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::evaluation::EvalOptions;
use crate::observe::ObserveOptions;
use expand::Expansion;
pub use outcome::{Outcome, StepOutcome, junit, markdown};
pub use schema::recipe_schema;
use source::Source;
use variables::{Variables, given};

/// The longest recipe.
const MAX_BYTES: u64 = 1 << 20;

/// A parsed recipe.
#[derive(Debug)]
pub struct Recipe {
    /// Its name; the file's unless it gives one.
    pub name: String,
    /// Its steps in order.
    pub steps: Vec<Step>,
}

/// One step.
#[derive(Debug)]
pub struct Step {
    /// The command.
    pub command: String,
    /// The checkpoint that it reads.
    pub model: PathBuf,
    /// What its row in the summary is called; the checkpoint unless given.
    pub label: Option<String>,
    /// What was chosen in the blocks around it, such as "bits 3, seed 0"; empty outside of blocks.
    pub chosen: String,
    /// What it does.
    pub kind: StepKind,
}

impl Step {
    /// What its row in the summary is called.
    pub fn row(&self) -> String {
        self.label.clone().unwrap_or_else(|| self.model.display().to_string())
    }

    /// Its command, and what was chosen for it.
    pub fn name(&self) -> String {
        match self.chosen.is_empty() {
            true => self.command.clone(),
            false => format!("{}; {}", self.command, self.chosen),
        }
    }
}

/// What a step does.
#[derive(Debug)]
pub enum StepKind {
    /// `upcycle`.
    Upcycle {
        /// Where the result goes.
        output: PathBuf,
        /// Whether an earlier result is replaced.
        overwrite: bool,
        /// The pass.
        options: UpcycleOptions,
    },
    /// `observe`.
    Observe {
        /// Where the statistics go.
        output: PathBuf,
        /// Whether an earlier file is replaced.
        overwrite: bool,
        /// What is observed.
        options: ObserveOptions,
    },
    /// `prune`.
    Prune {
        /// Where the result goes.
        output: PathBuf,
        /// Whether an earlier result is replaced.
        overwrite: bool,
        /// The pass.
        options: PruneOptions,
    },
    /// `merge`.
    Merge {
        /// Where the result goes.
        output: PathBuf,
        /// Whether an earlier result is replaced.
        overwrite: bool,
        /// The pass.
        options: MergeOptions,
    },
    /// `quantize`.
    Quantize {
        /// Where the result goes.
        output: PathBuf,
        /// Whether an earlier result is replaced.
        overwrite: bool,
        /// The pass.
        options: QuantizeOptions,
    },
    /// `heal`.
    Heal {
        /// Where the result goes.
        output: PathBuf,
        /// Whether an earlier result is replaced.
        overwrite: bool,
        /// The pass.
        options: HealOptions,
    },
    /// `distill`.
    Distill {
        /// Where the result goes.
        output: PathBuf,
        /// Whether an earlier result is replaced.
        overwrite: bool,
        /// The pass.
        options: DistillOptions,
    },
    /// `eval`.
    Eval {
        /// The checkpoint to compare with.
        against: Option<PathBuf>,
        /// Data and gates.
        options: EvalOptions,
    },
    /// `verify`.
    Verify,
    /// `inspect`.
    Inspect,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRecipe {
    name: Option<String>,
    #[serde(default)]
    vars: toml::Table,
    /// Keys of every step that runs a command, where the step itself doesn't have them.
    #[serde(default)]
    defaults: BTreeMap<String, toml::Table>,
    step: Vec<toml::Table>,
}

impl Recipe {
    /// Reads the recipe `path`; `overrides` replace its variables. Paths are relative to the working directory.
    ///
    /// # Errors
    /// [`Kind::Usage`], naming the step and the key, where it can't be understood; [`Kind::Io`] where it
    /// can't be read.
    pub fn read(path: &Path, overrides: &[(String, String)]) -> Result<Self> {
        let text = read_text(path, MAX_BYTES)?;
        Self::parse(&text, overrides, &path.file_stem().unwrap_or_default().to_string_lossy()).map_err(|e| {
            e.file(path).remedy("correct the recipe; the keys of a step are the options of its command, see its --help")
        })
    }

    fn parse(text: &str, overrides: &[(String, String)], stem: &str) -> Result<Self> {
        let mut raw: RawRecipe = toml::from_str(text).map_err(|e| usage(e.to_string().trim_end().to_owned()))?;
        let mut variables = Variables::default();
        for (key, value) in overrides {
            let Some(declared) = raw.vars.get_mut(key) else {
                let known: Vec<_> = raw.vars.keys().map(String::as_str).collect();
                let what = format!("this recipe has no variable {key:?}");
                return Err(usage(what).remedy(format!("its variables are: {}", known.join(", "))));
            };
            *declared = given(value, declared).map_err(|what| usage(format!("--set {key}: {what}")))?;
        }
        for (name, value) in &raw.vars {
            variables.define(name, value.clone()).map_err(|what| usage(format!("[vars] {name}: {what}")))?;
        }
        if raw.step.is_empty() {
            return Err(usage("the recipe has no step"));
        }
        let source = Source::new(text);
        let mut expansion =
            Expansion { source, defaults: &raw.defaults, variables, chosen: Vec::new(), steps: Vec::new() };
        expansion.steps(&raw.step, "")?;
        let Expansion { mut variables, steps, .. } = expansion;
        if let Some(name) = raw.defaults.keys().find(|name| steps.iter().all(|step| step.command != **name)) {
            return Err(usage(format!("[defaults.{name}]: no step runs {name:?}")));
        }
        if let Some(name) = raw.vars.keys().find(|name| !variables.was_used(name)) {
            return Err(usage(format!("[vars] {name}: nothing uses ${{{name}}}")));
        }
        check::steps(&steps).map_err(usage)?;
        Ok(Self { name: raw.name.unwrap_or_else(|| stem.to_owned()), steps })
    }
}

fn usage(what: impl Into<String>) -> Error {
    Error::new(Kind::Usage, what)
}

fn parse_step(mut table: toml::Table) -> Result<Step, String> {
    let command: String = take(&mut table, "run")?.ok_or("every step has a key \"run\" that names its command")?;
    let model: PathBuf = take(&mut table, "model")?.ok_or("the key \"model\" is missing")?;
    let label = take(&mut table, "label")?;
    let kind = match command.as_str() {
        "upcycle" => {
            let (output, overwrite) = take_output(&mut table)?;
            StepKind::Upcycle { output, overwrite, options: rest(table)? }
        }
        "observe" => {
            let (output, overwrite) = take_output(&mut table)?;
            StepKind::Observe { output, overwrite, options: options(table)? }
        }
        "prune" => {
            let (output, overwrite) = take_output(&mut table)?;
            StepKind::Prune { output, overwrite, options: options(table)? }
        }
        "merge" => {
            let (output, overwrite) = take_output(&mut table)?;
            StepKind::Merge { output, overwrite, options: options(table)? }
        }
        "quantize" => {
            let (output, overwrite) = take_output(&mut table)?;
            StepKind::Quantize { output, overwrite, options: options(table)? }
        }
        "heal" => {
            let (output, overwrite) = take_output(&mut table)?;
            StepKind::Heal { output, overwrite, options: options(table)? }
        }
        "distill" => {
            let (output, overwrite) = take_output(&mut table)?;
            StepKind::Distill { output, overwrite, options: options(table)? }
        }
        "eval" => StepKind::Eval { against: take(&mut table, "against")?, options: rest(table)? },
        "verify" => rest::<Nothing>(table).map(|_| StepKind::Verify)?,
        "inspect" => rest::<Nothing>(table).map(|_| StepKind::Inspect)?,
        other => {
            return Err(format!(
                "there is no command {other:?}; there are upcycle, observe, prune, merge, heal, quantize, distill, \
                 eval, verify and inspect"
            ));
        }
    };
    Ok(Step { command, model, label, chosen: String::new(), kind })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

fn take<T: DeserializeOwned>(table: &mut toml::Table, key: &str) -> Result<Option<T>, String> {
    let value = table.remove(key);
    value.map(|v| v.try_into().map_err(|e: toml::de::Error| format!("{key}: {}", e.message()))).transpose()
}

/// Where a step's result goes, and whether it replaces an earlier one.
fn take_output(table: &mut toml::Table) -> Result<(PathBuf, bool), String> {
    let output = take(table, "output")?.ok_or("the key \"output\" is missing")?;
    Ok((output, take(table, "overwrite")?.unwrap_or(false)))
}

/// Options that are put together of several groups, which serde can't check for unknown keys.
fn options<T: DeserializeOwned + clap::Args>(table: toml::Table) -> Result<T, String> {
    let command = T::augment_args(clap::Command::new(""));
    let known: Vec<&str> = command.get_arguments().filter_map(clap::Arg::get_long).collect();
    match table.keys().find(|key| !known.contains(&key.as_str())) {
        Some(key) => Err(format!("unknown field `{key}`, expected one of {}", known.join(", "))),
        None => rest(table),
    }
}

fn rest<T: DeserializeOwned>(table: toml::Table) -> Result<T, String> {
    toml::Value::Table(table).try_into().map_err(|e: toml::de::Error| e.to_string().trim().replace('\n', " "))
}
