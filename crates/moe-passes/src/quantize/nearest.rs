//! Rounds matrices to the nearest, which looks at no text.

use std::collections::BTreeMap;

use moe_checkpoint::quantization::Scheme;
use moe_math::quantize::round_to_nearest;
use moe_model::{Moe, Result, Weight};

use super::encode::Store;
use super::failed::failed;
use super::matrices::{MadeWeight, grid, quantized_attention};
use super::options::{QuantizeOptions, QuantizedPart};
use super::record::{QuantizedLayer, decided};
use crate::part::finite_values;
use crate::pass::{DecidedBy, LayerEdits, Sources};

/// Rounds every matrix to the nearest.
pub(super) fn rounded(options: &QuantizeOptions, sources: &Sources<'_>) -> Result<LayerEdits> {
    let store = Store(sources.scratch.cloned());
    let mut layers = BTreeMap::new();
    for (index, moe) in sources.model.moes() {
        let quantized = rounded_layer(options, moe, options.schemes(None), &store)?;
        layers.insert(
            index,
            decided(quantized, options.record(index, moe, QuantizedLayer::default())),
        );
    }
    let mut attention = BTreeMap::new();
    if options.include.contains(&QuantizedPart::Attention) {
        for (index, layer) in sources.model.layers.iter().enumerate() {
            let quantized = quantized_attention(&layer.attention, |weight| {
                nearest(options, options.encoding(), weight, &store)
            })?;
            attention.insert(index, quantized);
        }
    }
    Ok(LayerEdits { by: DecidedBy::Weights, layers, attention })
}

/// `weight`, rounded to the nearest in `scheme`.
fn nearest(
    options: &QuantizeOptions,
    scheme: Scheme,
    weight: &Weight,
    store: &Store,
) -> Result<Weight> {
    let values = finite_values(weight)?;
    let made = match scheme {
        Scheme::Fp8(_) => MadeWeight::Values(values),
        Scheme::Integers(integers) => {
            let shape = [weight.shape()[0], weight.shape()[1]];
            let codes = round_to_nearest(&values, shape, &grid(options, integers, weight)?);
            MadeWeight::Codes(codes.map_err(|e| failed(e).tensor(weight.name()))?)
        }
    };
    options.encoded(weight, scheme, store, Some(&made))
}

/// `moe` with every matrix rounded to the nearest. `schemes` are those of gate, up and down.
pub(super) fn rounded_layer(
    options: &QuantizeOptions,
    moe: &Moe,
    schemes: [Scheme; 3],
    store: &Store,
) -> Result<Moe> {
    options.quantized(moe, |_, matrix, weight| nearest(options, schemes[matrix], weight, store))
}
