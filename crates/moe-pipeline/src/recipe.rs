//! Recipes: a TOML file with steps that run one after the other, some of them for every combination of choices.

mod check;
mod expand;
mod guess;
mod outcome;
mod schema;
mod source;
#[cfg(test)]
mod tests;
mod variables;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use moe_checkpoint::{Error, Kind, Result, read_text};
use moe_passes::{DistillOptions, HealOptions, MergeOptions, Pass, PruneOptions, QuantizeOptions, UpcycleOptions};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::evaluation::EvalOptions;
use crate::observe::ObserveOptions;
use crate::prepare::check_together;
use crate::writing::WritingOptions;
use expand::Expansion;
use guess::{guess, guess_key};
pub(crate) use outcome::STEPS_HEADER;
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

    /// Whether it runs `name`, as its command or as one of its passes.
    fn runs(&self, name: &str) -> bool {
        let passes = match &self.kind {
            StepKind::Convert { passes, .. } => passes.as_slice(),
            _ => &[],
        };
        self.command == name || passes.iter().any(|pass| pass.name() == name)
    }

    /// Its command, and what was chosen for it.
    pub fn name(&self) -> String {
        let command = match &self.kind {
            StepKind::Convert { passes, .. } => passes.iter().map(|pass| pass.name()).collect::<Vec<_>>().join(" → "),
            _ => self.command.clone(),
        };
        match self.chosen.is_empty() {
            true => command,
            false => format!("{command}; {}", self.chosen),
        }
    }
}

