//! Recipes: a TOML file with steps that run one after the other, some of them for every combination
//! of choices.

mod check;
mod expand;
mod guess;
mod models;
mod outcome;
mod schema;
mod source;
mod spare;
#[cfg(test)]
mod tests;
mod variables;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use moe_checkpoint::{CONFIG_FILE, Error, Kind, Result, read_text};
use moe_passes::{PASSES, Pass, PassInfo};
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
use source::RecipeText;
use spare::{Spare, StepKeys};
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
    /// What it was made of.
    keys: StepKeys,
}

impl Step {
    /// What its row in the summary is called.
    pub fn row(&self) -> String {
        self.label.clone().unwrap_or_else(|| self.model.display().to_string())
    }

    /// `error` in running it, with keys of the step where it names options of the command line.
    pub fn in_keys(&self, error: Error) -> Error {
        let own: Vec<String> =
            self.commands().filter_map(schema::keys_of_step).flatten().cloned().collect();
        let worded = error.reworded(|text| as_keys(text, |key| own.iter().any(|own| own == key)));
        worded.reworded(|text| {
            text.replace("give `overwrite`", "put `overwrite = true` into the step")
        })
    }

    /// Its command, and its passes.
    fn commands(&self) -> impl Iterator<Item = &str> {
        let passes = match &self.kind {
            StepKind::Convert { passes, .. } => passes.as_slice(),
            _ => &[],
        };
        std::iter::once(self.command.as_str()).chain(passes.iter().map(|pass| pass.name()))
    }

    /// Its command, and what was chosen for it.
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
    defaults: BTreeMap<String, toml::Spanned<toml::Value>>,
    #[serde(default)]
    step: Vec<toml::Table>,
}

impl Recipe {
    /// Reads the recipe `path`; `overrides` replace its variables. Paths are relative to the
    /// working directory.
    ///
    /// # Errors
    /// [`Kind::Usage`], naming the step and the key, where it can't be understood; [`Kind::Io`]
    /// where it can't be read.
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
        let defaults = defaults(raw.defaults, text)?;
        check_defaults(&defaults, &raw.step)?;
        Expansion::check_count(&raw.step)?;
        let source = RecipeText::new(text);
        let mut expansion = Expansion {
            source,
            defaults: &defaults,
            variables,
            chosen: Vec::new(),
            steps: Vec::new(),
            spare: Spare::default(),
        };
        expansion.steps(&raw.step, "")?;
        let Expansion { mut variables, steps, spare, .. } = expansion;
        spare.check()?;
        let commands: BTreeSet<&str> = steps.iter().flat_map(Step::commands).collect();
        check_defaults_run(&defaults, &commands)?;
        if let Some(name) = raw.vars.keys().find(|name| !variables.was_used(name)) {
            let what = format!("[vars] {name}: nothing uses ${{{name}}}");
            return Err(usage(what, "use it, correct the name where it is used, or remove it"));
        }
        let steps = check::shared(steps);
        check::steps(&steps)?;
        Ok(Self { name: raw.name.unwrap_or_else(|| stem.to_owned()), steps })
    }
}

fn usage(what: impl Into<String>, remedy: impl Into<String>) -> Error {
    Error::new(Kind::Usage, what).remedy(remedy)
}

/// Refuses defaults of what no step runs before steps are looked at, which would lack the keys that
/// were meant for them.
fn check_defaults(defaults: &BTreeMap<String, toml::Table>, steps: &[toml::Table]) -> Result<()> {
    let mut commands = BTreeSet::new();
    named_runs(steps, &mut commands);
    // What a variable names is known when the steps are.
    if commands.iter().any(|command| command.contains("${")) {
        let all: Vec<&str> = all_commands();
        return check_defaults_run(defaults, &all.into_iter().collect());
    }
    check_defaults_run(defaults, &commands)
}

/// The tables of [defaults] in the recipe `text`, which are of commands; keys that stand there by
/// themselves are refused.
fn defaults(
    given: BTreeMap<String, toml::Spanned<toml::Value>>,
    text: &str,
) -> Result<BTreeMap<String, toml::Table>> {
    let mut tables = BTreeMap::new();
    for (key, value) in given {
        let line = text[..value.span().start].lines().count();
        match value.into_inner() {
            toml::Value::Table(table) => _ = tables.insert(key, table),
            value => {
                let what = format!(
                    "line {line}, [defaults]: {key} is a key, and [defaults] has a table for each command"
                );
                let of_command = || format!("put it below [defaults.{}], say", PASSES[0]);
                return Err(usage(
                    what,
                    of_program(&key, &value.to_string()).unwrap_or_else(of_command),
                ));
            }
        }
    }
    Ok(tables)
}

