//! Reads quantized matrices from named tensors, and names their tensors again.

use moe_checkpoint::Dtype;
use moe_checkpoint::quantization::{Integers, Quantization, Scheme};

use crate::codec::TensorReader;
use crate::codec::names::module;
use crate::weight::{Encoding, PackedIntegers, Packing, Weight};
use crate::{Error, Kind, Result};

/// The suffixes of the tensors of packed integers, after the module's name.
struct Names {
    words: &'static str,
    scale: &'static str,
    zero: &'static str,
    shape_or_groups: &'static str,
}

fn names(packing: Packing) -> Names {
    match packing {
        Packing::Rows => Names {
            words: ".weight_packed",
            scale: ".weight_scale",
            zero: ".weight_zero_point",
            shape_or_groups: ".weight_shape",
        },
        Packing::Columns => Names {
            words: ".qweight",
            scale: ".scales",
            zero: ".qzeros",
            shape_or_groups: ".g_idx",
        },
    }
}

fn packing(quantization: &Quantization) -> Option<Packing> {
    match quantization {
        Quantization::BlockFp8 { .. } => None,
        Quantization::Compressed(_) => Some(Packing::Rows),
        Quantization::Gptq(_) => Some(Packing::Columns),
    }
}

/// Returns the stored tensors of `weight`, whose plain tensor is called `name`.
pub(crate) fn parts(
    name: &str,
    weight: &Weight,
    quantization: Option<&Quantization>,
) -> Vec<(String, Weight)> {
    match weight.encoding() {
        Encoding::Plain => vec![(name.to_owned(), weight.clone())],
        Encoding::Blocks { scale, .. } => {
            let suffix = quantization.map_or("_scale_inv", Quantization::scale_suffix);
            vec![
                (name.to_owned(), weight.clone()),
                (format!("{name}{suffix}"), Weight::clone(scale)),
            ]
        }
        Encoding::Packed(packed) => packed_parts(name, weight, packed),
    }
}

fn packed_parts(name: &str, weight: &Weight, packed: &PackedIntegers) -> Vec<(String, Weight)> {
    let names = names(packed.packing);
    let module = module(name);
    let mut parts = vec![
        (format!("{module}{}", names.words), weight.codes()),
        (format!("{module}{}", names.scale), packed.scale.clone()),
        (format!("{module}{}", names.shape_or_groups), packed.shape_or_groups.clone()),
    ];
    let zero = packed.zero.iter();
    parts.extend(zero.map(|zero| (format!("{module}{}", names.zero), zero.clone())));
    parts
}

