//! Which modules a scheme is for.

use regex::{Regex, RegexBuilder};

/// What patterns start with.
const PATTERN: &str = "re:";
/// A short pattern can ask for an automaton of any size; those of real configs take a few KiB.
const MAX_PATTERN_BYTES: usize = 256 << 10;

/// What compressed-tensors calls a target: a module, or a rule that finds some.
#[derive(Debug, Clone)]
pub enum Target {
    /// By its class, such as `Linear`.
    Class(String),
    /// By its name.
    Name(String),
    /// By a pattern at the start of its name (`re:` in the config), as Python's `re.match` takes
    /// it.
    Pattern(Regex),
}

impl Target {
    /// Understands `text`.
    ///
    /// # Errors
    /// For a pattern that this program can't follow.
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

    /// How a config says it.
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

    /// Whether it names the module `name` itself, not just its class.
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

/// `name` as a pattern that matches nothing else.
pub(super) fn escaped(name: &str) -> String {
    regex::escape(name)
}