/// How a key is given that is about the whole run, and no step's; none for others.
fn of_program(key: &str, value: &str) -> Option<String> {
    let takes_value =
        ["device", "dtype", "router-dtype", "device-memory", "threads", "memory-budget"]
            .contains(&key);
    let is_switch = ["timings", "json", "quiet"].contains(&key);
    let value = if takes_value { format!(" {}", value.trim_matches('"')) } else { String::new() };
    (takes_value || is_switch)
        .then(|| format!("it is for all steps: give --{key}{value} to moe-convert run"))
}

/// Collects what `steps`, their passes and the steps of blocks run, as it is written.
fn named_runs<'t>(
    steps: impl IntoIterator<Item = &'t toml::Table>,
    commands: &mut BTreeSet<&'t str>,
) {
    for step in steps {
        commands.extend(step.get("run").and_then(toml::Value::as_str));
        for inner in ["step", "pass"] {
            let tables = step.get(inner).and_then(toml::Value::as_array).into_iter().flatten();
            named_runs(tables.filter_map(toml::Value::as_table).collect::<Vec<_>>(), commands);
        }
    }
}

/// Refuses defaults of what isn't among `commands`.
fn check_defaults_run(
    defaults: &BTreeMap<String, toml::Table>,
    commands: &BTreeSet<&str>,
) -> Result<()> {
    let Some(name) = defaults.keys().find(|name| !commands.contains(name.as_str())) else {
        return Ok(());
    };
    let guess = guess(name, commands.iter().copied());
    let commands = commands.iter().copied().collect::<Vec<_>>().join(", ");
    let what = format!("[defaults.{name}]: no step runs {name:?}{guess}");
    Err(usage(what, format!("name a command that a step runs ({commands}), or remove the table")))
}

/// What is no TOML, or no table of a recipe.
/// A directory in the place of a recipe.
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

fn in_toml(error: &toml::de::Error) -> Error {
    let what = error.to_string();
    let what = format!("{}{}", what.trim_end(), guess_key(&what));
    match what.contains("unknown field") {
        true => usage(
            what,
            "a recipe has name, vars, defaults and step; keys of a step stand below its [[step]]",
        ),
        false if what.contains("as i128") || what.contains("value was too large") => {
            let place = what.rsplit_once('\n').map_or("", |(place, _)| place);
            usage(
                format!("{place}\nthis number is too large for TOML"),
                format!("give a number up to {}", i64::MAX),
            )
        }
        false => usage(
            what,
            "correct the TOML at this place; docs/recipes.md shows how recipes are written",
        ),
    }
}

fn missing(key: &str, example: &str) -> Error {
    usage(
        format!("the key {key:?} is missing"),
        format!("add {key} = {example}, to the step or to [defaults]"),
    )
}

fn parse_step(mut table: toml::Table) -> Result<Step> {
    let command: Option<String> = take(&mut table, "run")?;
    let command = command.ok_or_else(|| {
        let what = "every step has a key \"run\" that names its command";
        usage(
            what,
            format!(
                "add run = \"{}\" or another command: {}",
                PASSES[0],
                all_commands().join(", ")
            ),
        )
    })?;
    if let Some(known) = schema::keys_of_step(&command) {
        check_keys(&table, known)?;
    }
    let model: Option<PathBuf> = take(&mut table, "model")?;
    let model = model.ok_or_else(|| missing("model", "\"CHECKPOINT\""))?;
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
            let options: ObserveOptions = rest(table)?;
            options.check().map_err(with_keys)?;
            StepKind::Observe { output, overwrite, options }
        }
        "eval" => {
            let against: Option<PathBuf> = take(&mut table, "against")?;
            let options: EvalOptions = rest(table)?;
            options.check(against.is_some()).map_err(with_keys)?;
            StepKind::Eval { against, options }
        }
        "verify" => rest::<Nothing>(table).map(|_| StepKind::Verify)?,
        "inspect" => rest::<Nothing>(table).map(|_| StepKind::Inspect)?,
        pass if PassInfo::named(pass).is_some() => {
            let (output, overwrite) = take_output(&mut table)?;
            let writing = take_writing(&mut table)?;
            StepKind::Convert { passes: vec![parse_pass(pass, table)?], output, overwrite, writing }
        }
        other => {
            let known = all_commands();
            let what = format!("there is no command {other:?}, only {}", known.join(", "));
            return Err(usage(
                what + &guess(other, known.iter().copied()),
                "give run one of these",
            ));
        }
    };
    Ok(Step { command, model, label, chosen: String::new(), kind, keys: StepKeys::default() })
}

