//! Translates messages of serde, TOML and command-line options to the words of a recipe.

use moe_checkpoint::Error;

use super::guess::guess_key;
use super::usage;

/// The error for a text that isn't TOML, or not the table of a recipe.
pub(super) fn in_toml(error: &toml::de::Error) -> Error {
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

/// `error` with options of the command line replaced by keys of a recipe.
pub(super) fn with_keys(error: Error) -> Error {
    error.reworded(|text| as_keys(text, |key| !["help", "json"].contains(&key)))
}

/// `text` with options such as `--max-kl` as `max-kl` in backticks, where `is_key` holds.
pub(super) fn as_keys(text: &str, is_key: impl Fn(&str) -> bool) -> String {
    let is_of_key = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let mut parts = text.split("--");
    let mut made = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let end = part.find(|c| !is_of_key(c)).unwrap_or(part.len());
        let (key, after) = part.split_at(end);
        // An option of another command stays an option.
        let stays = key.is_empty() || !is_key(key) || made.ends_with("observe ");
        made += &if stays { format!("--{part}") } else { format!("`{key}`{after}") };
    }
    made
}

/// A message of serde, with plain words for Rust's types.
pub(super) fn plain(message: &str) -> String {
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

/// The error for a message of serde, with a remedy.
pub(super) fn of_serde(message: &str) -> Error {
    let what = plain(message);
    // Our own errors have a remedy, and toml appends the place to it.
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

/// The text and its key, where `what` says that a text is in place of a list.
fn text_for_list(what: &str) -> Option<(&str, &str)> {
    let rest = what.strip_prefix("invalid type: string ")?;
    let (given, key) = rest.split_once(", expected a list in `")?;
    Some((given, key.strip_suffix('`')?))
}
