//! Recipes: a TOML file with steps that run one after the other, some of them for every combination
//! of choices.

mod check;
mod defaults;
mod expand;
mod files;
mod guess;
mod models;
mod outcome;
mod schema;
mod source;
mod spare;
mod spelled;
mod steps;
#[cfg(test)]
mod tests;
mod variables;
mod wording;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use moe_checkpoint::{CONFIG_FILE, Error, Kind, Result, read_text};
use moe_passes::Pass;
use serde::Deserialize;

use crate::evaluation::EvalOptions;
use crate::observe::ObserveOptions;
use crate::writing::WritingOptions;
use defaults::{check_defaults, check_defaults_run, defaults};
use expand::Expansion;
pub use files::{JUNIT, check_summary};
use guess::guess;
pub use outcome::{Outcome, StepOutcome, junit, markdown};
pub use schema::recipe_schema;
use source::RecipeText;
use spare::{Spare, StepKeys};
use spelled::EarlierKeys;
use variables::{Variables, given};
use wording::{as_keys, in_toml};
#[cfg(test)]
pub(crate) use {schema::command_of, steps::all_commands};

/// Maximum size of a recipe.
const MAX_BYTES: u64 = 1 << 20;

/// A parsed recipe.
#[derive(Debug)]
pub struct Recipe {
    /// The name that the recipe gives, or else the file's.
    pub name: String,
    /// Steps in the order in which they run.
    pub steps: Vec<Step>,
    earlier: EarlierKeys,
}

/// A step of a recipe, checked and ready to run.
#[derive(Debug)]
pub struct Step {
    /// The name of its command.
    pub command: String,
    /// The checkpoint that the command reads.
    pub model: PathBuf,
    /// The name of its row in the summary; None for the checkpoint's name.
    pub label: Option<String>,
    /// The values chosen in the blocks around it, such as "bits 3, seed 0"; empty outside of
    /// blocks.
    pub chosen: String,
    /// The command's work and options.
    pub kind: StepKind,
    /// The keys that it was parsed from.
    keys: StepKeys,
}

impl Step {
    /// The name of its row in the summary.
    pub fn row(&self) -> String {
        self.label.clone().unwrap_or_else(|| self.model.display().to_string())
    }

    /// `error` of running the step, with options of the command line replaced by keys of the step.
    pub fn in_keys(&self, error: Error) -> Error {
        let own: Vec<String> =
            self.commands().filter_map(schema::keys_of_step).flatten().cloned().collect();
        let worded = error.reworded(|text| as_keys(text, |key| own.iter().any(|own| own == key)));
        worded.reworded(|text| {
            text.replace("give `overwrite`", "put `overwrite = true` into the step")
        })
    }

    /// The names of its command and of its passes.
    fn commands(&self) -> impl Iterator<Item = &str> {
        let passes = match &self.kind {
            StepKind::Convert { passes, .. } => passes.as_slice(),
            _ => &[],
        };
        std::iter::once(self.command.as_str()).chain(passes.iter().map(|pass| pass.name()))
    }

    /// The name of its command, and the values chosen for it.
    pub fn name(&self) -> String {
        let command = match &self.kind {
            StepKind::Convert { passes, .. } => {
                passes.iter().map(|pass| pass.name()).collect::<Vec<_>>().join(" → ")
            }
            _ => self.command.clone(),
        };
        match self.chosen.is_empty() {
            true => command,
            false => format!("{command}; {}", self.chosen),
        }
    }
}

/// The work of a step.
#[derive(Debug)]
pub enum StepKind {
    /// One pass or several, each on the result of the one before.
    Convert {
        /// The passes in order.
        passes: Vec<Box<dyn Pass>>,
        /// The directory of the result.
        output: PathBuf,
        /// Whether an earlier result is replaced.
        overwrite: bool,
        /// Options that the written bytes depend on.
        writing: WritingOptions,
    },
    /// `observe`.
    Observe {
        /// The file of the statistics.
        output: PathBuf,
        /// Whether an earlier file is replaced.
        overwrite: bool,
        /// Statistics and text.
        options: ObserveOptions,
    },
    /// `eval`.
    Eval {
        /// The checkpoint to compare with.
        original: Option<PathBuf>,
        /// Data, held-out text and gates.
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
    /// Keys by command, for every step that runs it and doesn't have them itself.
    #[serde(default)]
    defaults: BTreeMap<String, toml::Spanned<toml::Value>>,
    #[serde(default)]
    step: Vec<toml::Table>,
}

impl Recipe {
    /// Reads the recipe `path`; `overrides` replace its variables. Paths are relative to the
    /// working directory.
    ///
    /// # Errors
    /// [`Kind::Usage`], naming the step and the key, where the recipe is wrong; [`Kind::Io`] where
    /// it can't be read.
    pub fn read(path: &Path, overrides: &[(String, String)]) -> Result<Self> {
        if path.is_dir() {
            return Err(directory(path));
        }
        let text = read_text(path, MAX_BYTES).map_err(|error| {
            let whole = path.with_added_extension("toml");
            match !path.exists() && whole.is_file() {
                true => error.better_remedy(format!("give {}", whole.display())),
                false => error,
            }
        })?;
        Self::parse(&text, overrides, &path.file_stem().unwrap_or_default().to_string_lossy())
            .map_err(|e| e.file(path))
    }