/// What a step does.
#[derive(Debug)]
pub enum StepKind {
    /// One pass or several, each on what the one before makes.
    Convert {
        /// The passes.
        passes: Vec<Box<dyn Pass>>,
        /// Where the result goes.
        output: PathBuf,
        /// Whether an earlier result is replaced.
        overwrite: bool,
        /// How it is written.
        writing: WritingOptions,
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
        let mut raw: RawRecipe = toml::from_str(text).map_err(|e| {
            let what = e.to_string();
            usage(format!("{}{}", what.trim_end(), guess_key(&what)))
        })?;
        let mut variables = Variables::default();
        for (key, value) in overrides {
            let Some(declared) = raw.vars.get_mut(key) else {
                let known: Vec<_> = raw.vars.keys().map(String::as_str).collect();
                let what = format!("this recipe has no variable {key:?}{}", guess(key, known.iter().copied()));
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
        if let Some(name) = raw.defaults.keys().find(|name| !steps.iter().any(|step| step.runs(name))) {
            return Err(usage(format!("[defaults.{name}]: no step runs {name:?}")));
        }
        if let Some(name) = raw.vars.keys().find(|name| !variables.was_used(name)) {
            return Err(usage(format!("[vars] {name}: nothing uses ${{{name}}}")));
        }
        let steps = check::shared(steps);
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
        CONVERT => {
            let (output, overwrite) = take_output(&mut table)?;
            let writing = take_writing(&mut table)?;
            let passes: Vec<toml::Table> = take(&mut table, "pass")?.unwrap_or_default();
            rest::<Nothing>(table)?;
            StepKind::Convert { passes: parse_passes(passes)?, output, overwrite, writing }
        }
        "observe" => {
            let (output, overwrite) = take_output(&mut table)?;
            StepKind::Observe { output, overwrite, options: options(table)? }
        }
        "eval" => StepKind::Eval { against: take(&mut table, "against")?, options: rest(table)? },
        "verify" => rest::<Nothing>(table).map(|_| StepKind::Verify)?,
        "inspect" => rest::<Nothing>(table).map(|_| StepKind::Inspect)?,
        pass if PASSES.contains(&pass) => {
            let (output, overwrite) = take_output(&mut table)?;
            let writing = take_writing(&mut table)?;
            StepKind::Convert { passes: vec![parse_pass(pass, table)?], output, overwrite, writing }
        }
        other => {
            let known: Vec<&str> =
                PASSES.into_iter().chain([CONVERT, "observe", "eval", "verify", "inspect"]).collect();
            let guess = guess(other, known.iter().copied());
            return Err(format!("there is no command {other:?}, only {}{guess}", known.join(", ")));
        }
    };
    Ok(Step { command, model, label, chosen: String::new(), kind })
}

/// The command of a step that runs several passes.
const CONVERT: &str = "convert";

/// The passes that a step can run.
const PASSES: [&str; 6] = [
    UpcycleOptions::NAME,
    PruneOptions::NAME,
    MergeOptions::NAME,
    HealOptions::NAME,
    QuantizeOptions::NAME,
    DistillOptions::NAME,
];

fn parse_pass(name: &str, table: toml::Table) -> Result<Box<dyn Pass>, String> {
    Ok(match name {
        UpcycleOptions::NAME => Box::new(rest::<UpcycleOptions>(table)?),
        PruneOptions::NAME => Box::new(options::<PruneOptions>(table)?),
        MergeOptions::NAME => Box::new(options::<MergeOptions>(table)?),
        HealOptions::NAME => Box::new(options::<HealOptions>(table)?),
        QuantizeOptions::NAME => Box::new(options::<QuantizeOptions>(table)?),
        DistillOptions::NAME => Box::new(options::<DistillOptions>(table)?),
        other => return Err(format!("there is no pass {other:?}, only {}{}", PASSES.join(", "), guess(other, PASSES))),
    })
}

/// The passes of a step that runs several.
fn parse_passes(tables: Vec<toml::Table>) -> Result<Vec<Box<dyn Pass>>, String> {
    if tables.is_empty() {
        return Err("the key \"pass\" is missing: the passes that it runs, each a table [[step.pass]]".to_owned());
    }
    let mut passes = Vec::new();
    for (index, mut table) in tables.into_iter().enumerate() {
        let in_pass = |what: String| format!("pass {}: {what}", index + 1);
        let name: Option<String> = take(&mut table, "run").map_err(in_pass)?;
        let name = name.ok_or_else(|| in_pass("the key \"run\" that names the pass is missing".to_owned()))?;
        passes.push(parse_pass(&name, table).map_err(in_pass)?);
    }
    let borrowed: Vec<&dyn Pass> = passes.iter().map(Box::as_ref).collect();
    check_together(&borrowed).map_err(|error| error.briefly())?;
    Ok(passes)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

fn take<T: DeserializeOwned>(table: &mut toml::Table, key: &str) -> Result<Option<T>, String> {
    let value = table.remove(key);
    value.map(|v| v.try_into().map_err(|e: toml::de::Error| format!("{key}: {}", plain(e.message())))).transpose()
}

/// What serde says, with words for Rust's types.
fn plain(message: &str) -> String {
    let words = [
        ("f64", "a number"),
        ("usize", "a whole number, 0 or more"),
        ("u64", "a whole number, 0 or more"),
        ("a sequence", "a list"),
    ];
    words.iter().fold(message.trim().replace('\n', " "), |text, (of_rust, words)| {
        text.replace(&format!("expected {of_rust}"), &format!("expected {words}"))
    })
}

/// Where a step's result goes, and whether it replaces an earlier one.
fn take_output(table: &mut toml::Table) -> Result<(PathBuf, bool), String> {
    let output = take(table, "output")?.ok_or("the key \"output\" is missing")?;
    Ok((output, take(table, "overwrite")?.unwrap_or(false)))
}

/// How a step's result is written.
fn take_writing(table: &mut toml::Table) -> Result<WritingOptions, String> {
    let mut given = toml::Table::new();
    for key in WRITING {
        given.extend(table.remove(key).map(|value| (key.to_owned(), value)));
    }
    rest(given)
}

/// The keys of [`WritingOptions`].
const WRITING: [&str; 2] = ["max-shard-size", "probe-tokens"];

/// Options that are put together of several groups, which serde can't check for unknown keys.
fn options<T: DeserializeOwned + clap::Args>(table: toml::Table) -> Result<T, String> {
    let command = T::augment_args(clap::Command::new(""));
    let known: Vec<&str> = command.get_arguments().filter_map(clap::Arg::get_long).collect();
    match table.keys().find(|key| !known.contains(&key.as_str())) {
        Some(key) => {
            let of_steps = "model, output, overwrite, max-shard-size, probe-tokens";
            Err(format!("unknown field `{key}`, expected one of {of_steps}, {}", known.join(", ")))
        }
        None => rest(table),
    }
}

fn rest<T: DeserializeOwned>(table: toml::Table) -> Result<T, String> {
    let read =
        |table: toml::Table| toml::Value::Table(table).try_into().map_err(|e: toml::de::Error| plain(&e.to_string()));
    read(table.clone()).map_err(|error: String| {
        // Where options are put together of groups, serde doesn't say whose value is wrong: it's the key without which it isn't said.
        let is_subject = |key: &&String| {
            let mut others = table.clone();
            others.remove(*key);
            read(others).map_or_else(|other| other != error && !other.contains(&format!("`{key}`")), |_: T| true)
        };
        match table.keys().find(is_subject) {
            Some(key) if !error.contains(&format!("`{key}")) => format!("{error} in `{key}`"),
            _ => error,
        }
    })
}
