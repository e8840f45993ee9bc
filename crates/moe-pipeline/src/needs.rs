//! What a stage of a run asks for at once, and which options make that less.

use std::path::Path;

use moe_checkpoint::Result;
use moe_math::Compute;

use crate::memory;
use crate::resources::ByteSize;

/// What bounds the work.
pub(crate) struct Work<'a> {
    pub budget: Option<ByteSize>,
    pub compute: &'a Compute,
    /// Where hidden states go that don't fit.
    pub scratch: &'a Path,
}

/// Live bytes of a stage.
#[derive(Debug, Clone, Default)]
pub(crate) struct Needs {
    pub live: u64,
    /// What can be done to lower them, and what they are then at the least; a later way is for where no earlier one is enough.
    ways: Vec<(String, u64)>,
}

/// How much of a text.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Share {
    All,
    /// As little as still says something.
    Least,
}

/// A text isn't asked to have fewer tokens, or shorter sequences.
const LEAST_TOKENS: usize = 512;
const LEAST_LENGTH: usize = 64;

impl Share {
    /// That of so many tokens.
    pub fn of(self, tokens: usize) -> usize {
        match self {
            Self::All => tokens,
            Self::Least => tokens.min(LEAST_TOKENS),
        }
    }
}

impl Needs {
    /// Of what can't be made less.
    pub fn fixed(live: u64) -> Self {
        Self { live, ways: Vec::new() }
    }

    /// Of what a `way` makes `least`.
    pub fn lowered(live: u64, way: impl Into<String>, least: u64) -> Self {
        Self { live, ways: vec![(way.into(), least)] }
    }

    /// Of work on text in sequences of `longest`, of which `option` limits the tokens; `live` says what a share of it takes in sequences
    /// of a length.
    ///
    /// # Errors
    /// What `live` returns.
    pub fn of_text(option: &str, longest: usize, live: impl Fn(Share, usize) -> Result<u64>) -> Result<Self> {
        let short = longest.min(LEAST_LENGTH);
        Ok(Self {
            live: live(Share::All, longest)?,
            ways: vec![
                (format!("lower {option}"), live(Share::Least, longest)?),
                ("lower --sequence-length".to_owned(), live(Share::All, short)?),
                (format!("lower {option} and --sequence-length"), live(Share::Least, short)?),
            ],
        })
    }

    /// Of two that are held at once.
    pub fn beside(self, other: Self) -> Self {
        if other.live == 0 || self.live == 0 {
            return if self.live == 0 { other } else { self };
        }
        let (all, least) = (self.live + other.live, |of: &Self| of.ways.last().map_or(of.live, |(_, least)| *least));
        let ways = [(&self, other.live), (&other, self.live)];
        let alone =
            ways.into_iter().flat_map(|(of, rest)| of.ways.iter().map(move |(way, live)| (way.clone(), live + rest)));
        let mut ways: Vec<(String, u64)> = alone.collect();
        if let (Some((one, _)), Some((other_way, _))) = (self.ways.first(), other.ways.first()) {
            ways.push((format!("{one}, and {other_way}"), least(&self) + least(&other)));
        }
        Self { live: all, ways }
    }

    /// What brings it below `budget`; none where nothing does.
    fn way(&self, budget: ByteSize) -> Option<String> {
        let enough: Vec<&str> =
            self.ways.iter().filter(|(_, live)| memory::fits(*live, budget)).map(|(way, _)| way.as_str()).collect();
        // One that does more than an earlier one says the same again.
        let plain = enough.iter().filter(|way| !enough.iter().any(|other| other != *way && way.starts_with(other)));
        let mut plain: Vec<&str> = plain.copied().collect();
        plain.dedup();
        (!plain.is_empty()).then(|| plain.join(", or "))
    }
}

/// What brings all of `stages` below `budget`; none where nothing does.
pub(crate) fn ways(stages: &[Needs], budget: ByteSize) -> Option<String> {
    let too_large = stages.iter().filter(|stage| !memory::fits(stage.live, budget));
    let ways: Option<Vec<String>> = too_large.map(|stage| stage.way(budget)).collect();
    let mut ways = ways?;
    ways.dedup();
    (!ways.is_empty()).then(|| ways.join("; and "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1_000_000;

    #[test]
    fn only_what_is_enough_is_named() {
        // Resident memory is more than what is asked for by the program and an eighth.
        let text = |all: u64, few: u64, short: u64, both: u64| {
            Needs::of_text("--data-tokens", 512, |share, length| {
                Ok(MB
                    * match (share, length < 512) {
                        (Share::All, false) => all,
                        (Share::Least, false) => few,
                        (Share::All, true) => short,
                        (Share::Least, true) => both,
                    })
            })
            .unwrap()
        };
        let said = |stages: &[Needs]| ways(stages, ByteSize(1000 * MB)).unwrap_or_default();
        assert_eq!(said(&[text(2000, 100, 1900, 90)]), "lower --data-tokens");
        assert_eq!(said(&[text(2000, 100, 100, 90)]), "lower --data-tokens, or lower --sequence-length");
        assert_eq!(said(&[text(2000, 1900, 1900, 90)]), "lower --data-tokens and --sequence-length");
        assert_eq!(said(&[text(2000, 1900, 1900, 1800)]), "");
        let probe = || Needs::lowered(2000 * MB, "lower --probe-tokens", MB);
        assert_eq!(said(&[text(500, 100, 400, 90), probe()]), "lower --probe-tokens");
        assert_eq!(said(&[text(2000, 100, 1900, 90), probe()]), "lower --data-tokens; and lower --probe-tokens");
        assert_eq!(said(&[Needs::fixed(2000 * MB), probe()]), "");
        assert_eq!(said(&[text(600, 100, 600, 90).beside(text(600, 100, 600, 90))]), "lower --data-tokens");
    }
}
