//! Tokenizers that make more of a text than any text needs are refused when they are loaded.

use moe_checkpoint::{Error, Kind, Result};
use serde_json::Value;
use tokenizers::{NormalizedString, Normalizer, NormalizerWrapper, PostProcessor, Tokenizer};

/// The longest text that a normalizer may put in the place of another; those of models have a few
/// letters.
const MAX_REPLACEMENT_BYTES: usize = 4096;
/// Normalizers may make this many times as much of a text. Unicode's decompositions make 18
/// characters of one at most.
const MAX_GROWTH: usize = 64;
/// A template may add this many tokens to a text; those of models add two.
const MAX_SPECIAL_TOKENS: usize = 4096;

/// A text that has something for most normalizers: all of ASCII, words, spaces, and letters of
/// several scripts.
fn probe() -> String {
    (1..128u8).map(char::from).collect::<String>()
        + " Straße, ﷺ ﬁne e\u{301} 東京 привет  aaaa \n\n"
}

/// Refuses a tokenizer whose normalizers or template multiply a text.
///
/// # Errors
/// [`Kind::Unsupported`], saying which part it is.
pub(super) fn check(tokenizer: &Tokenizer) -> Result<()> {
    if let Some(normalizer) = tokenizer.get_normalizer() {
        let tree = serde_json::to_value(normalizer).unwrap_or_default();
        check_replacements(&tree)?;
        let text = probe();
        let limit = text.len() * MAX_GROWTH;
        run(normalizer, &mut NormalizedString::from(text), limit)?;
    }
    if let Some(processor) = tokenizer.get_post_processor() {
        let tree = serde_json::to_value(processor).unwrap_or_default();
        let added = processor.added_tokens(false);
        if added > MAX_SPECIAL_TOKENS {
            return Err(refused(format!("its post-processor adds {added} tokens to every text")));
        }
        if sequences(&tree) > 1 {
            return Err(refused("its post-processor repeats every text".into()));
        }
    }
    Ok(())
}

fn refused(what: String) -> Error {
    Error::new(Kind::Unsupported, format!("this tokenizer multiplies what it reads: {what}"))
        .remedy("download tokenizer.json again, or give token ids: JSONL lines with \"input_ids\"")
}

fn check_replacements(normalizer: &Value) -> Result<()> {
    for part in normalizer["normalizers"].as_array().into_iter().flatten() {
        check_replacements(part)?;
    }
    for key in ["content", "prepend"] {
        let bytes = normalizer[key].as_str().map_or(0, str::len);
        if bytes > MAX_REPLACEMENT_BYTES {
            return Err(refused(format!("its normalizer puts {bytes} bytes in one place")));
        }
    }
    Ok(())
}

/// Runs the parts of `normalizer` one by one, so that each begins with a text of bounded size.
fn run(normalizer: &NormalizerWrapper, text: &mut NormalizedString, limit: usize) -> Result<()> {
    if let NormalizerWrapper::Sequence(parts) = normalizer {
        return parts.as_ref().iter().try_for_each(|part| run(part, text, limit));
    }
    let before = text.get().len();
    normalizer.normalize(text).map_err(|e| refused("its normalizer fails".into()).source(e))?;
    if text.get().len() > limit {
        return Err(refused(format!(
            "its normalizer makes {} bytes of {before}",
            text.get().len()
        )));
    }
    Ok(())
}

/// How often a template for one text holds the text.
fn sequences(processor: &Value) -> usize {
    let parts =
        processor["processors"].as_array().into_iter().flatten().map(sequences).sum::<usize>();
    let single = processor["single"].as_array().into_iter().flatten();
    parts + single.filter(|piece| piece.get("Sequence").is_some()).count()
}
