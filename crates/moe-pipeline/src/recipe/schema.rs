//! The JSON Schema of recipes, for editors. It is generated from the options of commands on the
//! command line.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use clap::{Arg, Args, Command};
use moe_passes::{PASSES, PassInfo};
use serde_json::{Map, Value, json};

use super::commands::{CONVERT, GATES, OF_STEPS};
use super::values::{ValueKind, takes_list, words};
use crate::evaluation::EvalOptions;
use crate::gates::Gates;
use crate::observe::ObserveOptions;
use crate::writing::WritingOptions;

/// Keys with the schemas of their values.
type Keys = Map<String, Value>;

/// The schema (draft 2020-12).
///
/// It doesn't require any key of a command, since `[defaults]` may have it. Every value may be a
/// text with `${variables}` instead.
pub fn recipe_schema() -> Value {
    let commands = commands();
    let all = steps(&commands);
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A recipe of moe-convert",
        "type": "object",
        "properties": {
            "name": { "type": "string", "description": "The recipe's name; the file's otherwise." },
            "vars": { "type": "object", "description": "Variables: ${name} stands for them, and --set replaces them." },
            "defaults": defaults(&commands),
            "step": all,
        },
        "required": ["step"],
        "additionalProperties": false,
        "$defs": definitions(&commands, &all),
    })
}

/// A list of steps: blocks, and commands.
fn steps(commands: &[(&'static str, Keys)]) -> Value {
    let names = commands.iter().map(|(name, _)| *name);
    let steps: Vec<Value> = std::iter::once("block").chain(names).map(reference).collect();
    json!({ "type": "array", "minItems": 1, "items": { "oneOf": steps } })
}

/// The tables of keys that steps have unless they say otherwise.
fn defaults(commands: &[(&'static str, Keys)]) -> Value {
    let by_command: Keys = commands
        .iter()
        .map(|(name, keys)| ((*name).to_owned(), closed(references(name, keys.keys()), &[])))
        .collect();
    json!({
        "type": "object",
        "description": "By command, keys that its steps have unless they say otherwise.",
        "properties": by_command,
        "additionalProperties": false,
    })
}

/// Definitions that other parts of the schema refer to. `all` is a list of steps.
fn definitions(commands: &[(&'static str, Keys)], all: &Value) -> Keys {
    let mut definitions = Map::new();
    let of_variable = json!({ "type": "string", "pattern": r"\$\{", "description": "What a variable is put into." });
    definitions.insert("variable".to_owned(), of_variable);
    for (name, keys) in commands {
        definitions.insert((*name).to_owned(), running(name, "The command.", keys.clone()));
    }
    definitions.insert("pass".to_owned(), pass(commands));
    definitions.insert("block".to_owned(), block(all));
    definitions
}

/// A pass of a step that runs several.
fn pass(commands: &[(&'static str, Keys)]) -> Value {
    let passes = commands.iter().filter(|(name, _)| PassInfo::named(name).is_some());
    let passes = passes.map(|(name, keys)| {
        let keys = keys.keys().filter(|key| !OF_STEPS.contains(&key.as_str()));
        running(name, "The pass.", references(name, keys))
    });
    json!({ "oneOf": passes.collect::<Vec<Value>>() })
}

/// Steps that run for every combination of choices.
fn block(steps: &Value) -> Value {
    let choices = json!({
        "type": "object",
        "description": "The steps run for every combination of these choices: lists of values, or of tables of variables.",
        "additionalProperties": { "anyOf": [{ "type": "array", "minItems": 1 }, variable()] },
    });
    let keys = [("each".to_owned(), choices), ("step".to_owned(), steps.clone())];
    closed(keys.into_iter().collect(), &["step"])
}

/// A table that runs `name` with these keys.
fn running(name: &str, what: &str, mut keys: Keys) -> Value {
    keys.insert("run".to_owned(), json!({ "const": name, "description": what }));
    closed(keys, &["run"])
}

/// A reference to the definition `name`.
fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/$defs/{name}") })
}

/// References to `keys` in the definition of `command`.
fn references<'k>(command: &str, keys: impl Iterator<Item = &'k String>) -> Keys {
    keys.map(|key| (key.clone(), reference(&format!("{command}/properties/{key}")))).collect()
}

/// The command line of `command`; None if a step can't run it.
pub(crate) fn command_of(command: &str) -> Option<&'static Command> {
    static COMMANDS: LazyLock<BTreeMap<&'static str, Command>> = LazyLock::new(|| {
        let eval = EvalOptions::augment_args(Command::new("eval"));
        let others = [
            WritingOptions::augment_args(Command::new(CONVERT)),
            ObserveOptions::augment_args(Command::new("observe")),
            eval.arg(Arg::new("original").long("original")),
        ];
        let passes = PASSES.into_iter().map(|info| (info.name, command_of_pass(info)));
        passes.chain([CONVERT, "observe", "eval"].into_iter().zip(others)).collect()
    });
    COMMANDS.get(command)
}

fn command_of_pass(info: &PassInfo) -> Command {
    WritingOptions::augment_args(info.options.add_to(Command::new(info.name)))
}

/// The keys of a step that runs `command`; None if a step can't run it.
pub(super) fn keys_of_step(command: &str) -> Option<&'static [String]> {
    // Cached, since thousands of steps ask.
    static KEYS: LazyLock<BTreeMap<&'static str, Vec<String>>> = LazyLock::new(|| {
        let with_run = |keys: Keys| {
            ["run".to_owned()].into_iter().chain(keys.into_iter().map(|(key, _)| key)).collect()
        };
        commands().into_iter().map(|(name, keys)| (name, with_run(keys))).collect()
    });
    KEYS.get(command).map(Vec::as_slice)
}

