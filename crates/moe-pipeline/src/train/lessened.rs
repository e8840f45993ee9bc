//! Combinations of options that lower the memory of a training, for advice in errors.

use moe_forward::train::TrainedPart;
use moe_passes::Training;

use crate::needs::Share;

/// Advice never asks for batches or sequences that are shorter than this.
const MIN_TOKENS: usize = 64;
/// The way to train fewer parts.
const FEWER_PARTS: &str = "train fewer parts of the model (--train router takes least)";

/// The parts of a training that are at their minimum.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Lessened {
    /// Only routers are trained.
    pub parts: bool,
    pub batch: bool,
    pub length: bool,
    /// Held-out text is as short as is useful.
    pub held_out: bool,
}

impl Lessened {
    /// Returns the subsets of these parts to suggest: those of one option, and then those of
    /// several options, the fewest first.
    pub fn ways(self) -> Vec<Self> {
        let none = Self::default();
        let shorter = Self { batch: true, length: true, ..none };
        let text = Self { held_out: self.held_out, ..shorter };
        let mut ways = vec![
            Self { parts: true, ..none },
            Self { batch: true, ..none },
            Self { held_out: true, ..none },
            shorter,
            text,
            Self { parts: true, ..text },
        ];
        ways.retain(|way| (self.parts || !way.parts) && (self.held_out || !way.held_out));
        ways.dedup();
        ways
    }

    /// The number of options that lessen these parts.
    pub fn options(self) -> usize {
        usize::from(self.parts) + self.limits().len()
    }

    /// The options that limit the text.
    fn limits(self) -> Vec<&'static str> {
        let limits = [
            (self.batch, "--batch-tokens"),
            (self.length, "--sequence-length"),
            (self.held_out, "--held-out-tokens"),
        ];
        limits
            .into_iter()
            .filter_map(|(is_lessened, option)| is_lessened.then_some(option))
            .collect()
    }

    /// Formats the options that lessen these parts as a remedy.
    pub fn remedy(self) -> String {
        let limits = match self.limits().as_slice() {
            [] => return FEWER_PARTS.to_owned(),
            [only] => format!("lower {only}"),
            [first @ .., last] => format!("lower {} and {last}", first.join(", ")),
        };
        if self.parts { format!("{FEWER_PARTS} and {limits}") } else { limits }
    }

    /// `training` with these parts and batches at their minimum.
    pub fn training(self, training: &Training) -> Training {
        let mut training = training.clone();
        if self.parts {
            training.parts = vec![TrainedPart::Routers];
        }
        if self.batch {
            training.options.batch_tokens = training.options.batch_tokens.min(MIN_TOKENS);
        }
        training
    }

    /// The length of sequences that are `longest` tokens long at most.
    pub fn length_of(self, longest: usize) -> usize {
        if self.length { longest.min(MIN_TOKENS) } else { longest }
    }

    /// The share of the held-out text.
    pub fn share_of_held_out(self) -> Share {
        if self.held_out { Share::Minimum } else { Share::All }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_by_one_option_come_before_those_by_several() {
        let all = Lessened { parts: true, batch: true, length: true, held_out: true };
        let said = |of: Lessened| of.ways().into_iter().map(Lessened::remedy).collect::<Vec<_>>();
        assert_eq!(
            said(all),
            [
                "train fewer parts of the model (--train router takes least)",
                "lower --batch-tokens",
                "lower --held-out-tokens",
                "lower --batch-tokens and --sequence-length",
                "lower --batch-tokens, --sequence-length and --held-out-tokens",
                "train fewer parts of the model (--train router takes least) and \
                 lower --batch-tokens, --sequence-length and --held-out-tokens",
            ]
        );
        let text = Lessened { parts: false, held_out: false, ..all };
        assert_eq!(
            said(text),
            ["lower --batch-tokens", "lower --batch-tokens and --sequence-length"]
        );
        assert_eq!(text.ways().into_iter().map(Lessened::options).collect::<Vec<_>>(), [1, 2]);
    }
}
