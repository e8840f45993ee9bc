//! Reads recipes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use moe_checkpoint::{CONFIG_FILE, Error, Kind, Result, read_text};
use toml::Table;

use super::defaults::{check_defaults, check_defaults_run, defaults};
use super::expand::{Expanded, Expansion};
use super::guess::guess;
use super::mistake::usage;
use super::parsed::{Recipe, Step};
use super::source::RecipeText;
use super::spelled::{self, EarlierKeys};
use super::syntax::RawRecipe;
use super::variables::{Variables, given};
use super::{blocks, check};

/// Maximum size of a recipe.
const MAX_BYTES: u64 = 1 << 20;

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
            if !path.exists() && whole.is_file() {
                error.better_remedy(format!("give {}", whole.display()))
            } else {
                error
            }
        })?;
        Self::parse(&text, overrides, &path.file_stem().unwrap_or_default().to_string_lossy())
            .map_err(|e| e.file(path))
    }

    /// Reads the recipe `text`, whose file is called `stem`.
    pub(super) fn parse(text: &str, overrides: &[(String, String)], stem: &str) -> Result<Self> {
        let mut raw = RawRecipe::read(text)?;
        let variables = variables(&mut raw.vars, overrides)?;
        if raw.step.is_empty() {
            return Err(usage(
                "the recipe has no step",
                "add a [[step]] with run = \"COMMAND\" and what that needs",
            ));
        }
        let source = RecipeText::new(text);
        let mut defaults = defaults(raw.defaults, text)?;
        let earlier = spell(&mut defaults, &source)?;
        check_defaults(&defaults, &raw.step)?;
        blocks::check_count(&raw.step)?;
        let mut expansion = Expansion::new(source, &defaults, variables, earlier);
        expansion.steps(&raw.step, "")?;
        let Expanded { steps, mut variables, earlier } = expansion.finish()?;
        let commands: BTreeSet<&str> = steps.iter().flat_map(Step::commands).collect();
        check_defaults_run(&defaults, &commands)?;
        check_used(&raw.vars, &mut variables)?;
        let steps = check::shared(steps);
        check::steps(&steps)?;
        Ok(Self { name: raw.name.unwrap_or_else(|| stem.to_owned()), steps, earlier })
    }

    /// Notes for the user of the recipe in the file `path`: keys that have been renamed.
    pub fn notes(&self, path: &Path) -> Vec<String> {
        self.earlier.notes(path)
    }
}

/// The variables of a recipe, of which `overrides` replace some.
fn variables(declared: &mut Table, overrides: &[(String, String)]) -> Result<Variables> {
    for (name, value) in overrides {
        let Some(of_recipe) = declared.get_mut(name) else {
            return Err(no_variable(name, declared));
        };
        *of_recipe = given(value, of_recipe).map_err(|e| e.within(&format!("--set {name}")))?;
    }
    let mut variables = Variables::default();
    for (name, value) in declared.iter() {
        let defined = variables.define(name, value.clone());
        defined.map_err(|e| e.within(&format!("[vars] {name}")))?;
    }
    Ok(variables)
}

/// The error where `--set` names a variable that isn't `declared`.
fn no_variable(name: &str, declared: &Table) -> Error {
    let known: Vec<&str> = declared.keys().map(String::as_str).collect();
    let guess = guess(name, known.iter().copied());
    let what = format!("this recipe has no variable {name:?}{guess}");
    if known.is_empty() {
        return usage(what, "it has no variables: leave --set out");
    }
    usage(what, format!("its variables are: {}", known.join(", ")))
}

/// Refuses variables that no step uses.
fn check_used(declared: &Table, variables: &mut Variables) -> Result<()> {
    match declared.keys().find(|name| !variables.was_used(name)) {
        Some(name) => {
            let what = format!("[vars] {name}: nothing uses ${{{name}}}");
            Err(usage(what, "use it, correct the name where it is used, or remove it"))
        }
        None => Ok(()),
    }
}

/// Gives the keys of `defaults` their current names, and returns those that had earlier ones.
fn spell(defaults: &mut BTreeMap<String, Table>, source: &RecipeText<'_>) -> Result<EarlierKeys> {
    let mut earlier = EarlierKeys::default();
    for (command, table) in defaults {
        let place = format!("[defaults.{command}]");
        let keys =
            spelled::keys(table, command).map_err(|mistake| mistake.into_error().within(&place))?;
        for key in keys {
            let line = source.line_of_default(command, &key.was);
            earlier.add(key, line, &place);
        }
    }
    Ok(earlier)
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