impl TensorReader<'_> {
    /// Whether the matrix of the weight `name` exists, in any encoding.
    pub fn has_matrix(&self, name: &str) -> bool {
        let words =
            self.quantization.as_ref().and_then(packing).map(|packing| names(packing).words);
        let packed = words
            .is_some_and(|words| self.tensors.contains_key(&format!("{}{words}", module(name))));
        packed || self.tensors.contains_key(name)
    }

    /// Takes a matrix that may be quantized, with its scales.
    pub fn projection(&mut self, name: &str, shape: [usize; 2]) -> Result<Weight> {
        let Some(quantization) = &self.quantization else { return self.take(name, &shape) };
        let dtype = self.tensors.get(name).map(Weight::dtype);
        let words = packing(quantization)
            .map(|packing| (packing, format!("{}{}", module(name), names(packing).words)));
        let packed = words.filter(|(_, words)| self.tensors.contains_key(words));
        if packed.is_none() && dtype != Some(Dtype::F8_E4M3) {
            return self.take(name, &shape);
        }
        let scheme = quantization
            .scheme(module(name))
            .ok_or_else(|| self.contradiction(name, "no quantization"))?;
        let suffix = quantization.scale_suffix();
        match (scheme, packed) {
            (Scheme::Integers(integers), Some((packing, _))) => {
                self.packed(name, packing, integers, shape)
            }
            (Scheme::Fp8(blocks), None) => self.blocks(name, suffix, blocks.size(shape), shape),
            (scheme, _) => Err(self.contradiction(name, &scheme.to_string())),
        }
    }

    /// Takes a matrix of float8 codes with a scale for each `block`. The scales have the matrix's
    /// name with `suffix`.
    fn blocks(
        &mut self,
        name: &str,
        suffix: &str,
        block: [usize; 2],
        shape: [usize; 2],
    ) -> Result<Weight> {
        let codes = self.take_encoded(name, &shape)?;
        let counts = [shape[0].div_ceil(block[0]), shape[1].div_ceil(block[1])];
        let scale = self.take(format!("{name}{suffix}"), &counts)?;
        Ok(codes.in_blocks(scale, block))
    }

    fn contradiction(&self, name: &str, said: &str) -> Error {
        Error::new(
            Kind::Mismatch,
            format!("quantization_config calls for {said} here, the tensors are something else"),
        )
        .tensor(name)
        .file(self.config.file)
        .remedy("the checkpoint and config.json don't belong together")
    }

    /// Takes a matrix of packed integers: its words and the other tensors of its layout.
    fn packed(
        &mut self,
        name: &str,
        packing: Packing,
        integers: Integers,
        shape: [usize; 2],
    ) -> Result<Weight> {
        let (names, [rows, columns]) = (names(packing), shape);
        let of_module = |suffix: &str| format!("{}{suffix}", module(name));
        if packing == Packing::Columns && !integers.fills_words(columns) {
            let said = format!("{columns} columns in whole words, {integers}");
            return Err(self.contradiction(name, &said));
        }
        let groups = integers.groups(columns);
        let words = self.take_integers(
            of_module(names.words),
            Dtype::I32,
            &packing.words(integers, shape),
        )?;
        let scale = self.take(of_module(names.scale), &packing.scales(rows, groups))?;
        let zeros = packing.has_zeros(integers).then(|| packing.zeros(integers, rows, groups));
        let zero = zeros
            .map(|shape| self.take_integers(of_module(names.zero), Dtype::I32, &shape))
            .transpose()?;
        let shape_or_groups =
            self.shape_or_groups(of_module(names.shape_or_groups), packing, columns)?;
        self.refuse_order(&of_module(".weight_g_idx"))?;
        Ok(words.packed(shape, PackedIntegers { packing, integers, scale, zero, shape_or_groups }))
    }

    /// Takes the tensor `name` that a layout has in addition to words, scales and zero points.
    fn shape_or_groups(
        &mut self,
        name: String,
        packing: Packing,
        columns: usize,
    ) -> Result<Weight> {
        match packing {
            Packing::Rows => self.take_integers(name, Dtype::I64, &[2]),
            Packing::Columns => self.take_integers(name, Dtype::I32, &[columns]),
        }
    }

    /// Refuses a tensor `name` that reorders columns.
    fn refuse_order(&self, name: &str) -> Result<()> {
        if !self.tensors.contains_key(name) {
            return Ok(());
        }
        let what = "groups of columns out of order are not read by this version";
        Err(Error::new(Kind::Unsupported, what)
            .tensor(name)
            .file(self.config.file)
            .remedy("quantize with static groups (actorder null or \"static\")"))
    }

    fn take_integers(&mut self, name: String, dtype: Dtype, shape: &[usize]) -> Result<Weight> {
        let weight = self.take_encoded(&name, shape)?;
        if weight.dtype() == dtype {
            return Ok(weight);
        }
        Err(Error::new(
            Kind::Mismatch,
            format!("elements of type {}, but packed integers have {dtype} here", weight.dtype()),
        )
        .tensor(name)
        .file(weight.stored().map_or(self.config.file, |s| s.path()))
        .remedy("the checkpoint and config.json don't belong together"))
    }
}