/// The keys of a pass `name` within a step.
pub(super) fn keys_of_pass(name: &str) -> Vec<String> {
    let keys = keys_of_step(name).unwrap_or_default().iter();
    keys.filter(|key| !OF_STEPS.contains(&key.as_str())).cloned().collect()
}

/// The keys of the table of gates.
pub(super) fn keys_of_gates() -> Vec<String> {
    group::<Gates>().into_iter().map(|(key, _)| key).collect()
}

/// Every command with its keys.
fn commands() -> Vec<(&'static str, Keys)> {
    let passes = PASSES
        .into_iter()
        .map(|info| (info.name, converting(options(&info.options.add_to(Command::new(""))))));
    let others = [
        ("observe", writing(group::<ObserveOptions>(), "Where the statistics go.")),
        (CONVERT, several_passes()),
        ("eval", evaluating()),
        ("verify", reading(Map::new())),
        ("inspect", reading(Map::new())),
    ];
    passes.chain(others).collect()
}

/// The keys of a command that reads a checkpoint, with `keys` of its own.
fn reading(mut keys: Keys) -> Keys {
    keys.insert("model".to_owned(), text("The checkpoint that is read."));
    keys.insert("label".to_owned(), text("What the row of this step in the summary is called."));
    keys
}

/// The keys of a command that also writes `what`.
fn writing(mut keys: Keys, what: &str) -> Keys {
    keys.insert("output".to_owned(), text(what));
    let overwrite =
        json!({ "type": "boolean", "description": "Replace an earlier result.", "default": false });
    keys.insert("overwrite".to_owned(), or_variable(overwrite));
    reading(keys)
}

/// The keys of a command that writes a checkpoint.
fn converting(options: Keys) -> Keys {
    let mut keys = writing(options, "Where the result goes.");
    keys.extend(group::<WritingOptions>());
    keys
}

/// The keys of a step that runs several passes.
fn several_passes() -> Keys {
    let mut keys = converting(Map::new());
    let passes = "The passes, each of which converts what the one before makes; no checkpoint is written between them.";
    let pass = json!({ "type": "array", "minItems": 1, "items": reference("pass"), "description": passes });
    keys.insert("pass".to_owned(), pass);
    keys
}

/// The keys of `eval`. On the command line, its gates are mixed with other options.
fn evaluating() -> Keys {
    let gates = group::<Gates>();
    let mut keys = group::<EvalOptions>();
    keys.retain(|key, _| !gates.contains_key(key));
    keys.insert(GATES.to_owned(), closed(gates, &[]));
    keys.insert("original".to_owned(), text("The checkpoint to compare with."));
    reading(keys)
}

/// An object with these keys and no others.
fn closed(keys: Keys, required: &[&str]) -> Value {
    json!({ "type": "object", "properties": keys, "required": required, "additionalProperties": false })
}

fn text(what: &str) -> Value {
    json!({ "type": "string", "description": what })
}

fn variable() -> Value {
    json!({ "$ref": "#/$defs/variable" })
}

