//! A checkpoint's tokenizer and chat template, loaded when first needed.

use std::path::Path;

use chrono::NaiveDateTime;
use moe_checkpoint::{CONFIG_FILE, Result, json};
use serde_json::Value;

use crate::chat::{ChatTemplate, Clock, Dates};
use crate::tokenizer::TextTokenizer;

/// A token and its place in the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PlacedToken {
    pub id: u32,
    pub start: usize,
    pub end: usize,
    /// Whether the tokenizer added it around the text.
    pub is_special: bool,
}

/// Tokenizes text and conversations.
pub(crate) struct Encoder<'a> {
    model_dir: &'a Path,
    vocab: usize,
    tokenizer: Option<TextTokenizer>,
    template: Option<ChatTemplate>,
    padding: Option<Padding>,
    /// The present, fixed for all documents, so that a run over midnight writes one date.
    now: NaiveDateTime,
    dates: Dates,
    /// The memory that the run may hold, in bytes; None without a limit.
    memory: Option<u64>,
}

impl<'a> Encoder<'a> {
    /// Creates the encoder for the checkpoint in `model_dir`, whose embedding has `vocab` rows.
    /// Templates write the present of `clock`.
    pub fn new(model_dir: &'a Path, vocab: usize, clock: Clock) -> Self {
        let (now, dates) = (clock.now(), Dates::new());
        Self {
            model_dir,
            vocab,
            tokenizer: None,
            template: None,
            padding: None,
            now,
            dates,
            memory: None,
        }
    }

    /// Limits the memory that the run may hold to `memory` bytes.
    pub fn within(self, memory: Option<u64>) -> Self {
        Self { memory, ..self }
    }

    fn tokenizer(&mut self) -> Result<&TextTokenizer> {
        if self.tokenizer.is_none() {
            self.tokenizer = Some(TextTokenizer::load(self.model_dir)?);
        }
        Ok(self.tokenizer.as_ref().expect("it was just loaded"))
    }

    /// Tokenizes `text`. With `special_tokens`, this includes those that the tokenizer adds around
    /// a text.
    ///
    /// # Errors
    /// Errors of the tokenizer, including one for a token that the model has no embedding for.
    pub fn encode(&mut self, text: &str, special_tokens: bool) -> Result<Vec<u32>> {
        let vocab = self.vocab;
        let tokenizer = self.tokenizer()?;
        let ids = tokenizer.encode(text, special_tokens)?;
        tokenizer.check(&ids, vocab)?;
        Ok(ids)
    }

    /// As [`Self::encode`], but returns the tokens with their places.
    pub(super) fn placed(&mut self, text: &str, special_tokens: bool) -> Result<Vec<PlacedToken>> {
        let vocab = self.vocab;
        let tokenizer = self.tokenizer()?;
        let encoding = tokenizer.places(text, special_tokens)?;
        tokenizer.check(encoding.get_ids(), vocab)?;
        let places = encoding
            .get_ids()
            .iter()
            .zip(encoding.get_offsets())
            .zip(encoding.get_special_tokens_mask());
        let placed = places.map(|((id, (start, end)), special)| PlacedToken {
            id: *id,
            start: *start,
            end: *end,
            is_special: *special != 0,
        });
        Ok(placed.collect())
    }

    /// Renders a conversation with the checkpoint's chat template, special tokens included.
    pub fn render(&mut self, messages: &Value, tools: Option<&Value>) -> Result<String> {
        if self.template.is_none() {
            let named = self.tokenizer()?.named().to_vec();
            self.template = Some(ChatTemplate::load(self.model_dir, named)?.within(self.memory));
        }
        let template = self.template.as_ref().expect("it was just loaded");
        let (text, dates) = template.render(messages, tools, self.now)?;
        self.dates.extend(dates);
        Ok(text)
    }

    /// Returns the dates that the template has written since the last call.
    pub fn take_dates(&mut self) -> Dates {
        std::mem::take(&mut self.dates)
    }

    /// Returns `ids` without padding at either end.
    pub fn unpadded(&mut self, ids: &[u32]) -> Result<Vec<u32>> {
        let padding = match self.padding {
            Some(padding) => padding,
            None => *self.padding.insert(Padding::read(self.model_dir)?),
        };
        Ok(padding.removed(ids))
    }
}

/// The padding token, if there is one, and whether it also has another meaning.
#[derive(Clone, Copy)]
struct Padding {
    id: Option<u32>,
    also_end: bool,
}

impl Padding {
    /// Reads the padding token from the config of the checkpoint in `dir`.
    fn read(dir: &Path) -> Result<Self> {
        let config = Value::from(json::read_python(&dir.join(CONFIG_FILE))?);
        let id = ids(&config, "pad_token_id").first().copied();
        let is_end =
            |id| ["eos_token_id", "bos_token_id"].iter().any(|key| ids(&config, key).contains(&id));
        Ok(Self { id, also_end: id.is_some_and(is_end) })
    }

    /// Returns `ids` without padding at either end. Of a padding token that has another meaning
    /// too, one is left.
    fn removed(self, ids: &[u32]) -> Vec<u32> {
        let Some(pad) = self.id else { return ids.to_vec() };
        let left = ids.iter().take_while(|id| **id == pad).count();
        let right = ids.iter().rev().take_while(|id| **id == pad).count();
        if left == ids.len() {
            return Vec::new();
        }
        let spared = usize::from(self.also_end);
        ids[left.saturating_sub(spared)..ids.len() - right.saturating_sub(spared)].to_vec()
    }
}

/// Returns the token ids under a key, which may have one, several or none.
fn ids(config: &Value, key: &str) -> Vec<u32> {
    match &config[key] {
        Value::Array(ids) => ids.iter().filter_map(id).collect(),
        value => id(value).into_iter().collect(),
    }
}

fn id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}

#[cfg(test)]
mod tests {
    use moe_checkpoint::Kind;

    use super::*;
    use crate::tokenizer::TOKENIZER_FILE;

    #[test]
    fn padding_is_dropped_at_both_ends() {
        let padding = |also_end| Padding { id: Some(0), also_end };
        assert_eq!(padding(false).removed(&[0, 0, 1, 0, 2, 0]), [1, 0, 2]);
        assert_eq!(padding(true).removed(&[0, 0, 1, 0, 2, 0]), [0, 1, 0, 2, 0]);
        assert_eq!(padding(true).removed(&[1, 2]), [1, 2]);
        assert_eq!(padding(true).removed(&[0, 0]), [0; 0]);
        assert_eq!(Padding { id: None, also_end: false }.removed(&[0, 1]), [0, 1]);
    }

    #[test]
    fn a_template_with_a_token_that_is_not_there_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let processor = serde_json::json!({
            "type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "</s>", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}], "special_tokens": {},
        });
        let tokenizer = serde_json::json!({
            "version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": null, "post_processor": processor,
            "decoder": null, "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"},
        });
        std::fs::write(dir.path().join(TOKENIZER_FILE), tokenizer.to_string()).unwrap();
        let error = Encoder::new(dir.path(), 1, Clock::default()).encode("a", true).unwrap_err();
        assert!(
            error.to_string().contains(TOKENIZER_FILE) && error.kind() == Kind::Malformed,
            "{error}"
        );
    }
}
