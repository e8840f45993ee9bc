//! Finds where steps and their keys are in a recipe's text.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::syntax::line_of;
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

    /// The line of the step `place`, such as 2.1, or of its pass number `pass`; 0 is the step.
    pub fn line_of_step(&self, place: &str, pass: usize) -> Option<usize> {
        let (_, span) = self.step(place, pass)?;
        Some(line_of(self.text, span.start))
    }

    /// The line of `key` in the step `place`, or in its pass number `pass`.
    pub fn line_of_key(&self, place: &str, pass: usize, key: &str) -> Option<usize> {
        let (table, _) = self.step(place, pass)?;
        Some(line_of(self.text, span_of(table, key)?.start))
    }

    /// The line of `key` in the defaults of `command`.
    pub fn line_of_default(&self, command: &str, key: &str) -> Option<usize> {
        let defaults = self.root.as_ref()?.get_ref().get("defaults")?.get_ref().as_table()?;
        let of_command = defaults.get(command)?.get_ref().as_table()?;
        Some(line_of(self.text, span_of(of_command, key)?.start))
    }

    /// The table of the step `place`, or of its pass number `pass`, and its range in the text.
    fn step(&self, place: &str, pass: usize) -> Option<(&DeTable<'t>, Range<usize>)> {
        let mut found = (self.root.as_ref()?.get_ref(), 0..0);
        for number in place.split('.') {
            found = numbered(found.0, "step", number.parse().ok()?)?;
        }
        // Where defaults have the passes, the step hasn't.
        let has_passes = pass > 0 && found.0.contains_key("pass");
        if has_passes { numbered(found.0, "pass", pass) } else { Some(found) }
    }
}

/// Table number `number` of the list under `key` of `table`, from 1, and its range in the text.
fn numbered<'s, 't>(
    table: &'s DeTable<'t>,
    key: &str,
    number: usize,
) -> Option<(&'s DeTable<'t>, Range<usize>)> {
    let inner = table.get(key)?.get_ref().as_array()?.get(number.checked_sub(1)?)?;
    Some((inner.get_ref().as_table()?, inner.span()))
}

/// The range of `key` of `table`, or of a table in it, in the text. The recipe may have it by
/// another name.
fn span_of(table: &DeTable<'_>, key: &str) -> Option<Range<usize>> {
    let of_inner = |(outer, inner)| span_of(table.get(outer)?.get_ref().as_table()?, inner);
    span_where(table, |own| own == key)
        .or_else(|| span_where(table, |own| possible_options(own).any(|option| option == key)))
        .or_else(|| key.split_once('.').and_then(of_inner))
        .or_else(|| inner_tables(table).find_map(|inner| span_of(inner, key)))
}

/// The range of the first key of `table` for which `is_it` holds.
fn span_where(table: &DeTable<'_>, is_it: impl Fn(&str) -> bool) -> Option<Range<usize>> {
    table.iter().find(|(own, _)| is_it(own.get_ref())).map(|(own, _)| own.span())
}

fn inner_tables<'s, 't>(table: &'s DeTable<'t>) -> impl Iterator<Item = &'s DeTable<'t>> {
    table.iter().filter_map(|(_, value)| match value.get_ref() {
        DeValue::Table(inner) => Some(inner),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_and_keys_have_lines() {
        let text = "[vars]\nx = 1\n\n[[step]]\nrun = \"verify\"\n\n[[step]]\neach.a = [1]\n[[step.step]]\nrun = \"eval\"\ngates = { max-kl = 1 }\n";
        let source = RecipeText::new(text);
        assert_eq!(source.line_of_step("1", 0), Some(4));
        assert_eq!(source.line_of_key("1", 0, "model"), None);
        assert_eq!(source.line_of_key("2.1", 0, "run"), Some(10));
        assert_eq!(source.line_of_key("2.1", 0, "gates.max-kl"), Some(11));
        assert_eq!(source.line_of_key("2.1", 0, "max-kl"), Some(11));
        assert_eq!(source.line_of_key("2", 0, "each"), Some(8));
        let passes = "[[step]]\nrun = \"convert\"\n[[step.pass]]\nrun = \"prune\"\nkeep = 1\n[[step.pass]]\nrun = \"merge\"\nnum_experts = 2\n";
        let of_passes = RecipeText::new(passes);
        assert_eq!(of_passes.line_of_key("1", 2, "experts"), Some(8));
        assert_eq!(of_passes.line_of_key("1", 2, "keep"), None);
        assert_eq!(of_passes.line_of_step("1", 2), Some(6));
        assert_eq!((source.line_of_step("3", 0), of_passes.line_of_step("1", 3)), (None, None));
        assert_eq!(RecipeText::new("no = [").line_of_step("1", 0), None);
    }
}
