//! Switches.

use serde::Deserialize;

/// Something that a family fixes, or that a config key of this name switches.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum Flag {
    /// It is the same in every model of the family.
    Fixed(bool),
    /// It is read from this config key.
    Key(String),
}

impl Default for Flag {
    fn default() -> Self {
        Flag::Fixed(false)
    }
}
