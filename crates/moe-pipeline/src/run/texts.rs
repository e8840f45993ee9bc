//! Text of surveys, and checks of other models' tokenizers.

use std::path::{Path, PathBuf};

use moe_checkpoint::{Error, Kind, Result, file_exists, json};
use moe_forward::{Corpus, Storage, TOKENIZER_FILE, TextRead, TokenizeOptions, load_prompts};
use moe_model::Model;
use moe_passes::{Survey, SurveyText, TextSource};

use crate::budget;
use crate::context::RunContext;
use crate::memory::Text;
use crate::needs::WorkLimits;

/// Live bytes of a survey of `source` on `tokens` tokens, in sequences of at most `length`.
pub(super) fn surveyed(
    survey: &Survey,
    source: &Model,
    tokens: usize,
    length: usize,
    work: &WorkLimits<'_>,
) -> u64 {
    // A surveyor sees all tokens of a layer at once, so no budget can split them into blocks.
    let text = Text::first(tokens, length, Storage::default());
    text.surveyed(source, survey.surveyor.working_bytes(source, tokens), work.compute)
}

/// Reads the texts of `surveys` of `source`. Returns records of what was read, too.
pub(super) fn load_all(
    surveys: &[Survey],
    source: &Model,
    run: &RunContext<'_>,
) -> Result<(Vec<SurveyText>, Vec<TextRead>)> {
    let mut reads = Vec::new();
    let mut texts = Vec::new();
    for survey in surveys {
        texts.push(match &survey.text {
            TextSource::Data { specs, sequence_length, max_tokens } => {
                let options =
                    tokenize_options(survey, source, [*sequence_length, *max_tokens], run);
                let corpus = Corpus::load(specs, run.input, options)?;
                let batch = corpus.batch();
                reads.extend(corpus.texts);
                SurveyText::Data(batch)
            }
            TextSource::Prompts { path, sets } => {
                let prompts = load_prompts(path, run.input, *sets)?;
                prompts.batch.check_vocabulary(source.vocab, path)?;
                SurveyText::Prompts(prompts)
            }
        });
    }
    Ok((texts, reads))
}

/// Options for tokenizing the text of a survey of `source`: sequences of at most `length` tokens,
/// at most `max_tokens` in all.
fn tokenize_options(
    survey: &Survey,
    source: &Model,
    [length, max_tokens]: [usize; 2],
    run: &RunContext<'_>,
) -> TokenizeOptions {
    let work = run.work();
    TokenizeOptions {
        sequence_length: length,
        vocab: source.vocab,
        max_tokens: Some(max_tokens),
        room: budget::room(work.budget, "--data-tokens", |tokens| {
            Ok(surveyed(survey, source, tokens, length, &work))
        }),
        ..TokenizeOptions::default()
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
            .options(&["--expert-model"])
            .file(other.join(TOKENIZER_FILE))
            .remedy("give models that were fine-tuned from one base, with its tokenizer"));
        }
    }
    Ok(())
}
