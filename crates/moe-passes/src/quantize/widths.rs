//! Mixed precision: the bit width of each layer, or of each projection of a layer.

use std::collections::BTreeMap;

use moe_checkpoint::quantization::{Integers, Scheme};
use moe_math::knapsack::{Choice, knapsack};
use moe_model::{Encoding, Expert, Model, Moe, Result, Weight};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::encode::Store;
use super::options::{Profile, QuantizeOptions, QuantizedPart};
use crate::usage::usage;

/// Names of an expert's matrices.
const MATRICES: [&str; 3] = ["gate", "up", "down"];

impl Profile {
    /// The bit widths to choose from.
    pub(super) fn widths(self) -> &'static [u32] {
        match self {
            Self::Engine => &[4, 8],
            Self::Free => &Integers::WIDTHS,
        }
    }

    /// Sets of matrices (0 gate, 1 up, 2 down) that get one bit width in a layer.
    pub(super) fn parts(self) -> &'static [&'static [usize]] {
        match self {
            Self::Engine => &[&[0, 1, 2]],
            Self::Free => &[&[0], &[1], &[2]],
        }
    }
}

/// The bit widths of a layer's experts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LayerWidths {
    /// Bits of the codes of gate, up and down.
    pub bits: [u32; 3],
    /// Number of weights that have them.
    pub weights: u64,
    /// Their size in the file in bits, scales and zero points included.
    pub stored_bits: u64,
    /// The errors of the bit widths that were available.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub measured: Vec<WidthError>,
}

impl LayerWidths {
    /// The measured error with these `bits` of gate, up and down.
    pub fn error(&self, bits: [u32; 3]) -> f64 {
        let such = self.measured.iter().filter(|found| found.is_of(bits));
        such.map(|found| found.error).sum()
    }

    /// The mean number of stored bits per weight of `layers`.
    pub fn bits_a_weight<'l>(layers: impl Iterator<Item = &'l Self>) -> f64 {
        let (stored, weights) = layers
            .fold((0, 0), |(stored, all), layer| (stored + layer.stored_bits, all + layer.weights));
        stored as f64 / weights.max(1) as f64
    }
}

/// The cost for a layer of one bit width of some of its matrices.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WidthError {
    /// The matrices: gate, up, down.
    pub matrices: Vec<String>,
    /// Bits of their codes.
    pub bits: u32,
    /// The mean over tokens of Σ g² |Δf|² / |h|²: f the experts' outputs, g their gates, h the
    /// state that leaves the layer.
    #[serde(deserialize_with = "moe_checkpoint::or_infinite")]
    #[schemars(with = "Option<f64>")]
    pub error: f64,
}

/// The error by layer, by part of it, and by bit width.
pub(super) type Errors = BTreeMap<usize, Vec<Vec<f64>>>;

impl WidthError {
    /// Whether this is the error of matrices that have these `bits` of gate, up and down.
    fn is_of(&self, bits: [u32; 3]) -> bool {
        self.matrices.iter().all(|matrix| {
            MATRICES.iter().zip(bits).any(|(name, bits)| name == matrix && bits == self.bits)
        })
    }
}

impl QuantizeOptions {
    /// The bit widths of each layer with the least Σ error that --target-bits has room for.
    ///
    /// # Errors
    /// [`moe_model::Kind::Usage`] for a target that no bit widths reach.
    fn allocated(
        &self,
        model: &Model,
        target: f64,
        errors: &Errors,
    ) -> Result<BTreeMap<usize, LayerWidths>> {
        let sizes: BTreeMap<usize, Vec<Vec<u64>>> = model
            .moes()
            .map(|(index, moe)| Ok((index, self.sizes(moe)?)))
            .collect::<Result<_>>()?;
        let weights: u64 = model.moes().map(|(_, moe)| self.weights(moe)).sum();
        let items: Vec<Vec<Choice>> =
            sizes.iter().flat_map(|(index, sizes)| choices(sizes, &errors[index])).collect();
        let sizes_of_choices = items.iter().map(|item| item.iter().map(|choice| choice.size));
        let least: u64 = sizes_of_choices.clone().filter_map(Iterator::min).sum();
        let most: u64 = sizes_of_choices.filter_map(Iterator::max).sum();
        let capacity = (target * weights as f64).floor();
        let fits = (least as f64..=most as f64).contains(&capacity);
        let chosen = if fits { knapsack(&items, capacity as u64) } else { None };
        let Some(chosen) = chosen else {
            return Err(self.out_of_range(target, [least, most], weights));
        };
        let by_layer = chosen.chunks(self.profile.parts().len());
        let layers = model
            .moes()
            .zip(by_layer)
            .map(|((index, moe), chosen)| (index, self.layer_widths(moe, &sizes[&index], chosen)));
        Ok(layers.collect())
    }

