//! `logits`: the logits of given tokens, as one f32 tensor in a safetensors file.

use std::io::Write;
use std::path::Path;

use moe_checkpoint::{Checkpoint, Dtype, Entry, Error, Kind, Result, Snapshot, SourceFile, StagedFile, encode_header};
use moe_forward::{Batch, Head, Sweep};
use moe_math::Compute;
use moe_model::Model;

use crate::progress::{LayerProgress, Progress, Unit};

/// Tokens whose logits are computed at once.
const TOKEN_BLOCK: usize = 1024;

/// Runs the checkpoint `model` on the ids in `tokens` and writes `logits`, `[all tokens in order, vocab]` f32, to `output`; their shape.
///
/// # Errors
/// [`Kind::Usage`] for ids that the model doesn't have, and where `output` exists, unless it holds nothing but logits or `overwrite` is given; what
/// reading, computing and writing return. No new file is left then.
pub fn write_logits(
    model: &Path,
    tokens: &Path,
    output: &Path,
    overwrite: bool,
    compute: &Compute,
    progress: &dyn Progress,
) -> Result<[usize; 2]> {
    let mut snapshot = Snapshot::default();
    snapshot.add(tokens);
    let batch = Batch::from_json(tokens)?;
    let checkpoint = Checkpoint::open(model)?;
    let model = Model::read(&checkpoint)?;
    batch.check_vocabulary(model.vocab, tokens)?;
    check_output(&model, output, overwrite)?;
    let file = StagedFile::create(output)?;
    progress.stage("forward", model.layers.len() as u64, Unit::Layers { tokens: batch.tokens() });
    let mut sweep = Sweep::new(&model, &batch, compute)?;
    sweep.run(&mut LayerProgress(progress))?;
    let head = Head::load(&model, compute)?;
    let shape = [batch.tokens(), model.vocab];
    let end = (shape[0] * shape[1] * 4) as u64;
    let entry = Entry { name: "logits".to_owned(), dtype: Dtype::F32, start: 0, end, shape: shape.to_vec() };
    let numeric = |e: candle_core::Error| Error::new(Kind::Numeric, "cannot compute logits").source(e);
    let mut failure = None;
    let written = file.commit(|file| {
        file.write_all(&encode_header(std::slice::from_ref(&entry)))?;
        for start in (0..batch.tokens()).step_by(TOKEN_BLOCK) {
            let rows = TOKEN_BLOCK.min(batch.tokens() - start);
            let block = sweep.hidden(start..start + rows).and_then(|h| head.logits(&h));
            let values = block.and_then(|b| b.flatten_all().and_then(|b| b.to_vec1::<f32>()).map_err(numeric));
            match values {
                Ok(values) => file.write_all(&values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>())?,
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
    failure.map_or(written, Err).map(|()| shape)
}

/// A mistyped path must not cost anybody their weights: only logits and empty files are replaced unasked.
fn check_output(model: &Model, output: &Path, overwrite: bool) -> Result<()> {
    let directory = |path: &Path| {
        path.parent().and_then(|p| if p.as_os_str().is_empty() { Path::new(".") } else { p }.canonicalize().ok())
    };
    if let (Some(model), Some(parent)) = (directory(&model.config_file), directory(output))
        && parent.starts_with(&model)
    {
        return Err(Error::new(
            Kind::Usage,
            "the output lies inside the model's directory, where loaders would find it",
        )
        .file(output)
        .remedy("choose an output outside the input directory"));
    }
    let empty = || output.metadata().is_ok_and(|m| m.is_file() && m.len() == 0);
    let only_logits = || {
        let opened = SourceFile::open(output);
        opened.is_ok_and(|(_, entries)| matches!(entries.as_slice(), [entry] if entry.name == "logits"))
    };
    if output.is_dir() {
        return Err(Error::new(Kind::Usage, "the output is a directory").file(output).remedy("give a file name"));
    }
    if overwrite || !output.exists() || empty() || only_logits() {
        return Ok(());
    }
    Err(Error::new(Kind::Usage, "the output exists and holds something other than logits")
        .file(output)
        .remedy("choose another name, or give --overwrite"))
}
