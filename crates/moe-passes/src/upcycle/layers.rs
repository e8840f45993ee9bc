//! The choice of layers that get experts.

use std::fmt;
use std::str::FromStr;

use moe_model::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::usage::usage;

/// The layers that the option `--layers` chooses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum LayerChoice {
    /// All layers.
    #[default]
    All,
    /// Every n-th layer: layer i if (i + 1) is a multiple of n, as `decoder_sparse_step` counts.
    Every(usize),
    /// Layers in these ranges, ends included.
    List(Vec<(usize, usize)>),
}

impl LayerChoice {
    /// For each of `layers` layers, whether it is chosen.
    ///
    /// # Errors
    /// [`moe_model::Kind::Usage`] where no layer is chosen, or one beyond the last is.
    pub fn chosen(&self, layers: usize) -> Result<Vec<bool>> {
        let remedy = format!("layers are counted from 0 to {}", layers - 1);
        let chosen: Vec<bool> = match self {
            Self::All => vec![true; layers],
            Self::Every(n) => (1..=layers).map(|i| i.is_multiple_of(*n)).collect(),
            Self::List(ranges) => {
                if let Some((_, end)) = ranges.iter().find(|(_, end)| *end >= layers) {
                    let what = format!("--layers names layer {end}, but there are {layers}");
                    return Err(usage(&["--layers"], what, remedy));
                }
                (0..layers)
                    .map(|i| ranges.iter().any(|(start, end)| (start..=end).contains(&&i)))
                    .collect()
            }
        };
        if !chosen.contains(&true) {
            let what = format!("--layers {self} chooses none of the {layers} layers");
            return Err(usage(&["--layers"], what, remedy));
        }
        Ok(chosen)
    }
}

impl FromStr for LayerChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        parsed(text).ok_or_else(|| {
            let what = format!("cannot understand --layers {text:?}");
            usage(&["--layers"], what, "give all, every:2 or a list such as 0,4-7")
        })
    }
}

/// The layers that `text` chooses; None where it can't be understood.
fn parsed(text: &str) -> Option<LayerChoice> {
    let word = text.to_ascii_lowercase();
    if word == "all" {
        return Some(LayerChoice::All);
    }
    if let Some(n) = word.strip_prefix("every:") {
        return number(n).filter(|n| *n > 0).map(LayerChoice::Every);
    }
    text.split(',').map(range).collect::<Option<_>>().map(LayerChoice::List)
}

/// Reads `4-7`, or `4`, which is the range from 4 to 4.
fn range(text: &str) -> Option<(usize, usize)> {
    let (start, end) = text.split_once('-').unwrap_or((text, text));
    let (start, end) = (number(start)?, number(end)?);
    (start <= end).then_some((start, end))
}

fn number(text: &str) -> Option<usize> {
    text.trim().parse().ok()
}

impl fmt::Display for LayerChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Every(n) => write!(f, "every:{n}"),
            Self::List(ranges) => {
                let ranges = ranges.iter().map(|(start, end)| {
                    if start == end { start.to_string() } else { format!("{start}-{end}") }
                });
                f.write_str(&ranges.collect::<Vec<_>>().join(","))
            }
        }
    }
}

impl TryFrom<String> for LayerChoice {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<LayerChoice> for String {
    fn from(choice: LayerChoice) -> Self {
        choice.to_string()
    }
}

#[cfg(test)]
mod tests {
    use moe_model::Kind;

    use super::*;

    #[test]
    fn choices() {
        let chosen = |text: &str, layers| {
            let chosen = text.parse::<LayerChoice>().unwrap().chosen(layers).unwrap();
            chosen.iter().enumerate().filter(|(_, c)| **c).map(|(i, _)| i).collect::<Vec<_>>()
        };
        assert_eq!(chosen("all", 3), [0, 1, 2]);
        assert_eq!(chosen("every:2", 5), [1, 3]);
        assert_eq!((chosen("ALL", 2), chosen("EVERY:2", 5)), (vec![0, 1], vec![1, 3]));
        assert_eq!(chosen("every:1", 2), [0, 1]);
        assert_eq!(chosen("0, 2-3", 5), [0, 2, 3]);
        for bad in ["", "every:0", "every:", "3-1", "a", "-1", "1,,2"] {
            assert_eq!(bad.parse::<LayerChoice>().unwrap_err().kind(), Kind::Usage, "{bad:?}");
        }
        for (text, layers) in [("5", 5), ("every:9", 5), ("0-7", 4)] {
            assert_eq!(
                text.parse::<LayerChoice>().unwrap().chosen(layers).unwrap_err().kind(),
                Kind::Usage
            );
        }
        assert_eq!("0,4-7".parse::<LayerChoice>().unwrap().to_string(), "0,4-7");
    }
}
