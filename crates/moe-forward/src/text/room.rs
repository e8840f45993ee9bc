//! How much text fits into a memory budget, next to the work that is done on it.

use moe_checkpoint::{Error, Kind, Result};

use super::windows::Windows;

/// Bytes that a token takes in windows of the usual length, including what windows leave unused.
pub const HELD_BYTES_A_TOKEN: u64 = 9;

/// The room for the text of all labels together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Number of tokens that fit, with the work on them.
    pub tokens: usize,
    /// Bytes that the tokens may take while they are read.
    pub bytes: u64,
    /// The option that limits the tokens of each label.
    pub option: &'static str,
}

/// The room that is left for a label.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LabelRoom {
    all: Room,
    /// Number of labels that share the room.
    labels: usize,
    /// Bytes left for windows.
    left: u64,
    /// Number of tokens wanted of each label; None for all.
    wanted: Option<usize>,
    /// Whether the wanted tokens are drawn at random: then windows can be drawn before they are
    /// held.
    draws: bool,
}

impl Room {
    /// Returns all of the room, for `labels` labels with `wanted` tokens each. `draws` is whether
    /// these are drawn at random; otherwise they are the first ones.
    pub(crate) fn shared(self, labels: usize, wanted: Option<usize>, draws: bool) -> LabelRoom {
        LabelRoom { all: self, labels: labels.max(1), left: self.bytes, wanted, draws }
    }
}

impl Room {
    /// Returns the advice to ask for fewer than the `wanted` tokens of each of `labels`, which
    /// don't fit; None if nothing fits.
    pub fn way(&self, labels: usize, wanted: Option<usize>) -> Option<String> {
        let each = round_down(self.tokens / labels.max(1));
        let instead = wanted.map_or(String::new(), |wanted| format!(" instead of {wanted}"));
        let of_label = if labels > 1 { " of each label" } else { "" };
        let fewer = wanted.is_none_or(|wanted| each < wanted);
        (each >= 2 && fewer).then(|| {
            format!("ask for {each} tokens{of_label} or fewer{instead} ({} {each})", self.option)
        })
    }
}

impl LabelRoom {
    /// Checks that there is room for the windows of a label. If some of them are to be drawn, they
    /// are dropped instead, and only counted from then on.
    ///
    /// # Errors
    /// [`Kind::Usage`], with how many tokens there is room for.
    pub fn check(&self, windows: &mut Windows) -> Result<()> {
        if windows.bytes <= self.left {
            return Ok(());
        }
        let draws_few = self.draws
            && self.wanted.is_some_and(|wanted| self.holds(wanted) && wanted < windows.tokens);
        if draws_few {
            windows.count_only();
            return Ok(());
        }
        Err(self.exceeded(Some(windows)))
    }

    /// Checks that there is room for the wanted sample.
    ///
    /// # Errors
    /// As for [`Self::check`].
    pub fn check_sample(&self) -> Result<()> {
        match self.wanted {
            Some(wanted) if !self.holds(wanted) => Err(self.exceeded(None)),
            _ => Ok(()),
        }
    }

    /// Returns the room with the requirement that all windows are held.
    pub fn firm(self) -> Self {
        Self { draws: false, ..self }
    }

    /// Returns the room that is left next to `sequences`.
    pub fn without(self, sequences: &[Vec<u32>]) -> Self {
        let tokens: usize = sequences.iter().map(Vec::len).sum();
        Self { left: self.left.saturating_sub(tokens as u64 * HELD_BYTES_A_TOKEN), ..self }
    }

    fn holds(&self, tokens: usize) -> bool {
        tokens as u64 * HELD_BYTES_A_TOKEN <= self.left
    }

    /// The error that there is no room for these windows or, if None, for the wanted number of
    /// tokens.
    fn exceeded(&self, windows: Option<&Windows>) -> Error {
        // Short windows take more bytes per token.
        let usual = HELD_BYTES_A_TOKEN as f64;
        let a_token = windows
            .map_or(usual, |windows| windows.bytes as f64 / windows.held.max(1) as f64)
            .max(usual);
        let tokens = (self.all.tokens as f64 * usual / a_token) as usize;
        let Some(way) = (Room { tokens, ..self.all }).way(self.labels, self.wanted) else {
            let what = "--memory-budget has no room for text in addition to the work on it";
            return Error::new(Kind::Usage, what)
                .options(&["--memory-budget"])
                .remedy("raise --memory-budget");
        };
        let what = format!(
            "this text has more than the {tokens} tokens that --memory-budget has room for"
        );
        Error::new(Kind::Usage, what)
            .options(&["--memory-budget", "--data-tokens"])
            .remedy(format!("{way}, or raise --memory-budget"))
    }
}

/// Rounds down to two significant digits, so that the number is the same in every run.
fn round_down(tokens: usize) -> usize {
    let unit = 10usize.pow(tokens.max(1).ilog10().saturating_sub(1));
    tokens / unit * unit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_suggested_number_of_tokens_fits() {
        assert_eq!([7, 43, 789, 123_456, 0].map(round_down), [7, 43, 780, 120_000, 0]);
        let room =
            Room { tokens: 1000, bytes: 9000, option: "--data-tokens" }.shared(2, Some(900), false);
        let error = room.without(&vec![vec![0; 10]; 20]).check_sample().unwrap_err().to_string();
        assert!(
            error.contains(
                "ask for 500 tokens of each label or fewer instead of 900 (--data-tokens 500)"
            ),
            "{error}"
        );
        assert!(
            Room { tokens: 3, bytes: 27, option: "" }
                .shared(2, None, false)
                .exceeded(None)
                .to_string()
                .contains("no room")
        );
    }

    #[test]
    fn windows_that_are_drawn_need_not_be_held() {
        let room = |draws| {
            Room { tokens: 100, bytes: 900, option: "--data-tokens" }.shared(1, Some(50), draws)
        };
        let filled = || {
            let mut windows = Windows::new(10, false);
            (0..11).for_each(|_| windows.push(&[1; 10]));
            windows
        };
        assert!(room(false).check(&mut filled()).is_err());
        let mut windows = filled();
        room(true).check(&mut windows).unwrap();
        windows.push(&[1; 10]);
        room(true).check(&mut windows).unwrap();
        assert_eq!(
            (windows.lengths().map(<[u32]>::len), windows.tokens, windows.done.len()),
            (Some(12), 120, 0)
        );
    }
}
