//! Tokenizes a long text in pieces, since a tokenizer needs about 150 times the memory of the text
//! that it is given at once.
//!
//! Each piece begins 4 KiB before the end of the piece before it. The shared part is tokenized
//! twice, and the tokens are joined in the middle of the longest run that is the same on both
//! sides. Tokenizers look at only a word or two of context, so nearly all of the shared part
//! agrees, and the tokens are those of the whole text. Without such a run (in a word of 4 KiB), the
//! text is cut in the middle of the shared part, and one or two tokens there may differ from those
//! of the whole text.

use std::ops::ControlFlow;

use moe_checkpoint::Result;

use super::encoder::{Encoder, PlacedToken};
use super::escaped::Passage;
use super::reader::TextReader;

/// Texts up to this size are tokenized in one go.
pub(super) const PIECE_BYTES: u64 = 64 << 10;
const OVERLAP_BYTES: usize = 4 << 10;
/// Minimum length of a run of equal tokens; shorter ones may be a coincidence.
const SHORTEST_RUN: usize = 4;

/// Receives tokens as they are made, and returns whether it wants more.
pub(super) type Take<'a> = &'a mut dyn FnMut(&[u32]) -> Result<ControlFlow<()>>;

/// A text that is given in parts of at most [`PIECE_BYTES`].
pub(super) trait Parts {
    /// Returns the next part; None at the end.
    fn next(&mut self) -> Result<Option<String>>;
}

/// A text that is held in memory.
pub(super) struct HeldText<'a>(pub &'a str);

impl Parts for HeldText<'_> {
    fn next(&mut self) -> Result<Option<String>> {
        let end = self.0.floor_char_boundary((PIECE_BYTES as usize).min(self.0.len()));
        let (part, rest) = self.0.split_at(end);
        self.0 = rest;
        Ok((!part.is_empty()).then(|| part.to_owned()))
    }
}

/// A text in a file.
pub(super) struct FileParts<'a, 'f> {
    pub reader: &'a mut TextReader<'f>,
    pub passage: Passage,
    /// The position where the next part begins.
    pub at: u64,
}

impl Parts for FileParts<'_, '_> {
    fn next(&mut self) -> Result<Option<String>> {
        if self.at >= self.passage.range.end {
            return Ok(None);
        }
        let (part, at) = self.passage.part(self.reader, self.at, PIECE_BYTES)?;
        self.at = at;
        Ok(Some(part))
    }
}

/// Tokenizes a text and passes its tokens to `take`. With `special_tokens`, they include those that
/// the tokenizer adds around a text.
pub(super) fn tokenize(
    encoder: &mut Encoder<'_>,
    parts: &mut dyn Parts,
    special_tokens: bool,
    take: Take<'_>,
) -> Result<ControlFlow<()>> {
    let text = parts.next()?.unwrap_or_default();
    let Some(mut part) = parts.next()? else {
        return take(&encoder.encode(&text, special_tokens)?);
    };
    let mut piece = Piece::first(encoder, text, special_tokens)?;
    loop {
        let following = parts.next()?;
        let settled = piece.follow(encoder, &part, following.is_none())?;
        if take(&settled)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
        match following {
            Some(following) => part = following,
            None => return take(&ids(&piece.tokens)),
        }
    }
}

/// A piece of a text, and its tokens that haven't been passed on yet.
struct Piece {
    text: String,
    tokens: Vec<PlacedToken>,
    special_tokens: bool,
}

impl Piece {
    fn first(encoder: &mut Encoder<'_>, text: String, special_tokens: bool) -> Result<Self> {
        let mut tokens = encoder.placed(&text, special_tokens)?;
        drop_special_end(&mut tokens);
        Ok(Self { text, tokens, special_tokens })
    }

    /// Moves on to the piece that adds `part` after the shared bytes. Returns the tokens before the
    /// seam.
    fn follow(&mut self, encoder: &mut Encoder<'_>, part: &str, is_last: bool) -> Result<Vec<u32>> {
        let shared = self.text.floor_char_boundary(self.text.len().saturating_sub(OVERLAP_BYTES));
        self.text.drain(..shared);
        self.text.push_str(part);
        let mut next = encoder.placed(&self.text, self.special_tokens)?;
        let special = next.iter().take_while(|token| token.is_special).count();
        next.drain(..special);
        if !is_last {
            drop_special_end(&mut next);
        }
        let (left, right) = seam(&self.tokens, &next, shared);
        let settled = ids(&self.tokens[..left]);
        next.drain(..right);
        self.tokens = next;
        Ok(settled)
    }
}

fn ids(tokens: &[PlacedToken]) -> Vec<u32> {
    tokens.iter().map(|token| token.id).collect()
}

pub(super) fn drop_special_end(tokens: &mut Vec<PlacedToken>) {
    while tokens.last().is_some_and(|token| token.is_special) {
        tokens.pop();
    }
}

