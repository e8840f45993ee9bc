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
    let exists = |index: usize| {
        let prefix = format!("{}{index}.", names::LAYERS);
        reader
            .tensors
            .range(prefix.clone()..)
            .next()
            .is_some_and(|(name, _)| name.starts_with(&prefix))
    };
    // Each of these layers has tensors, so a larger count is nonsense.
    if count > reader.tensors.len() || !(layers..layers + count).any(exists) {
        return Ok(Vec::new());
    }
    (layers..layers + count).map(|index| read_layer(reader, index, shape)).collect()
}

fn read_layer(reader: &mut TensorReader<'_>, index: usize, shape: &ModelShape) -> Result<MtpLayer> {
    let at = |name: &str| format!("{}{index}.{name}", names::LAYERS);
    let (hidden, table) = (shape.hidden, [shape.vocab, shape.hidden]);
    Ok(MtpLayer {
        embed_norm: reader.take(at(own::EMBED_NORM), &[hidden])?,
        hidden_norm: reader.take(at(own::HIDDEN_NORM), &[hidden])?,
        projection: reader.linear(&at(own::PROJECTION), false, [hidden, 2 * hidden])?,
        layer: decoder_layer::read(reader, index, shape, None)?,
        final_norm: reader.take(at(own::FINAL_NORM), &[hidden])?,
        embed: reader.take_if_there(&at(own::EMBED), &table)?,
        head: reader.take_if_there(&at(own::HEAD), &table)?,
    })
}

pub(crate) fn name(namer: &mut Namer<'_>, index: usize, mtp: &MtpLayer) -> Result<()> {
    let at = |name: &str| format!("{}{index}.{name}", names::LAYERS);
    namer.push(at(own::EMBED_NORM), &mtp.embed_norm);
    namer.push(at(own::HIDDEN_NORM), &mtp.hidden_norm);
    namer.linear(at(own::PROJECTION), &mtp.projection);
    decoder_layer::name(namer, index, &mtp.layer)?;
    namer.push(at(own::FINAL_NORM), &mtp.final_norm);
    for (name, weight) in [(own::EMBED, &mtp.embed), (own::HEAD, &mtp.head)] {
        if let Some(weight) = weight {
            namer.push(at(name), weight);
        }
    }
    Ok(())
}
