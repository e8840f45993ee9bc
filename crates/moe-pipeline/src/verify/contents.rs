//! Checks that side files are undamaged and hold no values that transformers refuses.

use moe_checkpoint::{Kind, SideFile, SideFiles, begins_with_mark, json};

use super::pointer::is_pointer;
use super::{generation, tokenizer};

/// Files that loaders read as JSON, and whether they must hold an object.
const READ: [(&str, bool); 6] = [
    ("tokenizer.json", true),
    (tokenizer::CONFIG, true),
    ("special_tokens_map.json", true),
    ("added_tokens.json", true),
    ("vocab.json", true),
    ("tekken.json", false),
];
/// Files that transformers ignores if they aren't JSON.
const IGNORED: [&str; 2] = [generation::CONFIG, "chat_template.json"];

/// The problem with JSON after a byte order mark.
pub(super) const MARKED: &str =
    "begins with a byte order mark, at which Python's JSON reader fails";

/// Files that loaders refuse, each with a sentence on the reason. For the keys of a
/// generation_config.json, which passes can remove, see [`generation::refused_config`].
pub(super) fn damaged(files: &SideFiles) -> Vec<(&str, String)> {
    let mut damaged = Vec::new();
    for file in files.carried.iter().filter(|file| !is_pointer(file)) {
        let read = READ.into_iter().find(|(name, _)| file.name == *name);
        let Some((name, wants_object)) = read else { continue };
        let problems = problems(file, wants_object, files).into_iter();
        damaged.extend(problems.map(|problem| (name, format!("{name} {problem}"))));
    }
    damaged
}

/// The reasons for which loaders refuse `file`, each to follow its name; `files` are all side
/// files.
fn problems(file: &SideFile, wants_object: bool, files: &SideFiles) -> Vec<String> {
    match json::is_object(&file.path) {
        Err(error) if error.kind() == Kind::Malformed => vec![why_malformed(file).to_owned()],
        // A file that can't be read needn't be damaged.
        Err(_) => Vec::new(),
        Ok(is_object) if wants_object && !is_object => vec!["doesn't hold an object".to_owned()],
        Ok(_) if file.name == tokenizer::CONFIG => {
            let said = json::read_python(&file.path).unwrap_or_default();
            let refused = tokenizer::refused(&said, files).into_iter();
            refused.map(|why| format!("says {why}")).collect()
        }
        Ok(_) => Vec::new(),
    }
}

/// A sentence on each file that loaders ignore, since it isn't JSON.
pub(crate) fn ignored(files: &SideFiles) -> Vec<String> {
    let is_malformed = |file: &&SideFile| matches!(json::is_object(&file.path), Err(error) if error.kind() == Kind::Malformed);
    let named = files
        .carried
        .iter()
        .filter(|file| IGNORED.contains(&file.name.as_str()) && !is_pointer(file));
    let broken = named.filter(is_malformed);
    broken
        .map(|file| {
            format!(
                "{} {}: transformers loads the model without it",
                file.name,
                why_malformed(file)
            )
        })
        .collect()
}

/// The reason why Python doesn't read `file` as JSON, to follow its name.
fn why_malformed(file: &SideFile) -> &'static str {
    if begins_with_mark(&file.path) { MARKED } else { "is not JSON" }
}
