//! Decides which of a source's side files still apply to a result.

use std::collections::BTreeSet;
use std::path::Path;

use moe_checkpoint::{Checkpoint, Result, SideFiles, json, read_text};
use moe_model::{AUTO_MAP_KEY, Family, is_of_model};
use serde_json::{Map, Value};

use crate::verify::{GENERATION_CONFIG, RefusedConfig, check_carried, ignored, refused_config};

/// The reason why code is left out.
const OTHER_FAMILY: &str = "of the source's family";
/// The reason for leaving out a file for which transformers refuses the whole model.
const REFUSED: &str = "not an object, which transformers refuses the model for";
/// The reason for leaving out a key of such a file.
const REFUSED_KEY: &str = "transformers refuses the model for this key";
/// Maximum size of a file of code, larger than any model's.
const MAX_CODE_BYTES: u64 = 8 << 20;

/// The side files for a result of `family`: all of them, except the code of the source's model if
/// the source is of another family, since it can't load such a result.
pub(super) fn of_result(checkpoint: &Checkpoint, family: &Family) -> SideFiles {
    let mut files = checkpoint.side_files().clone();
    if checkpoint.config().get("model_type").and_then(Value::as_str) == Some(&family.model_type) {
        return files;
    }
    let (of_model, mut of_others) = classes(checkpoint.config());
    // Tokenizers and all kinds of processors name their code in their own files.
    let of_top = files
        .carried
        .iter()
        .filter(|file| file.name.ends_with(".json") && !file.name.contains('/'));
    for file in of_top.filter(|file| file.bytes <= json::MAX_JSON_BYTES) {
        if let Ok(config) = json::read_python(&file.path) {
            of_others.extend(classes(&config).1);
        }
    }
    let needed = with_imports(checkpoint.dir(), of_others);
    let code = with_imports(checkpoint.dir(), of_model);
    files.leave_out(OTHER_FAMILY, |name| {
        let named_so = (name.starts_with("modeling_") || name.starts_with("configuration_"))
            && name.ends_with(".py");
        !needed.contains(name) && (code.contains(name) || named_so || name == "params.json")
    });
    files
}

/// A file of the source that is written without some of its keys.
pub(crate) struct Rewritten {
    pub name: &'static str,
    pub text: String,
    /// The removed keys with their values, and what loaders expect there.
    left_out: Vec<String>,
}

/// Refuses `files` of `checkpoint` for which loaders would refuse a result, before there is work to
/// lose. Faulty keys of generation_config.json are removed instead, since the weights don't depend
/// on them.
pub(super) fn loadable(
    files: &mut SideFiles,
    checkpoint: &Checkpoint,
    vocab: usize,
) -> Result<Option<Rewritten>> {
    files.check_readable()?;
    check_carried(files, checkpoint.dir(), vocab)?;
    let keys = match refused_config(files) {
        None => return Ok(None),
        Some(RefusedConfig::Whole) => {
            files.leave_out(REFUSED, |name| name == GENERATION_CONFIG);
            return Ok(None);
        }
        Some(RefusedConfig::Keys(keys)) => keys,
    };
    let named: Vec<&str> = keys.iter().map(|refused| refused.key).collect();
    let text = json::read_without(&checkpoint.dir().join(GENERATION_CONFIG), &named)?;
    for key in named {
        files.left_out.insert(format!("{GENERATION_CONFIG}: {key}"), REFUSED_KEY);
    }
    let left_out = keys.into_iter().map(|refused| refused.why).collect();
    Ok(Some(Rewritten { name: GENERATION_CONFIG, text, left_out }))
}

/// Warnings about files that are left out, wholly or in part.
pub(super) fn warnings(files: &SideFiles, rewritten: Option<&Rewritten>) -> Vec<String> {
    let mut warnings = Vec::new();
    if let Some(Rewritten { name, left_out, .. }) = rewritten {
        let what = left_out.join("; ");
        warnings.push(format!(
            "{name} is written without what transformers refuses the whole model for: {what}"
        ));
    }
    let others: Vec<&str> = files
        .left_out
        .iter()
        .filter(|(_, why)| **why == OTHER_FAMILY)
        .map(|(name, _)| name.as_str())
        .collect();
    if !others.is_empty() {
        let others = others.join(", ");
        warnings.push(format!(
            "code and configs of the source's family stay behind, since the result is of another: {others}"
        ));
    }
    warnings.extend(missed(files));
    warnings.extend(ignored(files));
    warnings
}

/// The warning about files that the result lacks for reasons of their own.
fn missed(files: &SideFiles) -> Option<String> {
    let missed: Vec<String> = files
        .missed()
        .filter(|(_, why)| ![OTHER_FAMILY, REFUSED_KEY].contains(why))
        .map(|(name, why)| format!("{name} ({why})"))
        .collect();
    (!missed.is_empty()).then(|| format!("these stay behind: {}", missed.join(", ")))
}

/// Files of code that `config` names: those of the model, and the others.
fn classes(config: &Map<String, Value>) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut of_model, mut of_others) = (BTreeSet::new(), BTreeSet::new());
    for (class, named) in config.get(AUTO_MAP_KEY).and_then(Value::as_object).into_iter().flatten()
    {
        // A tokenizer has two classes: a slow and a fast one.
        let named = named.as_array().map_or(std::slice::from_ref(named), Vec::as_slice);
        let files = named.iter().filter_map(|class| {
            let (file, _) = class.as_str()?.rsplit_once('.')?;
            Some(format!("{}.py", file.replace('.', "/")))
        });
        if is_of_model(class) { of_model.extend(files) } else { of_others.extend(files) }
    }
    (of_model, of_others)
}

/// Returns `files` of `dir` and the files next to them that they import, resolved as transformers
/// does.
fn with_imports(dir: &Path, files: BTreeSet<String>) -> BTreeSet<String> {
    let mut all = files.clone();
    let mut left: Vec<String> = files.into_iter().collect();
    while let Some(file) = left.pop() {
        let Ok(text) = read_text(&dir.join(&file), MAX_CODE_BYTES) else { continue };
        let folder =
            file.rsplit_once('/').map_or(String::new(), |(folder, _)| format!("{folder}/"));
        for line in text.lines().map(str::trim_start) {
            let module = line.strip_prefix("from .").or_else(|| line.strip_prefix("import ."));
            let Some(module) = module.and_then(|rest| rest.split_whitespace().next()) else {
                continue;
            };
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
    fn imports_are_followed_and_tokenizer_code_is_not_model_code() {
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