    /// The bit widths of a layer: for each of its parts one is `chosen`, at which it has one of
    /// `sizes`.
    fn layer_widths(&self, moe: &Moe, sizes: &[Vec<u64>], chosen: &[usize]) -> LayerWidths {
        let mut bits = [0; 3];
        for (part, choice) in self.profile.parts().iter().zip(chosen) {
            part.iter().for_each(|matrix| bits[*matrix] = self.profile.widths()[*choice]);
        }
        let stored_bits = sizes.iter().zip(chosen).map(|(sizes, choice)| sizes[*choice]).sum();
        LayerWidths { bits, weights: self.weights(moe), stored_bits, measured: Vec::new() }
    }

    /// The bit widths assumed before anything is measured: an error falls to a quarter with each
    /// bit.
    pub(super) fn presumed(
        &self,
        model: &Model,
        target: f64,
    ) -> Result<BTreeMap<usize, LayerWidths>> {
        let errors: Vec<f64> =
            self.profile.widths().iter().map(|bits| 0.25f64.powi(*bits as i32)).collect();
        let parts = vec![errors; self.profile.parts().len()];
        self.allocated(
            model,
            target,
            &model.moes().map(|(index, _)| (index, parts.clone())).collect(),
        )
    }

    /// The bit widths by the errors that were measured.
    pub(super) fn measured(
        &self,
        model: &Model,
        target: f64,
        errors: &Errors,
    ) -> Result<BTreeMap<usize, LayerWidths>> {
        let mut layers = self.allocated(model, target, errors)?;
        let widths = self.profile.widths();
        for (index, layer) in &mut layers {
            for (part, errors) in self.profile.parts().iter().zip(&errors[index]) {
                let matrices: Vec<_> =
                    part.iter().map(|matrix| MATRICES[*matrix].to_owned()).collect();
                let found = widths.iter().zip(errors);
                let found = found.map(|(bits, error)| WidthError {
                    matrices: matrices.clone(),
                    bits: *bits,
                    error: *error,
                });
                layer.measured.extend(found);
            }
        }
        Ok(layers)
    }

    /// The number of weights of `moe` that are quantized.
    fn weights(&self, moe: &Moe) -> u64 {
        self.networks(moe)
            .flat_map(Expert::linears)
            .map(|linear| linear.weight.elements() as u64)
            .sum()
    }

    /// The experts of `moe` that are quantized.
    pub(super) fn networks<'m>(&self, moe: &'m Moe) -> impl Iterator<Item = &'m Expert> {
        let shared = moe.shared.iter().filter(|_| self.include.contains(&QuantizedPart::Shared));
        moe.experts.iter().chain(shared.map(|shared| &shared.expert))
    }

    /// The bits that each part of `moe` takes in the file at each bit width.
    fn sizes(&self, moe: &Moe) -> Result<Vec<Vec<u64>>> {
        let widths = self.profile.widths();
        let parts = self.profile.parts().iter().map(|part| {
            widths.iter().map(|bits| self.size_of_part(moe, part, *bits)).collect::<Result<_>>()
        });
        parts.collect()
    }

    /// The bits that the matrices `part` of all experts of `moe` take at the bit width `bits`.
    fn size_of_part(&self, moe: &Moe, part: &[usize], bits: u32) -> Result<u64> {
        let weights = self
            .networks(moe)
            .flat_map(|network| part.iter().map(|matrix| &network.linears()[*matrix].weight));
        weights.map(|weight| self.stored_bits(weight, bits)).sum()
    }

    /// The bits of codes, scales and zero points. The shape that compressed-tensors stores beside
    /// them is left out, as it doesn't depend on the bit width.
    fn stored_bits(&self, weight: &Weight, bits: u32) -> Result<u64> {
        let packed = Store(None).packed(weight, self.packing(), self.of_bits(bits), None)?;
        let Encoding::Packed(parts) = packed.encoding() else {
            unreachable!("integers are packed")
        };
        let beside = parts.scale.bytes() + parts.zero.as_ref().map_or(0, Weight::bytes);
        Ok(8 * (packed.codes().bytes() + beside))
    }

    fn out_of_range(&self, target: f64, stored: [u64; 2], weights: u64) -> moe_model::Error {
        let widths = self.profile.widths();
        let [least, most] = stored.map(|bits| bits as f64 / weights as f64);
        let (first, last) = (widths[0], widths[widths.len() - 1]);
        let other = match self.profile {
            Profile::Engine if target < least => {
                "; --profile free has 2 bits, too, and larger groups take less"
            }
            Profile::Free if target < least => "; larger groups take less",
            _ => "",
        };
        usage(
            &["--target-bits"],
            format!(
                "--target-bits {target}: {first} to {last} bits with scales and zero points take {least:.4} to {most:.4} here"
            ),
            format!("give a number between these{other}"),
        )
    }

    /// The schemes of gate, up and down at these bit widths.
    pub(super) fn of_widths(&self, bits: [u32; 3]) -> [Scheme; 3] {
        bits.map(|bits| Scheme::Integers(self.of_bits(bits)))
    }
}

/// The choices of each part.
fn choices(sizes: &[Vec<u64>], errors: &[Vec<f64>]) -> impl Iterator<Item = Vec<Choice>> {
    sizes.iter().zip(errors).map(|(sizes, errors)| {
        let choices = sizes.iter().zip(errors);
        choices.map(|(size, error)| Choice { size: *size, error: *error }).collect()
    })
}