    fn parse(text: &str, overrides: &[(String, String)], stem: &str) -> Result<Self> {
        let mut raw: RawRecipe = toml::from_str(text).map_err(|e| in_toml(&e))?;
        let mut variables = Variables::default();
        for (key, value) in overrides {
            let Some(declared) = raw.vars.get_mut(key) else {
                let known: Vec<_> = raw.vars.keys().map(String::as_str).collect();
                let what = format!(
                    "this recipe has no variable {key:?}{}",
                    guess(key, known.iter().copied())
                );
                return Err(usage(what, format!("its variables are: {}", known.join(", "))));
            };
            *declared = given(value, declared).map_err(|e| e.within(&format!("--set {key}")))?;
        }
        for (name, value) in &raw.vars {
            variables
                .define(name, value.clone())
                .map_err(|e| e.within(&format!("[vars] {name}")))?;
        }
        if raw.step.is_empty() {
            return Err(usage(
                "the recipe has no step",
                "add a [[step]] with run = \"COMMAND\" and what that needs",
            ));
        }
        let source = RecipeText::new(text);
        let mut earlier = EarlierKeys::default();
        let mut defaults = defaults(raw.defaults, text)?;
        for (command, table) in &mut defaults {
            let place = format!("[defaults.{command}]");
            for key in spelled::keys(table, command).map_err(|error| error.within(&place))? {
                let line = source.key_of_defaults(command, &format!("`{}`", key.was));
                earlier.add(key, line.map(|key| key.line), &place);
            }
        }
        check_defaults(&defaults, &raw.step)?;
        Expansion::check_count(&raw.step)?;
        let mut expansion = Expansion {
            source,
            defaults: &defaults,
            variables,
            chosen: Vec::new(),
            steps: Vec::new(),
            spare: Spare::default(),
            earlier,
        };
        expansion.steps(&raw.step, "")?;
        let Expansion { mut variables, steps, spare, earlier, .. } = expansion;
        spare.check()?;
        let commands: BTreeSet<&str> = steps.iter().flat_map(Step::commands).collect();
        check_defaults_run(&defaults, &commands)?;
        if let Some(name) = raw.vars.keys().find(|name| !variables.was_used(name)) {
            let what = format!("[vars] {name}: nothing uses ${{{name}}}");
            return Err(usage(what, "use it, correct the name where it is used, or remove it"));
        }
        let steps = check::shared(steps);
        check::steps(&steps)?;
        Ok(Self { name: raw.name.unwrap_or_else(|| stem.to_owned()), steps, earlier })
    }

    /// Notes for the user of the recipe in the file `path`: keys that have been renamed.
    pub fn notes(&self, path: &Path) -> Vec<String> {
        self.earlier.notes(path)
    }
}

fn usage(what: impl Into<String>, remedy: impl Into<String>) -> Error {
    Error::new(Kind::Usage, what).remedy(remedy)
}

/// The error for a directory in place of a recipe.
fn directory(path: &Path) -> Error {
    let mut recipes: Vec<String> = std::fs::read_dir(path)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .filter(|name| name.ends_with(".toml"))
        .collect();
    recipes.sort();
    let remedy = match recipes.first() {
        Some(first) => format!("give one of the files in it, such as {}", path.join(first).display()),
        None if path.join(CONFIG_FILE).is_file() => {
            "this is a checkpoint, which a recipe names: give the recipe's TOML file; moe-convert inspect shows checkpoints".to_owned()
        }
        None => "give the TOML file of a recipe; docs/recipes.md shows how recipes are written".to_owned(),
    };
    Error::new(Kind::Malformed, "a recipe is a file; this is a directory").file(path).remedy(remedy)
}