/// `schema`, or a text with a variable in it.
fn or_variable(mut schema: Value) -> Value {
    if schema["type"] == "string" {
        return schema;
    }
    let described: Keys = ["description", "default"]
        .into_iter()
        .filter_map(|key| Some((key.to_owned(), schema.as_object_mut()?.remove(key)?)))
        .collect();
    let mut either = json!({ "anyOf": [schema, variable()] });
    either.as_object_mut().into_iter().for_each(|either| either.extend(described.clone()));
    either
}

/// The options of `T` by their names.
fn group<T: Args>() -> Keys {
    options(&T::augment_args(Command::new("")))
}

/// The options of `command` by their names.
fn options(command: &Command) -> Keys {
    let named =
        command.get_arguments().filter_map(|arg| Some((arg.get_long()?.to_owned(), option(arg))));
    named.collect()
}

fn option(arg: &Arg) -> Value {
    let one = match ValueKind::of(arg) {
        ValueKind::Switch => json!({ "type": "boolean" }),
        ValueKind::Word => json!({ "enum": words(arg) }),
        ValueKind::Whole => json!({ "type": "integer" }),
        ValueKind::Number => json!({ "type": "number" }),
        ValueKind::Size | ValueKind::Path | ValueKind::Text => json!({ "type": "string" }),
    };
    let many = takes_list(arg);
    let mut schema = if many { json!({ "type": "array", "items": or_variable(one) }) } else { one };
    if let ([default], false) = (arg.get_default_values(), many) {
        let default = default.to_string_lossy();
        schema["default"] = serde_json::from_str(&default).unwrap_or_else(|_| default.into());
    }
    if let Some(help) = arg.get_help() {
        schema["description"] = help.to_string().into();
    }
    or_variable(schema)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn root() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
    }

    fn refused(recipe: &str) -> Vec<String> {
        let recipe: Value = toml::from_str(recipe).unwrap();
        let validator = jsonschema::draft202012::new(&recipe_schema()).unwrap();
        validator
            .iter_errors(&recipe)
            .map(|error| format!("{}: {error}", error.instance_path()))
            .collect()
    }

    /// Editors accept what the program accepts.
    #[test]
    fn every_recipe_of_ours_is_one() {
        let mut count = 0;
        for folder in ["recipes", "recipes/full"] {
            for entry in std::fs::read_dir(root().join(folder)).unwrap() {
                let path = entry.unwrap().path();
                if path.extension().is_some_and(|extension| extension == "toml") {
                    let errors = refused(&std::fs::read_to_string(&path).unwrap());
                    assert!(errors.is_empty(), "{}: {errors:#?}", path.display());
                    count += 1;
                }
            }
        }
        assert!(count >= 12, "{count}");
    }

    #[test]
    fn invalid_recipes_are_refused() {
        let step = "[[step]]\nrun = \"prune\"\nmodel = \"a\"\noutput = \"b\"\n";
        assert!(
            refused(&format!("{step}keep = 0.5\ncriterion = \"reap\"\nexperts = \"${{n}}\""))
                .is_empty()
        );
        for wrong in [
            "keeep = 0.5",
            "keep = \"half\"",
            "criterion = \"best\"",
            "data = \"text\"",
            "overwrite = 1",
            "experts = 1.5",
        ] {
            assert!(!refused(&format!("{step}{wrong}")).is_empty(), "{wrong}");
        }
        let passes = "[[step]]\nrun = \"convert\"\nmodel = \"a\"\noutput = \"b\"\n[[step.pass]]\nrun = \"prune\"\nkeep = 0.5\n[[step.pass]]\nrun = \"quantize\"\n";
        assert!(refused(&format!("{passes}scheme = \"w4a16\"")).is_empty());
        assert!(!refused(&format!("{passes}keep = 0.5")).is_empty());
        assert!(!refused(&format!("{passes}output = \"c\"")).is_empty());
        assert!(!refused("name = \"nothing\"").is_empty());
        assert!(!refused(&step.replace("prune", "prunes")).is_empty());
        assert!(
            !refused(&format!(
                "{step}\n[[step]]\nrun = \"eval\"\nmodel = \"b\"\ngates = {{ max-kll = 1 }}"
            ))
            .is_empty()
        );
    }

    /// `BLESS=1` rewrites the file.
    #[test]
    fn the_file_for_editors_is_up_to_date() {
        let path = root().join("recipes/recipe.schema.json");
        let schema = moe_checkpoint::json::to_pretty(&recipe_schema());
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(&path, &schema).unwrap();
        }
        let same = std::fs::read_to_string(&path).is_ok_and(|text| text == schema);
        assert!(same, "{} is not what the options are now: renew it with BLESS=1", path.display());
    }
}
