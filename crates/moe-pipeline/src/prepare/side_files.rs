//! Which of the files beside a source's weights still apply to a result.

use std::collections::BTreeSet;
use std::path::Path;

use moe_checkpoint::{Checkpoint, SideFiles, json, read_text};
use moe_model::{AUTO_MAP_KEY, Family, is_of_model};
use serde_json::{Map, Value};

use crate::verify::{damaged, ignored, pointers};

/// Why code stays behind.
const OTHER_FAMILY: &str = "of the source's family";
/// No code of a model is longer.
const MAX_CODE_BYTES: u64 = 8 << 20;

/// What comes along to a result of `family`: all of it, unless the source is of another family. The code of the
/// source's model can't load such a result.
pub(super) fn of_result(checkpoint: &Checkpoint, family: &Family) -> SideFiles {
    let mut files = checkpoint.side_files().clone();
    if checkpoint.config().get("model_type").and_then(Value::as_str) == Some(&family.model_type) {
        return files;
    }
    let (of_model, mut of_others) = classes(checkpoint.config());
    // Tokenizers and all kinds of processors name their code in a file of their own.
    let of_top = files.carried.iter().filter(|file| file.name.ends_with(".json") && !file.name.contains('/'));
    for file in of_top.filter(|file| file.bytes <= json::MAX_JSON_BYTES) {
        if let Ok(config) = json::read_tree::<Map<String, Value>>(&file.path) {
            of_others.extend(classes(&config).1);
        }
    }
    let needed = with_imports(checkpoint.dir(), of_others);
    let code = with_imports(checkpoint.dir(), of_model);
    files.leave_out(OTHER_FAMILY, |name| {
        let named_so = (name.starts_with("modeling_") || name.starts_with("configuration_")) && name.ends_with(".py");
        !needed.contains(name) && (code.contains(name) || named_so || name == "params.json")
    });
    files
}

/// What the user is told of files that are damaged, or stay behind.
pub(super) fn warnings(files: &SideFiles) -> Vec<String> {
    let mut warnings = pointers(files);
    let left: Vec<&str> =
        files.left_out.iter().filter(|(_, why)| **why == OTHER_FAMILY).map(|(name, _)| name.as_str()).collect();
    if !left.is_empty() {
        warnings.push(format!(
            "code and configs of the source's family stay behind, since the result is of another: {}",
            left.join(", ")
        ));
    }
    let missed: Vec<String> =
        files.missed().filter(|(_, why)| *why != OTHER_FAMILY).map(|(name, why)| format!("{name} ({why})")).collect();
    if !missed.is_empty() {
        warnings.push(format!("these stay behind: {}", missed.join(", ")));
    }
    warnings.extend(damaged(files).into_iter().map(|(_, what)| format!("{what}: loaders refuse it")));
    warnings.extend(ignored(files));
    warnings
}

/// Files of code that `config` names: for the model, and for the rest.
fn classes(config: &Map<String, Value>) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut of_model, mut of_others) = (BTreeSet::new(), BTreeSet::new());
    for (class, named) in config.get(AUTO_MAP_KEY).and_then(Value::as_object).into_iter().flatten() {
        // A tokenizer has two: a slow and a fast one.
        let named = named.as_array().map_or(std::slice::from_ref(named), Vec::as_slice);
        let files = named.iter().filter_map(|class| {
            let (file, _) = class.as_str()?.rsplit_once('.')?;
            Some(format!("{}.py", file.replace('.', "/")))
        });
        if is_of_model(class) { of_model.extend(files) } else { of_others.extend(files) }
    }
    (of_model, of_others)
}

/// `files` of `dir` and what they import from beside themselves, as transformers follows it.
fn with_imports(dir: &Path, files: BTreeSet<String>) -> BTreeSet<String> {
    let mut all = files.clone();
    let mut left: Vec<String> = files.into_iter().collect();
    while let Some(file) = left.pop() {
        let Ok(text) = read_text(&dir.join(&file), MAX_CODE_BYTES) else { continue };
        let folder = file.rsplit_once('/').map_or(String::new(), |(folder, _)| format!("{folder}/"));
        for line in text.lines().map(str::trim_start) {
            let module = line.strip_prefix("from .").or_else(|| line.strip_prefix("import ."));
            let Some(module) = module.and_then(|rest| rest.split_whitespace().next()) else { continue };
            let import = format!("{folder}{}.py", module.replace('.', "/"));
            if !import.contains("//") && dir.join(&import).is_file() && all.insert(import.clone()) {
                left.push(import);
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imports_are_followed_and_a_tokenizers_code_is_no_models() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write(
            "modeling_x.py",
            "import torch\nfrom .kernels import fast\n  from .shared import norm\nfrom . import nothing\n",
        );
        write("kernels.py", "from .modeling_x import again\n");
        write("shared.py", "");
        let classes_of_x = serde_json::json!({
            "AutoConfig": "x--c.C", "AutoModelForCausalLM": "modeling_x.M", "AutoTokenizer": ["t.T", null],
        });
        let config = Map::from_iter([(AUTO_MAP_KEY.to_owned(), classes_of_x)]);
        let (of_model, of_others) = classes(&config);
        assert_eq!(of_others.into_iter().collect::<Vec<_>>(), ["t.py"]);
        let all: Vec<String> = with_imports(dir.path(), of_model).into_iter().collect();
        assert_eq!(all, ["kernels.py", "modeling_x.py", "shared.py", "x--c.py"]);
    }
}
