//! `logits`: the logits of given tokens, as one f32 tensor in a safetensors file.

use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::path::Path;

use moe_checkpoint::{
    Checkpoint, Dtype, Entry, Error, FoundFile, Kind, Locations, Result, Snapshot, StagedFile,
    check_file, encode_header,
};
use moe_forward::{Batch, LmHead, Storage, Sweep};
use moe_math::Compute;
use moe_model::Model;

use crate::budget;
use crate::file_kinds::LOGITS;
use crate::filling::{Failure, Unfilled};
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
    let found = check_output(output, [checkpoint.dir(), tokens], overwrite)?;
    check_budget(&model, &batch, memory_budget, compute)?;
    let file = StagedFile::create(output, found)?;
    progress.stage("forward", model.layers.len() as u64, Unit::Layers { tokens: batch.tokens() });
    let logits = Logits::compute(&model, &batch, compute, progress)?;
    let mut failure = Failure::default();
    let written = file.commit(|file| {
        let written = logits.write(file);
        failure.keep(written.and_then(|()| {
            checkpoint.check_unchanged()?;
            Ok(snapshot.check()?)
        }))
    });
    failure.instead_of(written).map(|_| logits.shape)
}

/// Refuses an `output` that is, holds or lies in what is `read`, or that may not be replaced.
/// Returns what lies there now.
fn check_output(output: &Path, read: [&Path; 2], overwrite: bool) -> Result<FoundFile> {
    let mut locations = Locations::default();
    read.into_iter().for_each(|path| locations.reads(path));
    locations.writes(output)?;
    check_file(output, &LOGITS, overwrite)
}

/// Refuses a budget that the logits of `batch` don't fit in.
fn check_budget(
    model: &Model,
    batch: &Batch,
    memory_budget: Option<ByteSize>,
    compute: &Compute,
) -> Result<()> {
    let text =
        Text { tokens: batch.tokens(), longest: batch.longest(), storage: Storage::default() };
    let needed = memory::logits(model, &text, TOKEN_BLOCK, compute);
    let least = Text::first(1, 1, Storage::default());
    let least = memory::logits(model, &least, TOKEN_BLOCK, compute);
    budget::check_budget(
        memory_budget,
        |budget| budget::fits(least, budget).then(|| "give fewer tokens".to_owned()),
        |_| Ok(needed),
    )
    .map(drop)
}

/// The logits of a batch, as they are computed while they are written.
struct Logits<'a> {
    sweep: Sweep<'a>,
    head: LmHead,
    shape: [usize; 2],
}

impl<'a> Logits<'a> {
    /// Runs `model` on `batch`, up to its head.
    fn compute(
        model: &'a Model,
        batch: &'a Batch,
        compute: &'a Compute,
        progress: &dyn Progress,
    ) -> Result<Self> {
        let mut sweep = Sweep::new(model, batch, compute)?;
        sweep.run(&mut LayerProgress(progress))?;
        let head = LmHead::load(model, compute)?;
        Ok(Self { sweep, head, shape: [batch.tokens(), model.vocab] })
    }

    /// Writes them as the only tensor of a safetensors file.
    fn write(&self, file: &mut File) -> Result<(), Unfilled> {
        let [tokens, vocab] = self.shape;
        let entry = Entry {
            name: "logits".to_owned(),
            dtype: Dtype::F32,
            start: 0,
            end: (tokens * vocab * 4) as u64,
            shape: self.shape.to_vec(),
        };
        file.write_all(&encode_header(std::slice::from_ref(&entry)))?;
        for start in (0..tokens).step_by(TOKEN_BLOCK) {
            let values = self.of_block(start..tokens.min(start + TOKEN_BLOCK))?;
            file.write_all(&values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>())?;
        }
        Ok(())
    }

    /// The logits of a range of tokens, one token after the other.
    fn of_block(&self, tokens: Range<usize>) -> Result<Vec<f32>> {
        let block = self.head.logits(&self.sweep.hidden(tokens)?)?;
        block
            .flatten_all()
            .and_then(|block| block.to_vec1::<f32>())
            .map_err(|e| Error::new(Kind::Numeric, "cannot compute logits").source(e))
    }
}
