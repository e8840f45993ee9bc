//! Names of schemes, and remedies for schemes that other tools have.

use std::ffi::OsStr;

use crate::usage::usage;
use clap::builder::{PossibleValue, StringValueParser, TypedValueParser};
use clap::{Arg, Command, ValueEnum};
use moe_model::Error;
use serde::{Deserialize, Serialize};

/// The number format that weights are quantized to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", try_from = "String")]
pub enum WeightScheme {
    /// 8-bit integers.
    W8a16,
    /// 4-bit integers.
    #[default]
    #[value(alias = "int4")]
    W4a16,
    /// 3-bit integers.
    W3a16,
    /// 2-bit integers.
    W2a16,
    /// 8-bit floats (e4m3) with a scale for each row. Engines round activations to float8 too.
    #[value(alias = "fp8-dynamic")]
    Fp8,
    /// 8-bit floats (e4m3) with a scale for each block of 128 × 128, as DeepSeek-V3 has them.
    Fp8Block,
}

/// Parses a [`WeightScheme`] of the command line.
#[derive(Clone)]
pub(super) struct SchemeParser;

impl TypedValueParser for SchemeParser {
    type Value = WeightScheme;

    fn parse_ref(
        &self,
        command: &Command,
        arg: Option<&Arg>,
        value: &OsStr,
    ) -> Result<WeightScheme, clap::Error> {
        let parser = StringValueParser::new().try_map(WeightScheme::try_from);
        parser.parse_ref(command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(
            WeightScheme::value_variants().iter().filter_map(ValueEnum::to_possible_value),
        ))
    }
}

impl TryFrom<String> for WeightScheme {
    type Error = Error;

    fn try_from(word: String) -> Result<Self, Error> {
        if let Some(remedy) = not_here(&word) {
            return Err(unknown(&word, remedy));
        }
        Self::from_str(&word, true)
            .map_err(|_| unknown(&word, format!("give one of {}", Self::names())))
    }
}

impl WeightScheme {
    /// The names of all schemes, for messages.
    fn names() -> String {
        let known = Self::value_variants().iter().filter_map(ValueEnum::to_possible_value);
        known.map(|value| value.get_name().to_owned()).collect::<Vec<_>>().join(", ")
    }
}

fn unknown(word: &str, remedy: String) -> Error {
    usage(&["--scheme"], format!("there is no scheme {word:?}"), remedy)
}

/// The remedy for a scheme with 8-bit integers for activations.
const W8A8: &str = "activations stay as they are here: fp8 is what engines run with 8-bit activations, w8a16 has 8-bit \
                    integers alone";

/// The remedy for a scheme of other tools that isn't supported here, such as w8a8.
fn not_here(word: &str) -> Option<String> {
    match word.to_ascii_lowercase().replace('_', "-").as_str() {
        "int8" => return Some(format!("it is w8a8 elsewhere: {W8A8}")),
        "w4a16-asym" => return Some("give w4a16 with --asymmetric".to_owned()),
        _ => (),
    }
    let (weights, activations) = word
        .to_ascii_lowercase()
        .strip_prefix('w')?
        .split_once('a')
        .map(|(w, a)| (w.parse::<u32>().ok(), a.parse::<u32>().ok()))?;
    let (weights, activations) = (weights?, activations?);
    match (weights, activations) {
        (2..=4 | 8, 16) => None,
        (8, 8) => Some(W8A8.to_owned()),
        (2..=4 | 8, _) => Some(format!("activations stay as they are here: give w{weights}a16")),
        (5 | 6, 16) => {
            Some(format!("give --target-bits {weights} --profile free, which has 5 and 6 bits"))
        }
        _ => Some("give w8a16, w4a16, w3a16 or w2a16; activations stay as they are".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemes_of_other_tools_have_a_remedy_that_keeps_what_was_asked_for() {
        for known in
            ["W8A16", "w4a16", "w3a16", "w2a16", "fp8", "fp8-block", "nonsense", "wa", "w4a"]
        {
            assert_eq!(not_here(known), None, "{known}");
        }
        for (word, remedy) in [
            ("w8a8", "fp8 is what"),
            ("W4A8", "give w4a16"),
            ("w6a16", "--target-bits 6"),
            ("w1a16", "give w8a16"),
            ("INT8", "fp8 is what"),
            ("W4A16_ASYM", "--asymmetric"),
        ] {
            let found = not_here(word).unwrap();
            assert!(found.contains(remedy), "{word}: {found}");
            let error = WeightScheme::try_from(word.to_owned()).unwrap_err().to_string();
            assert!(error.contains(remedy), "{error}");
        }
        assert_eq!(WeightScheme::try_from("fp8-block".to_owned()).unwrap(), WeightScheme::Fp8Block);
        assert_eq!(WeightScheme::try_from("W4A16".to_owned()).unwrap(), WeightScheme::W4a16);
        assert_eq!(WeightScheme::try_from("int4".to_owned()).unwrap(), WeightScheme::W4a16);
        let error = WeightScheme::try_from("q4_k_m".to_owned()).unwrap_err().to_string();
        assert!(error.contains("give one of w8a16, w4a16"), "{error}");
    }
}