/// All that a step can run.
fn all_commands() -> Vec<&'static str> {
    pass_names().chain([CONVERT, "observe", "eval", "verify", "inspect"]).collect()
}

/// The command of a step that runs several passes.
const CONVERT: &str = "convert";

fn pass_names() -> impl Iterator<Item = &'static str> + Clone {
    PASSES.iter().map(|info| info.name)
}

fn all_passes() -> String {
    pass_names().collect::<Vec<_>>().join(", ")
}

fn parse_pass(name: &str, table: toml::Table) -> Result<Box<dyn Pass>> {
    let Some(info) = PassInfo::named(name) else {
        let what = format!(
            "there is no pass {name:?}, only {}{}",
            all_passes(),
            guess(name, pass_names())
        );
        return Err(usage(what, "give run one of these"));
    };
    let pass = read(table, |table| info.options.from_table(table))?;
    // What can be known to be wrong now must not be found when the steps before have run for hours.
    pass.check_options().map_err(with_keys)?;
    Ok(pass)
}

/// `error` of options of the command line, as keys of a recipe.
fn with_keys(error: Error) -> Error {
    error.reworded(|text| as_keys(text, |key| !["help", "json"].contains(&key)))
}

/// `--max-kl` as `max-kl` in backticks, where it `is_key`.
fn as_keys(text: &str, is_key: impl Fn(&str) -> bool) -> String {
    let is_of_key = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let mut parts = text.split("--");
    let mut made = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let end = part.find(|c| !is_of_key(c)).unwrap_or(part.len());
        let (key, after) = part.split_at(end);
        // Another command's option stays one.
        let stays = key.is_empty() || !is_key(key) || made.ends_with("observe ");
        made += &if stays { format!("--{part}") } else { format!("`{key}`{after}") };
    }
    made
}

/// Keys of earlier versions that options still go by, and their names now.
const EARLIER_KEYS: [(&str, &str); 1] = [("no-control", "no-baseline")];

/// Refuses keys that aren't `known`.
fn check_keys(table: &toml::Table, known: &[String]) -> Result<()> {
    match table
        .keys()
        .find(|key| !known.contains(key) && EARLIER_KEYS.iter().all(|(was, _)| was != key))
    {
        Some(key) if of_program(key, "").is_some() => {
            let value = table[key].to_string();
            let what = format!("`{key}` is not a key of a step");
            Err(usage(what, of_program(key, &value).unwrap_or_default()))
        }
        Some(key) => {
            Err(of_serde(&format!("unknown field `{key}`, expected one of {}", known.join(", "))))
        }
        None => Ok(()),
    }
}

/// The passes of a step that runs several.
fn parse_passes(tables: Vec<toml::Table>) -> Result<Vec<Box<dyn Pass>>> {
    if tables.is_empty() {
        let what =
            "the key \"pass\" is missing: the passes that it runs, each a table [[step.pass]]";
        return Err(usage(what, "add a [[step.pass]] with run = \"PASS\" for each"));
    }
    let mut passes = Vec::new();
    for (index, table) in tables.into_iter().enumerate() {
        passes
            .push(parse_pass_of_step(table).map_err(|e| e.within(&format!("pass {}", index + 1)))?);
    }
    let borrowed: Vec<&dyn Pass> = passes.iter().map(Box::as_ref).collect();
    check_together(&borrowed)?;
    Ok(passes)
}

