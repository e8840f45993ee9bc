//! The JSON Schema of recipes, for editors. It is generated from the options of commands on the
//! command line.

use std::any::TypeId;
use std::collections::BTreeMap;
use std::sync::LazyLock;

use clap::builder::PossibleValue;
use clap::{Arg, ArgAction, Args, Command};
use moe_passes::{PASSES, PassInfo};
use serde_json::{Map, Value, json};

use super::expand::OF_STEPS;
use super::steps::CONVERT;
use crate::evaluation::EvalOptions;
use crate::gates::Gates;
use crate::observe::ObserveOptions;
use crate::writing::WritingOptions;

/// The schema (draft 2020-12).
///
/// It doesn't require any key of a command, since `[defaults]` may have it. Every value may be a
/// text with `${variables}` instead.
pub fn recipe_schema() -> Value {
    let commands = commands();
    let reference = |name: &str| json!({ "$ref": format!("#/$defs/{name}") });
    let as_in_steps = |(name, keys): &(&'static str, Map<String, Value>)| {
        let key = |key: &String| (key.clone(), reference(&format!("{name}/properties/{key}")));
        ((*name).to_owned(), closed(keys.keys().map(key).collect(), &[]))
    };
    let defaults: Map<String, Value> = commands.iter().map(as_in_steps).collect();
    let steps: Vec<Value> = std::iter::once("block")
        .chain(commands.iter().map(|(name, _)| *name))
        .map(reference)
        .collect();
    let mut definitions = Map::new();
    let of_variable = json!({ "type": "string", "pattern": r"\$\{", "description": "What a variable is put into." });
    definitions.insert("variable".to_owned(), of_variable);
    for (name, keys) in &commands {
        let mut keys = keys.clone();
        keys.insert("run".to_owned(), json!({ "const": name, "description": "The command." }));
        definitions.insert((*name).to_owned(), closed(keys, &["run"]));
    }
    let passes: Vec<Value> = commands
        .iter()
        .filter(|(name, _)| PassInfo::named(name).is_some())
        .map(|(name, keys)| {
            let keys = keys.keys().filter(|key| !OF_STEPS.contains(&key.as_str()));
            let key = |key: &String| (key.clone(), reference(&format!("{name}/properties/{key}")));
            let mut keys: Map<String, Value> = keys.map(key).collect();
            keys.insert("run".to_owned(), json!({ "const": name, "description": "The pass." }));
            closed(keys, &["run"])
        })
        .collect();
    definitions.insert("pass".to_owned(), json!({ "oneOf": passes }));
    let choices = json!({
        "type": "object",
        "description": "The steps run for every combination of these choices: lists of values, or of tables of variables.",
        "additionalProperties": { "anyOf": [{ "type": "array", "minItems": 1 }, variable()] },
    });
    let all = json!({ "type": "array", "minItems": 1, "items": { "oneOf": steps } });
    let block = json!({ "each": choices, "step": all });
    definitions.insert(
        "block".to_owned(),
        closed(block.as_object().cloned().unwrap_or_default(), &["step"]),
    );
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A recipe of moe-convert",
        "type": "object",
        "properties": {
            "name": { "type": "string", "description": "The recipe's name; the file's otherwise." },
            "vars": { "type": "object", "description": "Variables: ${name} stands for them, and --set replaces them." },
            "defaults": {
                "type": "object",
                "description": "By command, keys that its steps have unless they say otherwise.",
                "properties": defaults,
                "additionalProperties": false,
            },
            "step": all,
        },
        "required": ["step"],
        "additionalProperties": false,
        "$defs": definitions,
    })
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
        let with_run = |keys: Map<String, Value>| {
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

/// Every command with its keys.
fn commands() -> Vec<(&'static str, Map<String, Value>)> {
    fn writing(mut keys: Map<String, Value>, what: &str) -> Map<String, Value> {
        keys.insert("output".to_owned(), text(what));
        let overwrite = json!({ "type": "boolean", "description": "Replace an earlier result.", "default": false });
        keys.insert("overwrite".to_owned(), or_variable(overwrite));
        reading(keys)
    }
    fn reading(mut keys: Map<String, Value>) -> Map<String, Value> {
        keys.insert("model".to_owned(), text("The checkpoint that is read."));
        keys.insert(
            "label".to_owned(),
            text("What the row of this step in the summary is called."),
        );
        keys
    }
    fn converting(options: Map<String, Value>) -> Map<String, Value> {
        let mut keys = writing(options, "Where the result goes.");
        keys.extend(group::<WritingOptions>());
        keys
    }
    let convert = || {
        let mut keys = converting(Map::new());
        let passes = "The passes, each of which converts what the one before makes; no checkpoint is written between them.";
        let pass = json!({ "type": "array", "minItems": 1, "items": { "$ref": "#/$defs/pass" }, "description": passes });
        keys.insert("pass".to_owned(), pass);
        keys
    };
    let eval = || {
        // On the command line, gates are mixed with other options.
        let gates = group::<Gates>();
        let mut keys = group::<EvalOptions>();
        keys.retain(|key, _| !gates.contains_key(key));
        keys.insert("gates".to_owned(), closed(gates, &[]));
        keys.insert("original".to_owned(), text("The checkpoint to compare with."));
        reading(keys)
    };
    let passes = PASSES
        .into_iter()
        .map(|info| (info.name, converting(options(&info.options.add_to(Command::new(""))))));
    let others = [
        ("observe", writing(group::<ObserveOptions>(), "Where the statistics go.")),
        (CONVERT, convert()),
        ("eval", eval()),
        ("verify", reading(Map::new())),
        ("inspect", reading(Map::new())),
    ];
    passes.chain(others).collect()
}

/// An object with these keys and no others.
fn closed(keys: Map<String, Value>, required: &[&str]) -> Value {
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
    let described: Map<String, Value> = ["description", "default"]
        .into_iter()
        .filter_map(|key| Some((key.to_owned(), schema.as_object_mut()?.remove(key)?)))
        .collect();
    let mut either = json!({ "anyOf": [schema, variable()] });
    either.as_object_mut().into_iter().for_each(|either| either.extend(described.clone()));
    either
}

/// The options of `T` by their names.
fn group<T: Args>() -> Map<String, Value> {
    options(&T::augment_args(Command::new("")))
}

/// The options of `command` by their names.
fn options(command: &Command) -> Map<String, Value> {
    let named =
        command.get_arguments().filter_map(|arg| Some((arg.get_long()?.to_owned(), option(arg))));
    named.collect()
}

fn option(arg: &Arg) -> Value {
    let is = |of: TypeId| arg.get_value_parser().type_id() == of;
    let integers = [
        TypeId::of::<usize>(),
        TypeId::of::<u64>(),
        TypeId::of::<u32>(),
        TypeId::of::<u8>(),
        TypeId::of::<i64>(),
        TypeId::of::<i32>(),
    ];
    let values: Vec<String> = arg
        .get_possible_values()
        .iter()
        .filter(|v| !v.is_hide_set())
        .map(PossibleValue::get_name)
        .map(str::to_owned)
        .collect();
    let one = match arg.get_action() {
        ArgAction::SetTrue => json!({ "type": "boolean" }),
        _ if is(TypeId::of::<bool>()) => json!({ "type": "boolean" }),
        _ if !values.is_empty() => json!({ "enum": values }),
        _ if integers.into_iter().any(is) => json!({ "type": "integer" }),
        _ if is(TypeId::of::<f64>()) || is(TypeId::of::<f32>()) => json!({ "type": "number" }),
        _ => json!({ "type": "string" }),
    };
    let many = matches!(arg.get_action(), ArgAction::Append) || arg.get_value_delimiter().is_some();
    let mut schema =
        if many { json!({ "type": "array", "items": or_variable(one.clone()) }) } else { one };
    let defaults = arg.get_default_values();
    if let ([default], false) = (defaults, many) {
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
    fn what_is_no_recipe_is_refused() {
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
