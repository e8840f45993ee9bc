//! Paths in published text, cut so that they don't name folders of the machine that they come from.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use serde_json::Value;

/// `path` relative to the working directory or, if it lies elsewhere, its last component.
pub(crate) fn portable(path: &Path) -> String {
    let below = std::env::current_dir()
        .ok()
        .and_then(|dir| path.strip_prefix(dir).ok().map(Path::to_owned));
    let name = path.file_name().filter(|_| path.is_absolute()).map(PathBuf::from);
    below.or(name).unwrap_or_else(|| path.to_owned()).to_string_lossy().into_owned()
}

/// A name for each of `paths`: its last component or, where two have the same, with as many of the
/// folders around it as tell them apart.
pub(crate) fn short_names<'p>(
    paths: impl IntoIterator<Item = &'p Path>,
) -> BTreeMap<&'p Path, String> {
    let paths: BTreeSet<&Path> = paths.into_iter().collect();
    paths.iter().map(|path| (*path, short_name(path, &paths))).collect()
}

fn short_name(path: &Path, all: &BTreeSet<&Path>) -> String {
    let parts: Vec<Component<'_>> =
        path.components().filter(|part| *part != Component::RootDir).collect();
    let ends =
        (1..=parts.len()).map(|count| parts[parts.len() - count..].iter().collect::<PathBuf>());
    let unique =
        ends.into_iter().find(|end| all.iter().filter(|other| other.ends_with(end)).count() == 1);
    unique.unwrap_or_else(|| path.to_owned()).to_string_lossy().into_owned()
}

/// `options` of a pass with every absolute path in them [`portable`], including those after a
/// label (`label=path`).
pub(crate) fn portable_options(options: &Value) -> Value {
    match options {
        Value::String(text) => {
            let (label, path) = match text.split_once('=') {
                Some((label, path)) if !label.contains('/') => (Some(label), path),
                _ => (None, text.as_str()),
            };
            if !Path::new(path).is_absolute() {
                return options.clone();
            }
            let path = portable(Path::new(path));
            Value::String(label.map_or_else(|| path.clone(), |label| format!("{label}={path}")))
        }
        Value::Array(values) => values.iter().map(portable_options).collect(),
        Value::Object(values) => values
            .iter()
            .map(|(key, value)| (key.clone(), portable_options(value)))
            .collect::<serde_json::Map<_, _>>()
            .into(),
        _ => options.clone(),
    }
}

/// `text` of a message with every absolute path in it [`portable`]: on a line `file:` the path
/// extends to the line's end; elsewhere, to where the sentence goes on.
pub(crate) fn portable_text(text: &str) -> String {
    let here = std::env::current_dir().map_or(String::new(), |dir| format!("{}/", dir.display()));
    text.split('\n').map(|line| portable_line(line, &here)).collect::<Vec<_>>().join("\n")
}

/// The text before the path in an error.
const FILE_LINE: &str = "  file:   ";

fn portable_line(line: &str, here: &str) -> String {
    match line.strip_prefix(FILE_LINE).filter(|path| Path::new(path).is_absolute()) {
        Some(path) => format!("{FILE_LINE}{}", portable(Path::new(path))),
        // Paths below the working directory may contain spaces.
        None if here.len() > 1 => portable_words(&line.replace(here, "")),
        None => portable_words(line),
    }
}

/// The words of `line`; paths among them are cut to their last component.
fn portable_words(line: &str) -> String {
    line.split_inclusive(ends_path).map(portable_word).collect()
}

fn portable_word(word: &str) -> String {
    let path = word.trim_end_matches(|c: char| ends_path(c) || c == ':' || c == '.');
    if path.starts_with('/') && path.contains(char::is_alphanumeric) {
        portable(Path::new(path)) + &word[path.len()..]
    } else {
        word.to_owned()
    }
}

/// Whether a path in a sentence ends before `c`.
fn ends_path(c: char) -> bool {
    c.is_whitespace() || "\"'`(),;=".contains(c)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn messages_do_not_name_folders_of_a_machine() {
        let here = std::env::current_dir().unwrap();
        for (said, shown) in [
            (
                "x\n  file:   /home/jane doe/m/model.safetensors\n  remedy: y",
                "x\n  file:   model.safetensors\n  remedy: y",
            ),
            (
                "/tmp/a is not /tmp/b/c: 1/2 of \"/home/jane/x.txt\", and (/home/jane/y).",
                "a is not c: 1/2 of \"x.txt\", and (y).",
            ),
            ("HERE/target/my m/x.txt is gone", "target/my m/x.txt is gone"),
            ("give --set out=/home/jane/out/", "give --set out=out"),
            ("a / b, //, /", "a / b, //, /"),
        ] {
            assert_eq!(portable_text(&said.replace("HERE", &here.to_string_lossy())), shown);
        }
    }

    #[test]
    fn files_are_named_with_only_the_folders_that_tell_them_apart() {
        let paths = [
            "/home/jane/plan.json",
            "/home/jane/a/b/t.txt",
            "/home/jane/c/b/t.txt",
            "t.txt",
            "x/u.txt",
        ];
        let names = short_names(paths.map(Path::new));
        let named = paths.map(|path| names[Path::new(path)].as_str());
        assert_eq!(named, ["plan.json", "a/b/t.txt", "c/b/t.txt", "t.txt", "u.txt"]);
    }

    #[test]
    fn options_do_not_name_folders_of_a_machine() {
        let here = std::env::current_dir().unwrap();
        let options = json!({
            "data": [{ "label": "a", "path": "/home/jane/thesis/a.txt" }, here.join("data/b.txt"), "c=/home/jane/c.txt@0.5"],
            "plan": "/home/jane/plan.json", "relative": "x/y.txt", "scheme": "w4a16", "number": 1, "none": null,
        });
        let shown = portable_options(&options);
        assert!(!shown.to_string().contains("jane"), "{shown}");
        assert_eq!(
            shown["data"],
            json!([{ "label": "a", "path": "a.txt" }, "data/b.txt", "c=c.txt@0.5"])
        );
        assert_eq!(shown["plan"], "plan.json");
        for key in ["relative", "scheme", "number", "none"] {
            assert_eq!(shown[key], options[key]);
        }
    }
}
