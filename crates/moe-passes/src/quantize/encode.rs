//! Packs codes into the weights that files hold.

use std::sync::Arc;

use moe_checkpoint::quantization::{Blocks, Integers};
use moe_checkpoint::{Dtype, ScratchStore};
use moe_forward::{candle_dtype, float_dtype};
use moe_math::fp8;
use moe_math::quantize::{Codes, pack};
use moe_model::{Error, Kind, PackedIntegers, Packing, Result, Weight, WeightSource};

use super::failed::failed;
use crate::part::encoded;

/// Bytes that are still to be made; until then only their shape is known.
struct Undecided;

impl WeightSource for Undecided {
    fn make(&self) -> Result<Vec<u8>> {
        Err(Error::new(Kind::Numeric, "this weight is made when quantize runs"))
    }
}

/// The store where made bytes are kept; None where there are only shapes.
#[derive(Clone)]
pub(super) struct Store(pub Option<Arc<ScratchStore>>);

impl Store {
    fn weight(
        &self,
        name: &str,
        dtype: Dtype,
        shape: &[usize],
        bytes: impl FnOnce() -> Result<Vec<u8>>,
    ) -> Result<Weight> {
        match &self.0 {
            None => Ok(Weight::made(name, dtype, shape, Undecided)),
            Some(scratch) => Ok(Weight::made(name, dtype, shape, scratch.keep(&bytes()?)?)),
        }
    }

    /// `codes` for `weight`, which gives name and dtype. `codes` is None where there are only
    /// shapes.
    pub fn packed(
        &self,
        weight: &Weight,
        packing: Packing,
        integers: Integers,
        codes: Option<&Codes>,
    ) -> Result<Weight> {
        let gptq = match (packing, codes) {
            (Packing::Columns, Some(codes)) => {
                Some(pack::pack_gptq(codes, integers.bits).map_err(failed)?)
            }
            _ => None,
        };
        let matrix = PackedMatrix { store: self, weight, packing, integers, codes, gptq };
        let words = matrix.words()?;
        let scale = matrix.scale()?;
        let has_zeros = packing.has_zeros(integers);
        let zero = has_zeros.then(|| matrix.zero()).transpose()?;
        let shape_or_groups = matrix.shape_or_groups()?;
        Ok(words.packed(
            matrix.shape(),
            PackedIntegers { packing, integers, scale, zero, shape_or_groups },
        ))
    }

    /// e4m3 codes of `weight`. `values` are None where there are only shapes.
    pub fn float(
        &self,
        weight: &Weight,
        blocks: Blocks,
        scale_dtype: Dtype,
        values: Option<&[f32]>,
    ) -> Result<Weight> {
        let shape = [weight.shape()[0], weight.shape()[1]];
        let block = blocks.size(shape);
        let name = weight.name();
        let encoding = values
            .map(|values| fp8::encode(values, shape, block, of_scales(scale_dtype)))
            .transpose()
            .map_err(|e| Error::new(Kind::Numeric, "cannot quantize").source(e).tensor(name))?;
        let made = || encoding.as_ref().expect("bytes are made of values only");
        let counts = [shape[0].div_ceil(block[0]), shape[1].div_ceil(block[1])];
        let scale = self.weight(name, scale_dtype, &counts, || {
            encoded(&made().scales, of_scales(scale_dtype), name)
        })?;
        let codes = self.weight(name, Dtype::F8_E4M3, &shape, || Ok(made().codes.clone()))?;
        Ok(codes.in_blocks(scale, block))
    }
}

/// A matrix whose integer codes are packed into words.
struct PackedMatrix<'a> {
    store: &'a Store,
    /// The matrix before it was quantized.
    weight: &'a Weight,
    packing: Packing,
    integers: Integers,
    /// None where there are only shapes.
    codes: Option<&'a Codes>,
    /// The tensors of GPTQ's layout. None for the layout of compressed-tensors.
    gptq: Option<pack::Gptq>,
}

impl PackedMatrix<'_> {
    fn shape(&self) -> [usize; 2] {
        [self.weight.shape()[0], self.weight.shape()[1]]
    }

    /// The number of groups of columns.
    fn groups(&self) -> usize {
        self.integers.groups(self.shape()[1])
    }

    fn codes(&self) -> &Codes {
        self.codes.expect("bytes are made of codes only")
    }

    /// The codes.
    fn words(&self) -> Result<Weight> {
        let shape = self.packing.words(self.integers, self.shape());
        self.store.weight(self.weight.name(), Dtype::I32, &shape, || match &self.gptq {
            Some(gptq) => Ok(bytes(&gptq.qweight)),
            None => pack::pack_rows(&self.codes().codes, self.shape()[1], self.integers.bits)
                .map(|words| bytes(&words))
                .map_err(failed),
        })
    }

    /// The scales of groups.
    fn scale(&self) -> Result<Weight> {
        let name = self.weight.name();
        // GPTQModel's own files have scales in f16.
        let is_gptq = self.packing == Packing::Columns;
        let dtype = if is_gptq { Dtype::F16 } else { self.weight.dtype() };
        let shape = self.packing.scales(self.shape()[0], self.groups());
        self.store.weight(name, dtype, &shape, || {
            let scales = match &self.gptq {
                Some(gptq) => &gptq.scales,
                None => &self.codes().scales,
            };
            encoded(scales, of_scales(dtype), name)
        })
    }

    /// The zero points of groups.
    fn zero(&self) -> Result<Weight> {
        let shape = self.packing.zeros(self.integers, self.shape()[0], self.groups());
        self.store.weight(self.weight.name(), Dtype::I32, &shape, || match &self.gptq {
            Some(gptq) => Ok(bytes(&gptq.qzeros)),
            None => pack::pack_columns(&self.codes().zeros, self.groups(), self.integers.bits)
                .map(|words| bytes(&words))
                .map_err(failed),
        })
    }

    /// The tensor that files hold besides codes, scales and zero points: the shape, or each
    /// column's group.
    fn shape_or_groups(&self) -> Result<Weight> {
        let name = self.weight.name();
        let [rows, columns] = self.shape();
        match self.packing {
            Packing::Rows => {
                let shape = [rows as i64, columns as i64];
                self.store.weight(name, Dtype::I64, &[2], || Ok(bytes(&shape)))
            }
            Packing::Columns => {
                let size = self.integers.group_size(columns);
                let groups = (0..columns).map(|column| (column / size) as i32);
                self.store
                    .weight(name, Dtype::I32, &[columns], || Ok(bytes(&groups.collect::<Vec<_>>())))
            }
        }
    }
}

/// Little-endian bytes.
fn bytes<T: bytemuck::Pod>(values: &[T]) -> Vec<u8> {
    bytemuck::cast_slice(values).to_vec()
}

/// The element type of scales.
fn of_scales(dtype: Dtype) -> candle_core::DType {
    float_dtype(dtype).expect("scales are floats")
}

/// The element type in which scales of `weight` are stored.
pub(super) fn scale_dtype(weight: &Weight, packing: Packing) -> Result<candle_core::DType> {
    match packing {
        Packing::Columns => Ok(candle_core::DType::F16),
        Packing::Rows => candle_dtype(weight),
    }
}
