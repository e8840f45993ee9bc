//! Checks on all JSON that the program writes, made in every test that runs it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;

use moe_passes::PassInfo;
use moe_pipeline::{RECEIPT_FILE, Receipt, receipt_schema};
use serde_json::Value;

use super::{BINARY, root};

/// Keys of objects whose keys are data: names of files, labels, indices of layers.
const BY_NAME: [&str; 7] =
    ["texts", "observed", "written", "sha256", "files", "left_out", "dtypes"];
/// Keys of objects that hold options, as recipes spell them.
const OPTIONS: [&str; 2] = ["options", "writing"];

/// Words that docs/json.md marks as code.
static DOCUMENTED: LazyLock<BTreeSet<String>> = LazyLock::new(|| {
    let page = fs::read_to_string(root().join("docs/json.md")).unwrap();
    page.split('`').skip(1).step_by(2).map(str::to_owned).collect()
});

static SCHEMA: LazyLock<jsonschema::Validator> =
    LazyLock::new(|| jsonschema::draft202012::new(&receipt_schema()).unwrap());

/// Problems of the JSON that `args` printed and wrote in `dir`, after they succeeded.
pub fn problems(args: &[&str], dir: &Path, stdout: &str) -> Vec<String> {
    let mut problems = Vec::new();
    if args.contains(&"--json") {
        let values = serde_json::Deserializer::from_str(stdout).into_iter::<Value>();
        values.flatten().for_each(|value| check_keys(&value, &mut problems));
    }
    let converts = args.first().is_some_and(|word| PassInfo::named(word).is_some());
    let output = args.iter().position(|arg| *arg == "-o").and_then(|at| args.get(at + 1));
    if let Some(output) = output.filter(|_| converts) {
        let output = dir.join(output);
        if output.join(RECEIPT_FILE).is_file() && !args.contains(&"--dry-run") {
            problems.extend(receipt_problems(&output));
            problems.extend(page_problem(&output, dir));
        }
    }
    problems
}

/// Problems of the receipt of the result in `dir`: it must be read back whole, follow the schema,
/// and have documented keys.
fn receipt_problems(dir: &Path) -> Vec<String> {
    let text = fs::read_to_string(dir.join(RECEIPT_FILE)).unwrap();
    let receipt = match Receipt::read(dir) {
        Ok(receipt) => receipt,
        Err(error) => return vec![format!("its receipt isn't read: {error}")],
    };
    let mut problems = Vec::new();
    if moe_checkpoint::json::to_pretty(&receipt) != text {
        problems.push("its receipt is another one when it was read".to_owned());
    }
    let value: Value = serde_json::from_str(&text).unwrap();
    let errors = SCHEMA.iter_errors(&value);
    problems.extend(errors.map(|error| format!("{}: {error}", error.instance_path())));
    check_keys(&value, &mut problems);
    problems
}

/// The problem of the page of the result in `output`, if any: `report` must render the same page in
/// `dir`, where the run was.
fn page_problem(output: &Path, dir: &Path) -> Option<String> {
    let page = fs::read(output.join("report.html")).ok()?;
    let mut report = Command::new(BINARY);
    let rendered = report.arg("report").arg(output).current_dir(dir).output().unwrap();
    (rendered.stdout != page).then(|| "its receipt gives another page".to_owned())
}

/// Keys must be documented, in snake_case.
fn check_keys(value: &Value, problems: &mut Vec<String>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| check_keys(item, problems)),
        Value::Object(object) => {
            for (key, value) in object {
                let is_snake = key.chars().all(|c| matches!(c, 'a'..='z' | '0'..='9' | '_'));
                if !is_snake || !DOCUMENTED.contains(key) {
                    problems.push(format!("docs/json.md doesn't know the key {key:?}"));
                }
                match value {
                    Value::Object(_) if OPTIONS.contains(&key.as_str()) => {}
                    Value::Object(by_name) if BY_NAME.contains(&key.as_str()) => {
                        by_name.values().for_each(|value| check_keys(value, problems));
                    }
                    value => check_keys(value, problems),
                }
            }
        }
        _ => {}
    }
}
