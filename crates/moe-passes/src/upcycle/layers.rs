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
        let bad = || {
            let what = format!("cannot understand --layers {text:?}");
            usage(&["--layers"], what, "give all, every:2 or a list such as 0,4-7")
        };
        let number = |text: &str| text.trim().parse::<usize>().map_err(|_| bad());
        let word = text.to_ascii_lowercase();
        if word == "all" {
            return Ok(Self::All);
        }
        if let Some(n) = word.strip_prefix("every:") {
            return number(n)?.checked_sub(1).map(|n| Self::Every(n + 1)).ok_or_else(bad);
        }
        let range = |part: &str| match part.split_once('-') {
            Some((start, end)) => Ok((number(start)?, number(end)?)),
            None => number(part).map(|n| (n, n)),
        };
        let ranges = text.split(',').map(range).collect::<Result<Vec<_>>>()?;
        if ranges.iter().any(|(start, end)| start > end) {
            Err(bad())
        } else {
            Ok(Self::List(ranges))
        }
    }
}

impl fmt::Display for LayerChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Every(n) => write!(f, "every:{n}"),
            Self::List(ranges) => {
                let range = |(start, end): &(usize, usize)| {
                    if start == end { start.to_string() } else { format!("{start}-{end}") }
                };
                f.write_str(&ranges.iter().map(range).collect::<Vec<_>>().join(","))
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
