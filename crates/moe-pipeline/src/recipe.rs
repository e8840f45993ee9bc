//! Recipes: a TOML file with steps that run one after the other.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use moe_checkpoint::{Error, Kind, Result};
use moe_passes::{MergeOptions, PruneOptions, QuantizeOptions, UpcycleOptions};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::evaluation::EvalOptions;
use crate::observe::ObserveOptions;

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
    /// What it does.
    pub kind: StepKind,
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
    vars: BTreeMap<String, String>,
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
        let text = std::fs::read_to_string(path).map_err(|e| Error::io("cannot read this recipe", path, e))?;
        Self::parse(&text, overrides, &path.file_stem().unwrap_or_default().to_string_lossy()).map_err(|e| {
            e.file(path).remedy("correct the recipe; the keys of a step are the options of its command, see its --help")
        })
    }

    fn parse(text: &str, overrides: &[(String, String)], stem: &str) -> Result<Self> {
        let mut raw: RawRecipe = toml::from_str(text).map_err(|e| usage(e.to_string().trim_end().to_owned()))?;
        for (key, value) in overrides {
            match raw.vars.get_mut(key) {
                Some(old) => value.clone_into(old),
                None => {
                    let known: Vec<_> = raw.vars.keys().map(String::as_str).collect();
                    let what = format!("this recipe has no variable {key:?}");
                    return Err(usage(what).remedy(format!("its variables are: {}", known.join(", "))));
                }
            }
        }
        if raw.step.is_empty() {
            return Err(usage("the recipe has no step"));
        }
        let runs = |name: &String| raw.step.iter().any(|t| t.get("run").and_then(toml::Value::as_str) == Some(name));
        if let Some(name) = raw.defaults.keys().find(|name| !runs(name)) {
            return Err(usage(format!("[defaults.{name}]: no step runs {name:?}")));
        }
        let step = |(index, mut table): (usize, toml::Table)| {
            let name = table.get("run").and_then(toml::Value::as_str).unwrap_or("?").to_owned();
            let in_step = |what: String| usage(format!("step {} ({name}): {what}", index + 1));
            for (key, value) in raw.defaults.get(&name).into_iter().flatten() {
                table.entry(key.clone()).or_insert_with(|| value.clone());
            }
            substitute(&mut table, &raw.vars).map_err(in_step)?;
            parse_step(table).map_err(in_step)
        };
        let steps = raw.step.into_iter().enumerate().map(step).collect::<Result<_>>()?;
        Ok(Self { name: raw.name.unwrap_or_else(|| stem.to_owned()), steps })
    }
}

fn usage(what: impl Into<String>) -> Error {
    Error::new(Kind::Usage, what)
}

/// Replaces `${name}` in every string.
fn substitute(table: &mut toml::Table, vars: &BTreeMap<String, String>) -> Result<(), String> {
    table.iter_mut().try_for_each(|(_, value)| substitute_value(value, vars))
}

fn substitute_value(value: &mut toml::Value, vars: &BTreeMap<String, String>) -> Result<(), String> {
    match value {
        toml::Value::String(text) => {
            for (name, replacement) in vars {
                *text = text.replace(&format!("${{{name}}}"), replacement);
            }
            match text.split_once("${").and_then(|(_, rest)| rest.split_once('}')) {
                Some((name, _)) => Err(format!("there is no variable {name:?} under [vars]")),
                None => Ok(()),
            }
        }
        toml::Value::Array(values) => values.iter_mut().try_for_each(|v| substitute_value(v, vars)),
        toml::Value::Table(table) => substitute(table, vars),
        _ => Ok(()),
    }
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
        "eval" => StepKind::Eval { against: take(&mut table, "against")?, options: rest(table)? },
        "verify" => rest::<Nothing>(table).map(|_| StepKind::Verify)?,
        "inspect" => rest::<Nothing>(table).map(|_| StepKind::Inspect)?,
        other => {
            return Err(format!(
                "there is no command {other:?}; there are upcycle, observe, prune, merge, quantize, eval, verify and \
                 inspect"
            ));
        }
    };
    Ok(Step { command, model, label, kind })
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

#[cfg(test)]
mod tests {
    use super::*;

    const RECIPE: &str = r#"
        [vars]
        out = "target/x"
        [[step]]
        run = "upcycle"
        model = "dense"
        output = "${out}/moe"
        experts = 8
        top-k = 2
        [[step]]
        run = "verify"
        model = "${out}/moe"
    "#;

    fn message(text: &str, overrides: &[(String, String)]) -> String {
        Recipe::parse(text, overrides, "x").unwrap_err().to_string()
    }

    #[test]
    fn variables_are_replaced_and_overridden() {
        let of = |overrides: &[(String, String)]| Recipe::parse(RECIPE, overrides, "x").unwrap().steps[1].model.clone();
        assert_eq!(of(&[]), Path::new("target/x/moe"));
        assert_eq!(of(&[("out".into(), "/y".into())]), Path::new("/y/moe"));
        assert!(message(RECIPE, &[("outt".into(), "/y".into())]).contains("its variables are: out"));
    }

    #[test]
    fn defaults_fill_in_what_a_step_leaves_out() {
        let text = format!("{RECIPE}\n[defaults.upcycle]\ntop-k = 4\nseed = 7");
        let StepKind::Upcycle { options, .. } = &Recipe::parse(&text, &[], "x").unwrap().steps[0].kind else {
            panic!("the first step upcycles")
        };
        assert_eq!((options.top_k, options.seed), (2, 7));
    }

    #[test]
    fn merging_is_a_step() {
        let text = "[[step]]\nrun = \"merge\"\nmodel = \"moe\"\noutput = \"x\"\nexperts = 12\nmethod = \"hc-smoe\"\nsample-every = 4";
        let StepKind::Merge { options, .. } = &Recipe::parse(text, &[], "x").unwrap().steps[0].kind else {
            panic!("the step merges")
        };
        assert_eq!((options.sample_every, options.reduce.experts), (Some(4), Some(12)));
        assert!(message(&format!("{text}\ncap = 3"), &[]).contains("step 1 (merge): unknown field `cap`"));
    }

    #[test]
    fn mistakes_are_named() {
        let with = |from: &str, to: &str| message(&RECIPE.replace(from, to), &[]);
        assert!(with("top-k", "topk").contains("step 1 (upcycle): unknown field `topk`"));
        assert!(with("experts = 8", "experts = \"8\"").contains("step 1 (upcycle)"));
        assert!(with("experts = 8", "").contains("missing field `experts`"));
        assert!(with("\"verify\"", "\"verfiy\"").contains("there is no command \"verfiy\""));
        assert!(with("run = \"verify\"", "").contains("step 2 (?): every step has a key \"run\""));
        assert!(
            with("${out}/moe\"\n        experts", "${oops}/moe\"\n        experts").contains("no variable \"oops\"")
        );
        assert!(message("step = 3", &[]).contains("line 1"));
        assert!(message(&format!("{RECIPE}\n[defaults.eval]"), &[]).contains("no step runs \"eval\""));
    }
}
