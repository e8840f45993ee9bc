//! Live bytes that a stage of a run asks for at once, and options that lower them.

use std::path::Path;

use moe_checkpoint::Result;
use moe_math::Compute;
use moe_model::Model;

use crate::budget;
use crate::memory::{self, Text};
use crate::resources::{ByteSize, storage};

/// The device, memory budget and scratch directory that work is limited to.
pub(crate) struct WorkLimits<'a> {
    pub budget: Option<ByteSize>,
    pub compute: &'a Compute,
    /// The directory for hidden states that don't fit in memory.
    pub scratch: &'a Path,
}

/// Live bytes of a stage, and options that lower them.
#[derive(Debug, Clone, Default)]
pub(crate) struct StageMemory {
    pub live: u64,
    ways: Vec<Way>,
}

/// An option, or several, that lower the live bytes of a stage.
#[derive(Debug, Clone)]
struct Way {
    what: String,
    /// The minimum number of live bytes with it.
    live: u64,
    /// Whether it combines several options, to be named only where no single one is enough.
    several: bool,
}

/// The share of a text to use.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Share {
    All,
    /// The smallest share that still gives a useful result.
    Minimum,
}

/// Advice never asks for texts or sequences that are shorter than this.
const MIN_TOKENS: usize = 512;
const MIN_LENGTH: usize = 64;

impl Share {
    /// Returns the number of tokens in this share of `tokens` tokens.
    pub fn of(self, tokens: usize) -> usize {
        match self {
            Self::All => tokens,
            Self::Minimum => tokens.min(MIN_TOKENS),
        }
    }

    /// As [`Self::of`], but at least `min` tokens, below which the text would be refused.
    pub fn of_at_least(self, tokens: usize, min: usize) -> usize {
        match self {
            Self::All => tokens,
            Self::Minimum => tokens.min(MIN_TOKENS.max(min)),
        }
    }
}

impl StageMemory {
    /// Live bytes that no option lowers.
    pub fn fixed(live: u64) -> Self {
        Self { live, ways: Vec::new() }
    }

    /// Live bytes that the option `way` lowers to `lowered`.
    pub fn lowered(live: u64, way: impl Into<String>, lowered: u64) -> Self {
        Self { live, ways: vec![Way { what: way.into(), live: lowered, several: false }] }
    }

    /// Adds an option that lowers the live bytes to `live`.
    pub fn add(&mut self, what: impl Into<String>, live: u64) {
        self.ways.push(Way { what: what.into(), live, several: false });
    }

    /// Adds a combination of options, to be named only where no single one is enough.
    pub fn add_several(&mut self, what: impl Into<String>, live: u64) {
        self.ways.push(Way { what: what.into(), live, several: true });
    }

    /// Memory of work on text whose sequences have at most `longest` tokens; `option` limits the
    /// number of tokens. `live` gives the bytes for a share of the text and a length of sequences.
    ///
    /// # Errors
    /// Errors of `live`.
    pub fn of_text(
        option: &str,
        longest: usize,
        live: impl Fn(Share, usize) -> Result<u64>,
    ) -> Result<Self> {
        let short = longest.min(MIN_LENGTH);
        let mut needs = Self::fixed(live(Share::All, longest)?);
        needs.add(format!("lower {option}"), live(Share::Minimum, longest)?);
        needs.add("lower --sequence-length", live(Share::All, short)?);
        needs.add_several(
            format!("lower {option} and --sequence-length"),
            live(Share::Minimum, short)?,
        );
        Ok(needs)
    }

