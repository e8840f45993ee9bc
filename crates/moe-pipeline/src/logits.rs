//! `logits`: the logits of given tokens, as one f32 tensor in a safetensors file.

use std::io::Write;
use std::path::Path;

use moe_checkpoint::{
    Checkpoint, Dtype, Entry, Error, Kind, Locations, Result, Snapshot, StagedFile, check_file,
    encode_header,
};
use moe_forward::{Batch, Head, Storage, Sweep};
use moe_math::Compute;
use moe_model::Model;

use crate::budget;
use crate::file_kinds::LOGITS;
use crate::memory::{self, Text};
use crate::progress::{LayerProgress, Progress, Unit};
use crate::resources::ByteSize;

/// The number of tokens whose logits are computed at once.
const TOKEN_BLOCK: usize = 1024;

/// Runs the checkpoint `model` on the ids in `tokens` and writes `logits` to `output`: f32, `[all
/// tokens in order, vocab]`. Returns their shape.
///
/// # Errors
/// [`Kind::Usage`] for ids that the model doesn't have, and where `output` exists, unless it is
/// empty, or holds logits and `overwrite` is given; errors of reading, computing and writing. No
/// new file is left then.
pub fn write_logits(
    model: &Path,
    tokens: &Path,
    output: &Path,
    overwrite: bool,
    memory_budget: Option<ByteSize>,
    compute: &Compute,
    progress: &dyn Progress,
) -> Result<[usize; 2]> {
    let mut snapshot = Snapshot::default();
    snapshot.add(tokens);
    let batch = Batch::from_json(tokens)?;
    let checkpoint = Checkpoint::open(model)?;
    checkpoint.warnings().iter().for_each(|warning| progress.note(warning));
    let model = Model::read(&checkpoint)?;
    batch.check_vocabulary(model.vocab, tokens)?;
    let mut locations = Locations::default();
    [checkpoint.dir(), tokens].into_iter().for_each(|path| locations.reads(path));
    locations.writes(output)?;
    let found = check_file(output, &LOGITS, overwrite)?;
    let text =
        Text { tokens: batch.tokens(), longest: batch.longest(), storage: Storage::default() };
    let needed = memory::logits(&model, &text, TOKEN_BLOCK, compute);
    let fewer = |budget| {
        let text = Text::first(1, 1, Storage::default());
        budget::fits(memory::logits(&model, &text, TOKEN_BLOCK, compute), budget)
            .then(|| "give fewer tokens".to_owned())
    };
    budget::check_budget(memory_budget, fewer, |_| Ok(needed))?;
    let file = StagedFile::create(output, found)?;
    progress.stage("forward", model.layers.len() as u64, Unit::Layers { tokens: batch.tokens() });
    let mut sweep = Sweep::new(&model, &batch, compute)?;
    sweep.run(&mut LayerProgress(progress))?;
    let head = Head::load(&model, compute)?;
    let shape = [batch.tokens(), model.vocab];
    let end = (shape[0] * shape[1] * 4) as u64;
    let entry = Entry {
        name: "logits".to_owned(),
        dtype: Dtype::F32,
        start: 0,
        end,
        shape: shape.to_vec(),
    };
    let numeric =
        |e: candle_core::Error| Error::new(Kind::Numeric, "cannot compute logits").source(e);
    let mut failure = None;
    let written = file.commit(|file| {
        file.write_all(&encode_header(std::slice::from_ref(&entry)))?;
        for start in (0..batch.tokens()).step_by(TOKEN_BLOCK) {
            let rows = TOKEN_BLOCK.min(batch.tokens() - start);
            let block = sweep.hidden(start..start + rows).and_then(|h| head.logits(&h));
            let values = block
                .and_then(|b| b.flatten_all().and_then(|b| b.to_vec1::<f32>()).map_err(numeric));
            match values {
                Ok(values) => file
                    .write_all(&values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>())?,
                Err(error) => {
                    failure = Some(error);
                    return Err(std::io::Error::other("no logits"));
                }
            }
        }
        let unchanged = checkpoint.check_unchanged().and_then(|()| snapshot.check());
        unchanged.map_err(|error| {
            failure = Some(error);
            std::io::Error::other("not of one piece")
        })
    });
    failure.map_or(written, Err).map(|_| shape)
}
