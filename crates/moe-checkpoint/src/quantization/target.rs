//! Selects the modules that a scheme applies to.

use regex::{Regex, RegexBuilder};

/// The prefix of patterns.
const PATTERN: &str = "re:";
/// Limit for compiled patterns, since a short pattern can need an automaton of any size. Those of
/// real configs take a few KiB.
const MAX_PATTERN_BYTES: usize = 256 << 10;

/// A target in compressed-tensors: a module, or a rule that selects modules.
#[derive(Debug, Clone)]
pub enum Target {
    /// Selects modules by class, such as `Linear`.
    Class(String),
    /// Selects a module by its name.
    Name(String),
    /// Selects modules by a pattern at the start of their names (`re:` in the config), like
    /// Python's `re.match`.
    Pattern(Regex),
}

impl Target {
    /// Parses `text` from a config.
    ///
    /// # Errors
    /// For a pattern that this program can't interpret.
    pub fn parse(text: &str) -> Result<Self, regex::Error> {
        match text.strip_prefix(PATTERN) {
            Some(pattern) => {
                let pattern = RegexBuilder::new(&format!("^(?:{pattern})"))
                    .size_limit(MAX_PATTERN_BYTES)
                    .build();
                pattern.map(Self::Pattern)
            }
            None if text.contains('.') || text == "lm_head" => Ok(Self::Name(text.to_owned())),
            None => Ok(Self::Class(text.to_owned())),
        }
    }

    /// Whether `text` is a pattern.
    pub(super) fn is_pattern(text: &str) -> bool {
        text.starts_with(PATTERN)
    }

    /// The target as text for a config.
    pub fn text(&self) -> String {
        match self {
            Self::Class(text) | Self::Name(text) => text.clone(),
            Self::Pattern(pattern) => {
                let inner =
                    pattern.as_str().strip_prefix("^(?:").and_then(|rest| rest.strip_suffix(')'));
                format!("re:{}", inner.unwrap_or(pattern.as_str()))
            }
        }
    }

    /// Whether it selects the module `name` by name, not just by class.
    pub(super) fn names(&self, name: &str) -> bool {
        match self {
            Self::Class(_) => false,
            Self::Name(wanted) => wanted == name,
            Self::Pattern(pattern) => pattern.is_match(name),
        }
    }
}

impl PartialEq for Target {
    fn eq(&self, other: &Self) -> bool {
        self.text() == other.text()
    }
}

impl Eq for Target {}

/// A pattern that matches only `name`.
pub(super) fn escaped(name: &str) -> String {
    regex::escape(name)
}
