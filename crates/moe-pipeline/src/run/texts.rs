//! Text of surveys, and checks of other models' tokenizers.

use std::path::{Path, PathBuf};

use moe_checkpoint::{Error, Kind, Result, file_exists, json};
use moe_forward::{Corpus, Storage, TOKENIZER_FILE, TextRead, TokenizeOptions, load_prompts};
use moe_model::Model;
use moe_passes::{Survey, SurveyText, TextSource};

use crate::budget;
use crate::memory::Text;
use crate::needs::Work;

/// Live bytes of a survey of `source` on `tokens` tokens, in sequences of at most `length`.
pub(super) fn surveyed(
    survey: &Survey,
    source: &Model,
    tokens: usize,
    length: usize,
    work: &Work<'_>,
) -> u64 {
    // A surveyor sees all tokens of a layer at once, so no budget can split them into blocks.
    let text = Text::first(tokens, length, Storage::default());
    text.surveyed(source, survey.surveyor.working_bytes(source, tokens), work.compute)
}

/// Reads the text of a survey of `source`, and adds records of it to `reads`.
pub(super) fn load(
    survey: &Survey,
    model_dir: &Path,
    source: &Model,
    work: &Work<'_>,
    reads: &mut Vec<TextRead>,
) -> Result<SurveyText> {
    match &survey.text {
        TextSource::Data { specs, sequence_length, max_tokens } => {
            let live = |tokens| Ok(surveyed(survey, source, tokens, *sequence_length, work));
            let options = TokenizeOptions {
                sequence_length: *sequence_length,
                vocab: source.vocab,
                max_tokens: Some(*max_tokens),
                room: budget::room(work.budget, "--data-tokens", live),
                ..TokenizeOptions::default()
            };
            let corpus = Corpus::load(specs, model_dir, options)?;
            let batch = corpus.batch();
            reads.extend(corpus.texts);
            Ok(SurveyText::Data(batch))
        }
        TextSource::Prompts { path, sets } => {
            let prompts = load_prompts(path, model_dir, *sets)?;
            prompts.batch.check_vocabulary(source.vocab, path)?;
            Ok(SurveyText::Prompts(prompts))
        }
    }
}

/// Refuses models whose tokenizers give the same ids another meaning.
pub(super) fn check_tokenizers(base: &Path, others: &[PathBuf]) -> Result<()> {
    let read = |dir: &Path| -> Result<Option<serde_json::Value>> {
        let path = dir.join(TOKENIZER_FILE);
        if file_exists(&path)? { json::read(&path).map(Some) } else { Ok(None) }
    };
    let Some(wanted) = (if others.is_empty() { None } else { read(base)? }) else { return Ok(()) };
    for other in others.iter().filter(|other| *other != base) {
        let Some(found) = read(other)? else { continue };
        if let Some(part) =
            ["model", "added_tokens"].into_iter().find(|part| wanted[*part] != found[*part])
        {
            return Err(Error::new(
                Kind::Usage,
                format!("this tokenizer has another {part:?} than the base's"),
            )
            .file(other.join(TOKENIZER_FILE))
            .remedy("give models that were fine-tuned from one base, with its tokenizer"));
        }
    }
    Ok(())
}
