//! Files beside the weights that are whole, and say what transformers refuses.

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
/// Files that transformers goes on without where they aren't JSON.
const IGNORED: [&str; 2] = [generation::CONFIG, "chat_template.json"];

/// What is wrong with JSON behind a byte order mark.
pub(super) const MARKED: &str =
    "begins with a byte order mark, at which Python's JSON reader fails";

/// Files that loaders refuse, and why, a sentence each; what they refuse of a
/// generation_config.json, which passes can write without that, [`generation::refused_config`]
/// says.
pub(super) fn damaged(files: &SideFiles) -> Vec<(&str, String)> {
    let mut damaged = Vec::new();
    for file in files.carried.iter().filter(|file| !is_pointer(file)) {
        let Some((name, wants_object)) = READ.into_iter().find(|(name, _)| file.name == *name)
        else {
            continue;
        };
        match json::is_object(&file.path) {
            Err(error) if error.kind() == Kind::Malformed => {
                damaged.push((name, format!("{name} {}", why_malformed(file))));
                continue;
            }
            // That it can't be read is another matter.
            Err(_) => continue,
            Ok(is_object) if wants_object && !is_object => {
                damaged.push((name, format!("{name} doesn't hold an object")));
                continue;
            }
            Ok(_) => {}
        }
        if name == tokenizer::CONFIG {
            let said = json::read_python(&file.path).unwrap_or_default();
            let why = tokenizer::refused(&said, files).into_iter();
            damaged.extend(why.map(|why| (name, format!("{name} says {why}"))));
        }
    }
    damaged
}

/// Files that loaders go on without, since they aren't JSON, a sentence each.
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

/// What is wrong with `file`, which Python doesn't read as JSON, behind its name.
fn why_malformed(file: &SideFile) -> &'static str {
    if begins_with_mark(&file.path) { MARKED } else { "is not JSON" }
}
