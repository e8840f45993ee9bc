//! Boolean properties of a family.

use serde::Deserialize;

/// A boolean property that a family fixes, or that a config key sets.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum Flag {
    /// Every model of the family has this value.
    Fixed(bool),
    /// The value is read from this config key.
    Key(String),
}

impl Default for Flag {
    fn default() -> Self {
        Flag::Fixed(false)
    }
}
