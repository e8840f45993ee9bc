//! Where steps and their keys stand in a recipe's text.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A recipe as it is written.
pub(super) struct Source<'t> {
    text: &'t str,
    root: Option<Spanned<DeTable<'t>>>,
}

impl<'t> Source<'t> {
    pub fn new(text: &'t str) -> Self {
        Self { text, root: DeTable::parse(text).ok() }
    }

    /// The line of the step that is called `place`, such as 2.1, or of that key of it which `what` quotes.
    pub fn line(&self, place: &str, what: &str) -> Option<usize> {
        let mut table = self.root.as_ref()?.get_ref();
        let mut span = 0..0;
        for number in place.split('.') {
            let DeValue::Array(steps) = table.get("step")?.get_ref() else { return None };
            let step = steps.get(number.parse::<usize>().ok()?.checked_sub(1)?)?;
            let DeValue::Table(inner) = step.get_ref() else { return None };
            (table, span) = (inner, step.span());
        }
        // The passes of a step are numbered, too.
        let pass = what.strip_prefix("pass ").and_then(|rest| rest.split(':').next()?.parse::<usize>().ok());
        if let (Some(number), Some(DeValue::Array(passes))) = (pass, table.get("pass").map(Spanned::get_ref)) {
            let pass = passes.get(number.checked_sub(1)?)?;
            let DeValue::Table(inner) = pass.get_ref() else { return None };
            (table, span) = (inner, pass.span());
        }
        let span = quoted(table, what).unwrap_or(span);
        Some(1 + self.text.get(..span.start)?.matches('\n').count())
    }
}

/// The key of `table`, or of a table in it, that `what` is about.
fn quoted(table: &DeTable<'_>, what: &str) -> Option<Range<usize>> {
    // An error lists the names that there are: the first one that it quotes is its subject.
    let position = |key: &str| {
        let forms = [format!("`{key}`"), format!(".{key}`"), format!("{key:?}")];
        forms.iter().find_map(|form| what.find(form)).or_else(|| what.starts_with(&format!("{key}:")).then_some(0))
    };
    // What is said of a table's key names the table, too.
    let inner = table.iter().find_map(|(_, value)| match value.get_ref() {
        DeValue::Table(inner) => quoted(inner, what),
        _ => None,
    });
    let own = table.iter().filter_map(|(key, _)| Some((position(key.get_ref())?, key)));
    inner.or_else(|| own.min_by_key(|(position, _)| *position).map(|(_, key)| key.span()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_and_keys_have_lines() {
        let text = "[vars]\nx = 1\n\n[[step]]\nrun = \"verify\"\n\n[[step]]\neach.a = [1]\n[[step.step]]\nrun = \"eval\"\ngates = { max-kl = 1 }\n";
        let source = Source::new(text);
        assert_eq!(source.line("1", "the key \"model\" is missing"), Some(4));
        assert_eq!(source.line("2.1", "unknown field `run`"), Some(10));
        assert_eq!(source.line("2.1", "invalid type in `gates.max-kl`"), Some(11));
        assert_eq!(source.line("2", "each: nothing"), Some(8));
        let passes = "[[step]]\nrun = \"convert\"\n[[step.pass]]\nrun = \"prune\"\nkeep = 1\n[[step.pass]]\nrun = \"merge\"\nkeep = 2\n";
        let source_of_passes = Source::new(passes);
        assert_eq!(source_of_passes.line("1", "pass 2: unknown field `keep`"), Some(8));
        assert_eq!(source_of_passes.line("1", "pass 2: there is no method"), Some(6));
        assert_eq!((source.line("3", ""), Source::new("no = [").line("1", "")), (None, None));
    }
}