    /// Memory of two stages that hold it at the same time.
    pub fn combined_with(self, other: Self) -> Self {
        if other.live == 0 || self.live == 0 {
            return if self.live == 0 { other } else { self };
        }
        let lowest = |of: &Self| of.ways.last().map_or(of.live, |way| way.live);
        let mut needs = Self::fixed(self.live + other.live);
        for (of, rest) in [(&self, other.live), (&other, self.live)] {
            needs
                .ways
                .extend(of.ways.iter().map(|way| Way { live: way.live + rest, ..way.clone() }));
        }
        if let (Some(one), Some(other_way)) = (self.ways.first(), other.ways.first()) {
            needs.add_several(
                format!("{}, and {}", one.what, other_way.what),
                lowest(&self) + lowest(&other),
            );
        }
        needs
    }

    /// Names the options that bring the live bytes below `budget`; None where none do.
    fn way(&self, budget: ByteSize) -> Option<String> {
        let of = |several: bool| {
            let enough = self
                .ways
                .iter()
                .filter(|way| way.several == several && budget::fits(way.live, budget));
            enough.map(|way| way.what.as_str()).collect::<Vec<_>>()
        };
        let mut enough = of(false);
        if enough.is_empty() {
            // The first way changes the fewest options.
            enough = of(true);
            enough.truncate(1);
        }
        enough.dedup();
        (!enough.is_empty()).then(|| enough.join(", or "))
    }
}

/// Names the options that bring all of `stages` below `budget`; None where none do.
pub(crate) fn ways(stages: &[StageMemory], budget: ByteSize) -> Option<String> {
    let too_large = stages.iter().filter(|stage| !budget::fits(stage.live, budget));
    let ways: Option<Vec<String>> = too_large.map(|stage| stage.way(budget)).collect();
    let mut ways = ways?;
    ways.dedup();
    (!ways.is_empty()).then(|| ways.join("; and "))
}

/// Live bytes of measuring `model`, compared with `original` if there is one, on `tokens` tokens in
/// sequences of at most `length`.
///
/// # Errors
/// [`moe_checkpoint::Kind::Usage`] for a budget that no block of tokens fits in.
pub(crate) fn measuring_bytes(
    model: &Model,
    original: Option<&Model>,
    tokens: usize,
    length: usize,
    work: &WorkLimits<'_>,
) -> Result<u64> {
    let storage = storage(model, tokens, work.budget, work.compute, work.scratch)?;
    Ok(memory::evaluation(model, original, &Text::first(tokens, length, storage), work.compute))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1_000_000;

    #[test]
    fn only_options_that_are_enough_are_named() {
        // Resident memory exceeds live bytes by the program and an eighth.
        let text = |all: u64, few: u64, short: u64, both: u64| {
            StageMemory::of_text("--data-tokens", 512, |share, length| {
                Ok(MB
                    * match (share, length < 512) {
                        (Share::All, false) => all,
                        (Share::Minimum, false) => few,
                        (Share::All, true) => short,
                        (Share::Minimum, true) => both,
                    })
            })
            .unwrap()
        };
        let said = |stages: &[StageMemory]| ways(stages, ByteSize(1000 * MB)).unwrap_or_default();
        assert_eq!(said(&[text(2000, 100, 1900, 90)]), "lower --data-tokens");
        assert_eq!(
            said(&[text(2000, 100, 100, 90)]),
            "lower --data-tokens, or lower --sequence-length"
        );
        assert_eq!(
            said(&[text(2000, 1900, 1900, 90)]),
            "lower --data-tokens and --sequence-length"
        );
        assert_eq!(said(&[text(2000, 1900, 1900, 1800)]), "");
        let probe = || StageMemory::lowered(2000 * MB, "lower --probe-tokens", MB);
        assert_eq!(said(&[text(500, 100, 400, 90), probe()]), "lower --probe-tokens");
        assert_eq!(
            said(&[text(2000, 100, 1900, 90), probe()]),
            "lower --data-tokens; and lower --probe-tokens"
        );
        assert_eq!(said(&[StageMemory::fixed(2000 * MB), probe()]), "");
        assert_eq!(
            said(&[text(600, 100, 600, 90).combined_with(text(600, 100, 600, 90))]),
            "lower --data-tokens"
        );
    }
}