fn parse_pass_of_step(mut table: toml::Table) -> Result<Box<dyn Pass>> {
    let name: Option<String> = take(&mut table, "run")?;
    let remedy = || format!("add run = \"{}\" or another of {}", PASSES[0], all_passes());
    let name =
        name.ok_or_else(|| usage("the key \"run\" that names the pass is missing", remedy()))?;
    if PassInfo::named(&name).is_some() {
        check_keys(&table, &schema::keys_of_pass(&name))?;
    }
    parse_pass(&name, table)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

fn take<T: DeserializeOwned>(table: &mut toml::Table, key: &str) -> Result<Option<T>> {
    let value = table.remove(key);
    value
        .map(|v| v.try_into().map_err(|e: toml::de::Error| of_serde(e.message()).within(key)))
        .transpose()
}

/// What serde says, with words for Rust's types.
fn plain(message: &str) -> String {
    let words = [
        ("path string", "a path"),
        ("f64", "a number"),
        ("usize", "a whole number, 0 or more"),
        ("u64", "a whole number, 0 or more"),
        ("a sequence", "a list"),
    ];
    words.iter().fold(message.trim().replace('\n', " "), |text, (of_rust, words)| {
        text.replace(&format!("expected {of_rust}"), &format!("expected {words}"))
    })
}

/// What serde says, and what to do about it.
fn of_serde(message: &str) -> Error {
    let what = plain(message);
    // Errors of ours have a remedy, behind which toml says where.
    if let Some((what, remedy)) = what.split_once("remedy: ") {
        let (remedy, place) = remedy
            .split_once(" in `")
            .map_or((remedy, String::new()), |(r, p)| (r, format!(" in `{p}")));
        return usage(what.trim_end().to_owned() + &place, remedy);
    }
    let remedy = if what.starts_with("unknown field") {
        "correct the key or remove it; the keys of a step are the options of its command, which --help describes"
    } else if what.starts_with("missing field") {
        "add this key to the step, or to [defaults] of its command"
    } else if let Some((given, key)) = text_for_list(&what) {
        return usage(what.clone(), format!("write {key} = [{given}]"));
    } else if what.contains("%\", expected a number") {
        "write per cent as a share, such as 0.75 for 75 %"
    } else if what.starts_with("unknown variant") {
        "give one of these words"
    } else {
        "give a value of the kind that is expected; the command's --help describes it"
    };
    let guess = guess_key(&what);
    usage(what + &guess, remedy)
}

/// The text and the key of it, where `what` says that a text stands in the place of a list.
fn text_for_list(what: &str) -> Option<(&str, &str)> {
    let rest = what.strip_prefix("invalid type: string ")?;
    let (given, key) = rest.split_once(", expected a list in `")?;
    Some((given, key.strip_suffix('`')?))
}

/// Where a step's result goes, and whether it replaces an earlier one.
fn take_output(table: &mut toml::Table) -> Result<(PathBuf, bool)> {
    let output = take(table, "output")?.ok_or_else(|| missing("output", "\"PATH\""))?;
    Ok((output, take(table, "overwrite")?.unwrap_or(false)))
}

/// How a step's result is written.
fn take_writing(table: &mut toml::Table) -> Result<WritingOptions> {
    let mut given = toml::Table::new();
    for key in WRITING {
        given.extend(table.remove(key).map(|value| (key.to_owned(), value)));
    }
    let writing: WritingOptions = rest(given)?;
    writing.check().map_err(with_keys)?;
    Ok(writing)
}

/// The keys of [`WritingOptions`].
const WRITING: [&str; 2] = ["max-shard-size", "probe-tokens"];

fn rest<T: DeserializeOwned>(table: toml::Table) -> Result<T> {
    read(table, |table| toml::Value::Table(table).try_into())
}

/// What `parse` makes of `table`; its errors name the key.
fn read<T>(
    table: toml::Table,
    parse: impl Fn(toml::Table) -> Result<T, toml::de::Error>,
) -> Result<T> {
    let said = parse(table.clone()).map_err(|error| plain(&error.to_string()));
    said.map_err(|error| {
        // Where options are put together of groups, serde doesn't say whose value is wrong: it's
        // the key without which it isn't said.
        let is_subject = |key: &&String| {
            let mut others = table.clone();
            others.remove(*key);
            let other = parse(others).map_err(|other| plain(&other.to_string()));
            other.map_or_else(
                |other| other != error && !other.contains(&format!("`{key}`")),
                |_| true,
            )
        };
        match table.keys().find(is_subject) {
            Some(key)
                if ![format!("`{key}`"), format!("`{key}.")]
                    .iter()
                    .any(|named| error.contains(named)) =>
            {
                of_serde(&format!("{error} in `{key}`"))
            }
            _ => of_serde(&error),
        }
    })
}
