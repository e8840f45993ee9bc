//! Finds where steps and their keys are in a recipe's text.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::spelling::possible_options;

/// The text of a recipe, with its parsed form.
pub(super) struct RecipeText<'t> {
    text: &'t str,
    root: Option<Spanned<DeTable<'t>>>,
}

impl<'t> RecipeText<'t> {
    pub fn new(text: &'t str) -> Self {
        Self { text, root: DeTable::parse(text).ok() }
    }

    /// The line of the step `place`, such as 2.1, or of its key that the message `what` quotes.
    pub fn line(&self, place: &str, what: &str) -> Option<usize> {
        let (table, span) = self.step(place, what)?;
        Some(
            quoted(table, what)
                .map_or_else(|| self.line_of(&span), |found| self.line_of(&found.span)),
        )
    }

    /// The key of the step `place` that the message `what` is about.
    pub fn key_of_step(&self, place: &str, what: &str) -> Option<Key> {
        self.key(self.step(place, what)?.0, what)
    }

    /// The key in the defaults of `command` that the message `what` is about.
    pub fn key_of_defaults(&self, command: &str, what: &str) -> Option<Key> {
        let DeValue::Table(defaults) = self.root.as_ref()?.get_ref().get("defaults")?.get_ref()
        else {
            return None;
        };
        let DeValue::Table(of_command) = defaults.get(command)?.get_ref() else { return None };
        self.key(of_command, what)
    }

    fn key(&self, table: &DeTable<'_>, what: &str) -> Option<Key> {
        quoted(table, what)
            .map(|found| Key { line: self.line_of(&found.span), mentioned: found.position })
    }

    fn line_of(&self, span: &Range<usize>) -> usize {
        1 + self.text.get(..span.start).unwrap_or(self.text).matches('\n').count()
    }

    /// The table of the step `place`, or of its pass that `what` is about, and its range in the
    /// text.
    fn step(&self, place: &str, what: &str) -> Option<(&DeTable<'t>, Range<usize>)> {
        let mut table = self.root.as_ref()?.get_ref();
        let mut span = 0..0;
        for number in place.split('.') {
            let DeValue::Array(steps) = table.get("step")?.get_ref() else { return None };
            let step = steps.get(number.parse::<usize>().ok()?.checked_sub(1)?)?;
            let DeValue::Table(inner) = step.get_ref() else { return None };
            (table, span) = (inner, step.span());
        }
        // A message begins with the number of the pass that it is about.
        let pass = what
            .strip_prefix("pass ")
            .and_then(|rest| rest.split(':').next()?.parse::<usize>().ok());
        if let (Some(number), Some(DeValue::Array(passes))) =
            (pass, table.get("pass").map(Spanned::get_ref))
        {
            let pass = passes.get(number.checked_sub(1)?)?;
            let DeValue::Table(inner) = pass.get_ref() else { return None };
            (table, span) = (inner, pass.span());
        }
        Some((table, span))
    }
}

/// A key that a message is about.
pub(super) struct Key {
    /// Its line in the recipe, from 1.
    pub line: usize,
    /// Byte position in the message where the key is mentioned: the first one mentioned is the
    /// subject.
    pub mentioned: usize,
}

struct Quoted {
    position: usize,
    span: Range<usize>,
}

/// The key of `table`, or of a table in it, that `what` is about. The message may have another name
/// of the key than the recipe.
fn quoted(table: &DeTable<'_>, what: &str) -> Option<Quoted> {
    // An error lists all known names: the first one that it quotes is its subject.
    let named = |key: &str| {
        let forms = [format!("`{key}`"), format!(".{key}`"), format!("{key:?}")];
        forms
            .iter()
            .find_map(|form| what.find(form))
            .or_else(|| what.starts_with(&format!("{key}:")).then_some(0))
    };
    let position =
        |key: &str| named(key).or_else(|| possible_options(key).find_map(|option| named(&option)));
    // A message about a key of an inner table names the table, too.
    let inner = table.iter().find_map(|(_, value)| match value.get_ref() {
        DeValue::Table(inner) => quoted(inner, what),
        _ => None,
    });
    let own = table.iter().filter_map(|(key, _)| Some((position(key.get_ref())?, key)));
    let own = own
        .min_by_key(|(position, _)| *position)
        .map(|(position, key)| Quoted { position, span: key.span() });
    inner.or(own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_and_keys_have_lines() {
        let text = "[vars]\nx = 1\n\n[[step]]\nrun = \"verify\"\n\n[[step]]\neach.a = [1]\n[[step.step]]\nrun = \"eval\"\ngates = { max-kl = 1 }\n";
        let source = RecipeText::new(text);
        assert_eq!(source.line("1", "the key \"model\" is missing"), Some(4));
        assert_eq!(source.line("2.1", "unknown field `run`"), Some(10));
        assert_eq!(source.line("2.1", "invalid type in `gates.max-kl`"), Some(11));
        assert_eq!(source.line("2", "each: nothing"), Some(8));
        let passes = "[[step]]\nrun = \"convert\"\n[[step.pass]]\nrun = \"prune\"\nkeep = 1\n[[step.pass]]\nrun = \"merge\"\nkeep = 2\n";
        let source_of_passes = RecipeText::new(passes);
        assert_eq!(source_of_passes.line("1", "pass 2: unknown field `keep`"), Some(8));
        assert_eq!(source_of_passes.line("1", "pass 2: there is no method"), Some(6));
        assert_eq!((source.line("3", ""), RecipeText::new("no = [").line("1", "")), (None, None));
    }
}
