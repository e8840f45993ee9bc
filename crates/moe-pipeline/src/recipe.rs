//! Recipes: a TOML file with steps that run one after the other, some of them for every combination of choices.

mod check;
mod expand;
mod variables;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use moe_checkpoint::{Error, Kind, Result};
use moe_passes::{MergeOptions, PruneOptions, QuantizeOptions, UpcycleOptions};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::evaluation::EvalOptions;
use crate::observe::ObserveOptions;
use expand::Expansion;
use variables::{Variables, given};

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
        let text = std::fs::read_to_string(path).map_err(|e| Error::io("cannot read this recipe", path, e))?;
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
        let mut expansion = Expansion { defaults: &raw.defaults, variables, chosen: Vec::new(), steps: Vec::new() };
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

    const MATRIX: &str = r#"
        [vars]
        out = "x"
        seeds = [0, 1]
        [defaults.quantize]
        model = "moe"
        seed = "${seed}"
        [[step]]
        run = "verify"
        model = "moe"
        [[step]]
        each.bits = [3, 2]
        each.text = [{ text = "all", files = ["a=a.txt", "b.txt"], sizes = [512] }, { text = "one", files = ["a.txt"], sizes = [64, 128] }]
        [[step.step]]
        each.tokens = "${sizes}"
        each.seed = "${seeds}"
        [[step.step.step]]
        run = "quantize"
        output = "${out}/${bits}-${text}-${tokens}-${seed}"
        scheme = "w${bits}a16"
        data = "${files}"
        data-tokens = "${tokens}"
        [[step.step.step]]
        run = "eval"
        label = "${bits} bits, ${text}, ${tokens}"
        model = "${out}/${bits}-${text}-${tokens}-${seed}"
        data = ["b.txt"]
    "#;

    #[test]
    fn blocks_run_for_every_combination() {
        let steps = Recipe::parse(MATRIX, &[], "x").unwrap().steps;
        assert_eq!((steps[0].command.as_str(), steps[0].chosen.as_str()), ("verify", ""));
        let made: Vec<_> = steps[1..].iter().step_by(2).map(|step| step.chosen.as_str()).collect();
        let sizes = ["text all, tokens 512", "text one, tokens 64", "text one, tokens 128"];
        let of_bits =
            |bits| sizes.iter().flat_map(move |size| [0, 1].map(|seed| format!("bits {bits}, {size}, seed {seed}")));
        assert_eq!(made, [3, 2].into_iter().flat_map(of_bits).collect::<Vec<_>>());
        let StepKind::Quantize { output, options, .. } = &steps[7].kind else { panic!("step 8 quantizes") };
        assert_eq!(output, Path::new("x/3-one-64-1"));
        assert_eq!((options.calibration.data_tokens, options.calibration.seed), (64, 1));
        assert_eq!(options.calibration.data.len(), 1);
        assert_eq!(steps[8].row(), "3 bits, one, 64");
        assert_eq!(steps[8].name(), "eval; bits 3, text one, tokens 64, seed 1");
        let fewer = [("seeds".to_owned(), "[7]".to_owned())];
        assert_eq!(Recipe::parse(MATRIX, &fewer, "x").unwrap().steps.len(), 1 + 2 * 2 * 3);
    }

    #[test]
    fn mistakes_in_blocks_are_named() {
        let with = |from: &str, to: &str| {
            assert!(MATRIX.contains(from), "{from}");
            message(&MATRIX.replace(from, to), &[])
        };
        let bits = "each.bits = [3, 2]";
        assert!(with("[3, 2]", "[3, 5]").contains("step 2.1.1 (quantize; bits 5, text all, tokens 512, seed 0): "));
        assert!(with(bits, "each.bits = []").contains("step 2 (a block): each.bits: give at least one value"));
        assert!(with(bits, "each.bits = 3").contains("each.bits: give a list"));
        assert!(
            with(bits, "each.bits = [3, 2]\neach.nits = [1]").contains("each.nits: no step of the block uses ${nits}")
        );
        assert!(with(bits, "each.out = [1]").contains("each.out: there is a variable \"out\" already"));
        assert!(with("w${bits}a16", "w${bit}a16").contains("there is no variable \"bit\" here, only bits, files, out"));
        assert!(with("data = \"${files}\"", "data = [\"a ${files}\"]").contains("${files} is of type array"));
        assert!(with("files = [\"a.txt\"], ", "").contains("here are text, files, sizes, and text, sizes"));
        assert!(with("sizes = [512] }", "sizes = [512], more = 1 }").contains("every value sets the same variables"));
        assert!(with("[{ text", "[1, { text").contains("each.text: every value sets the same variables"));
        assert!(
            with(bits, "each.bits = [3, 2]\nrun = \"verify\"").contains("unknown key `run`, expected each and step")
        );
        assert!(with("seeds = [0, 1]", "seeds = [0, 1]\nspare = 1").contains("[vars] spare: nothing uses ${spare}"));
        assert!(
            with("-${tokens}-${seed}\"\n        scheme", "\"\n        scheme")
                .contains("writes to x/3-all, as step 2 does")
        );
        assert!(with("[\"b.txt\"]\n", "[\"${seed}.txt\"]\n").contains("has the label of step 3, \"3 bits, all, 512\""));
        let block = "[[step]]\n[[step.step]]\nrun = \"verify\"\nmodel = \"x\"";
        assert!(message(block, &[]).contains("step 1 (a block): the key \"each\" is missing"));
        assert!(
            message("[[step]]\neach = {}\n[[step.step]]", &[])
                .contains("step 1 (a block): it has no choice under each")
        );
        assert!(message("[[step]]\neach.a = [1]", &[]).contains("step 1 (a block): it has no step"));
        let set = |value: &str| message(MATRIX, &[("seeds".to_owned(), value.to_owned())]);
        assert!(set("3").contains("--set seeds: \"3\" is no TOML of type array, as [0, 1] is"));
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
