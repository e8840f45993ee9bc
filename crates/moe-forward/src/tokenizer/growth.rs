//! Refuses tokenizers, when they are loaded, that make far more of a text than a real one does.

use moe_checkpoint::{Error, Kind, Result};
use serde_json::Value;
use tokenizers::{NormalizedString, Normalizer, NormalizerWrapper, PostProcessor, Tokenizer};

/// Maximum size of a normalizer's replacement, in bytes; those of real models have a few letters.
const MAX_REPLACEMENT_BYTES: usize = 4096;
/// Maximum growth of a text in normalizers. Unicode's decompositions make at most 18 characters of
/// one.
const MAX_GROWTH: usize = 64;
/// Maximum number of tokens that a template may add to a text; those of real models add two.
const MAX_SPECIAL_TOKENS: usize = 4096;

/// Returns a text that affects most normalizers: all of ASCII, words, spaces, and letters of
/// several scripts.
fn probe() -> String {
    (1..128u8).map(char::from).collect::<String>()
        + " Straße, ﷺ ﬁne e\u{301} 東京 привет  aaaa \n\n"
}

/// Checks that neither the normalizers nor the template of `tokenizer` multiply a text.
///
/// # Errors
/// [`Kind::Unsupported`], naming the part at fault.
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

/// Runs the parts of `normalizer` one by one, so that each starts from a text of bounded size.
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

/// Returns the number of times that a template for one text contains the text.
fn sequences(processor: &Value) -> usize {
    let parts =
        processor["processors"].as_array().into_iter().flatten().map(sequences).sum::<usize>();
    let single = processor["single"].as_array().into_iter().flatten();
    parts + single.filter(|piece| piece.get("Sequence").is_some()).count()
}
