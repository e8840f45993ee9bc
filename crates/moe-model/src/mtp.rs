//! Reads layers for multi-token prediction from named tensors, and names their tensors again.

use crate::Result;
use crate::codec::{Namer, TensorReader, names};
use crate::decoder_layer;
use crate::mtp_layer::MtpLayer;
use crate::shape::ModelShape;

mod own {
    pub const EMBED_NORM: &str = "enorm.weight";
    pub const HIDDEN_NORM: &str = "hnorm.weight";
    pub const PROJECTION: &str = "eh_proj.weight";
    pub const FINAL_NORM: &str = "shared_head.norm.weight";
    pub const EMBED: &str = "embed_tokens.weight";
    pub const HEAD: &str = "shared_head.head.weight";
}

/// Reads the layers for multi-token prediction, which follow `layers` others. A config may count
/// such layers although the checkpoint has none.
pub(crate) fn read(
    reader: &mut TensorReader<'_>,
    layers: usize,
    shape: &ModelShape,
) -> Result<Vec<MtpLayer>> {
    let Some(rule) = &reader.config.family.mtp else { return Ok(Vec::new()) };
    let count = reader.config.optional_usize(&rule.count)?.unwrap_or(0);
    // Each of these layers has tensors, so a larger count is nonsense.
    if count > reader.tensors.len()
        || !(layers..layers + count).any(|index| has_tensors(reader, index))
    {
        return Ok(Vec::new());
    }
    (layers..layers + count).map(|index| read_layer(reader, index, shape)).collect()
}

/// Whether the checkpoint has tensors of layer `index`.
fn has_tensors(reader: &TensorReader<'_>, index: usize) -> bool {
    let prefix = tensor_name(index, "");
    let first = reader.tensors.range(prefix.clone()..).next();
    first.is_some_and(|(name, _)| name.starts_with(&prefix))
}

fn tensor_name(index: usize, name: &str) -> String {
    format!("{}{index}.{name}", names::LAYERS)
}

fn read_layer(reader: &mut TensorReader<'_>, index: usize, shape: &ModelShape) -> Result<MtpLayer> {
    let (hidden, table) = (shape.hidden, [shape.vocab, shape.hidden]);
    Ok(MtpLayer {
        embed_norm: reader.take(tensor_name(index, own::EMBED_NORM), &[hidden])?,
        hidden_norm: reader.take(tensor_name(index, own::HIDDEN_NORM), &[hidden])?,
        projection: reader.linear(
            &tensor_name(index, own::PROJECTION),
            false,
            [hidden, 2 * hidden],
        )?,
        layer: decoder_layer::read(reader, index, shape, None)?,
        final_norm: reader.take(tensor_name(index, own::FINAL_NORM), &[hidden])?,
        embed: reader.take_if_there(&tensor_name(index, own::EMBED), &table)?,
        head: reader.take_if_there(&tensor_name(index, own::HEAD), &table)?,
    })
}

pub(crate) fn name(namer: &mut Namer<'_>, index: usize, mtp: &MtpLayer) -> Result<()> {
    namer.push(tensor_name(index, own::EMBED_NORM), &mtp.embed_norm);
    namer.push(tensor_name(index, own::HIDDEN_NORM), &mtp.hidden_norm);
    namer.linear(tensor_name(index, own::PROJECTION), &mtp.projection);
    decoder_layer::name(namer, index, &mtp.layer)?;
    namer.push(tensor_name(index, own::FINAL_NORM), &mtp.final_norm);
    for (name, weight) in [(own::EMBED, &mtp.embed), (own::HEAD, &mtp.head)] {
        if let Some(weight) = weight {
            namer.push(tensor_name(index, name), weight);
        }
    }
    Ok(())
}