/// Returns how many tokens of `left` to keep, and the index in `right` of the token that follows
/// them. The text of `right` begins `shared` bytes into that of `left`.
fn seam(left: &[PlacedToken], right: &[PlacedToken], shared: usize) -> (usize, usize) {
    let first = left.partition_point(|token| token.start < shared);
    let (mut i, mut j, mut run) = (first, 0, 0);
    let mut longest = (0, 0, 0);
    while i < left.len() && j < right.len() {
        let (a, b) = (left[i], right[j]);
        let (place, other) = ((a.start - shared, a.end - shared), (b.start, b.end));
        run = if place == other && a.id == b.id { run + 1 } else { 0 };
        i += usize::from(place <= other);
        j += usize::from(other <= place);
        if run > longest.0 {
            longest = (run, i, j);
        }
    }
    let (run, i, j) = longest;
    if run >= SHORTEST_RUN {
        return (i - run / 2, j - run / 2);
    }
    let end = left.last().map_or(shared, |token| token.end);
    let middle = shared + end.saturating_sub(shared) / 2;
    let cut = left.partition_point(|token| token.start < middle);
    let end = if cut == 0 { middle } else { left[cut - 1].end };
    (cut, right.partition_point(|token| token.start + shared < end))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::chat::Clock;
    use crate::tokenizer::TOKENIZER_FILE;

    fn golden(name: &str) -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../golden").join(name)
    }

    /// Returns 300 kB of text in four languages.
    fn long_text() -> String {
        let domains = ["english", "code", "spanish", "arithmetic"];
        let text: String = domains
            .iter()
            .flat_map(|name| {
                ["calibration", "heldout"].map(|part| format!("text/{name}.{part}.txt"))
            })
            .map(|name| std::fs::read_to_string(golden(&name)).unwrap())
            .collect();
        text + "日本語のテキスト。 🙂🙃 e\u{301}\u{301} <|endoftext|> " + "\n\n\n    \t x"
    }

    fn in_pieces(encoder: &mut Encoder<'_>, text: &str) -> Vec<u32> {
        let mut found = Vec::new();
        let mut take = |ids: &[u32]| {
            found.extend_from_slice(ids);
            Ok(ControlFlow::Continue(()))
        };
        assert!(tokenize(encoder, &mut HeldText(text), true, &mut take).unwrap().is_continue());
        found
    }

    /// Writes a tokenizer in the style of SentencePiece: no splitting into words, a mark before the
    /// text and for each space, BOS and EOS around it.
    fn without_words(dir: &std::path::Path) {
        let letters = "abcdefghijklmnopqrstuvwxyz▁,.:;";
        let mut vocab: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).into();
        vocab.extend(letters.chars().map(String::from));
        let mut merges = Vec::new();
        for pair in
            ["▁ t", "h e", "▁t he", "a n", "an d", "▁ and", "e r", "i n", "in g", "▁ ▁", "▁▁ ▁▁"]
        {
            merges.push(pair.to_owned());
            vocab.push(pair.replace(' ', ""));
        }
        let vocab: serde_json::Map<_, _> = vocab
            .into_iter()
            .enumerate()
            .map(|(id, token)| (token, serde_json::json!(id)))
            .collect();
        let special = |id: &str, n: u32| serde_json::json!({"id": id, "ids": [n], "tokens": [id]});
        let tokenizer = serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": [
                {"id": 1, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true},
                {"id": 2, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
            "pre_tokenizer": null, "decoder": null,
            "post_processor": {"type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                           {"SpecialToken": {"id": "</s>", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {"<s>": special("<s>", 1), "</s>": special("</s>", 2)}},
            "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                      "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": false, "vocab": vocab, "merges": merges},
        });
        std::fs::write(dir.join(TOKENIZER_FILE), tokenizer.to_string()).unwrap();
    }

    #[test]
    fn tokens_of_pieces_are_those_of_the_whole_text() {
        let text = long_text();
        let dir = tempfile::tempdir().unwrap();
        without_words(dir.path());
        for dir in [golden("models/moe"), dir.path().to_owned()] {
            let mut encoder = Encoder::new(&dir, 1 << 20, Clock::default());
            let whole = encoder.encode(&text, true).unwrap();
            assert!(text.len() > 3 * PIECE_BYTES as usize && whole.len() > 60_000);
            let pieces = in_pieces(&mut encoder, &text);
            let first = pieces.iter().zip(&whole).position(|(a, b)| a != b);
            assert_eq!(first, None, "{}", dir.display());
            assert_eq!(pieces.len(), whole.len());
            let short = &text[..1000];
            assert_eq!(in_pieces(&mut encoder, short), encoder.encode(short, true).unwrap());
        }
    }

    #[test]
    fn a_very_long_word_is_cut_without_losing_any_of_it() {
        let model = golden("models/moe");
        let mut encoder = Encoder::new(&model, 1 << 20, Clock::default());
        let text: String = (0..200_000u32)
            .map(|i| char::from(b'a' + (i.wrapping_mul(i) >> 3) as u8 % 26))
            .collect();
        let pieces = in_pieces(&mut encoder, &text);
        let tokenizer = tokenizers::Tokenizer::from_file(model.join(TOKENIZER_FILE)).unwrap();
        assert_eq!(tokenizer.decode(&pieces, true).unwrap(), text);
    }

    #[test]
    fn no_tokens_follow_when_there_are_enough() {
        let (model, text) = (golden("models/moe"), long_text().repeat(4));
        let mut parts = HeldText(&text);
        let mut take = |_: &[u32]| Ok(ControlFlow::Break(()));
        let done = tokenize(
            &mut Encoder::new(&model, 1 << 20, Clock::default()),
            &mut parts,
            true,
            &mut take,
        )
        .unwrap();
        assert!(done.is_break() && parts.0.len() > text.len() - 4 * PIECE_BYTES as usize);
    }
}
