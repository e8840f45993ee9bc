//! Calibration text as tokens, and which experts saw none of them.

use std::path::Path;

use moe_checkpoint::Result;
use moe_forward::{Calibration, Corpus, Room, TokenizeOptions, special_tokens};
use moe_math::load::Load;
use moe_passes::CalibrationOptions;

/// Tokens for a sweep over the checkpoint in `dir`, and the corpus that they come from, which must
/// fit in `room`.
///
/// # Errors
/// As for [`Corpus::load`]; [`moe_checkpoint::Kind::Usage`] where no token counts.
pub(crate) fn calibration(
    options: &CalibrationOptions,
    dir: &Path,
    vocab: usize,
    room: Option<Room>,
) -> Result<(Calibration, Corpus)> {
    let tokenize = TokenizeOptions {
        sequence_length: options.sequence_length,
        vocab,
        max_tokens: Some(options.data_tokens),
        pack: options.pack,
        sample: Some(options.seed),
        room,
        ..TokenizeOptions::default()
    };
    let corpus = Corpus::load(&options.data, dir, tokenize)?;
    let uncounted = if options.mask_special { special_tokens(dir)? } else { Default::default() };
    let calibration = Calibration::new(&corpus, &uncounted)?;
    // The tokens move to the calibration; the rest of the corpus records what was read.
    Ok((calibration, corpus))
}

/// Warns of experts that no token of the text chose, so that nothing is known of them, and names
/// what gives `more` text.
pub(crate) fn unchosen<'l>(loads: impl Iterator<Item = &'l Load>, more: &str) -> Option<String> {
    let (dead, all) =
        loads.fold((0, 0), |(dead, all), load| (dead + load.dead, all + load.counts.len()));
    (dead > 0).then(|| {
        format!("no token of the calibration text chose {dead} of {all} experts, of which nothing is known: {more}")
    })
}
