//! Packs codes into the weights that files hold.

use std::sync::Arc;

use moe_checkpoint::quantization::{Blocks, Integers};
use moe_checkpoint::{Dtype, ScratchStore};
use moe_forward::{candle_dtype, float_dtype};
use moe_math::fp8;
use moe_math::quantize::{Codes, pack};
use moe_model::{Error, Kind, Packed, Packing, Result, Weight, WeightSource};

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
            Some(spill) => Ok(Weight::made(name, dtype, shape, spill.keep(&bytes()?)?)),
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
        let [rows, columns] = [weight.shape()[0], weight.shape()[1]];
        let (name, bits) = (weight.name(), integers.bits);
        let groups = integers.groups(columns);
        let gptq = match (packing, codes) {
            (Packing::Columns, Some(codes)) => Some(pack::pack_gptq(codes, bits).map_err(failed)?),
            _ => None,
        };
        let codes = || codes.expect("bytes are made of codes only");
        let words = self.weight(
            name,
            Dtype::I32,
            &packing.words(integers, [rows, columns]),
            || match &gptq {
                Some(gptq) => Ok(bytes(&gptq.qweight)),
                None => pack::pack_rows(&codes().codes, columns, bits)
                    .map(|words| bytes(&words))
                    .map_err(failed),
            },
        )?;
        // GPTQModel's own files have scales in f16.
        let dtype = if packing == Packing::Columns { Dtype::F16 } else { weight.dtype() };
        let scale = self.weight(name, dtype, &packing.scales(rows, groups), || {
            encoded(
                gptq.as_ref().map_or_else(|| codes().scales.as_slice(), |gptq| &gptq.scales),
                of_scales(dtype),
                name,
            )
        })?;
        let has_zeros = packing.has_zeros(integers);
        let zero = || {
            self.weight(name, Dtype::I32, &packing.zeros(integers, rows, groups), || match &gptq {
                Some(gptq) => Ok(bytes(&gptq.qzeros)),
                None => pack::pack_columns(&codes().zeros, groups, bits)
                    .map(|words| bytes(&words))
                    .map_err(failed),
            })
        };
        let zero = has_zeros.then(zero).transpose()?;
        let beside = match packing {
            Packing::Rows => {
                self.weight(name, Dtype::I64, &[2], || Ok(bytes(&[rows as i64, columns as i64])))?
            }
            Packing::Columns => {
                let group = integers.group_size(columns);
                self.weight(name, Dtype::I32, &[columns], || {
                    Ok(bytes(&(0..columns).map(|c| (c / group) as i32).collect::<Vec<_>>()))
                })?
            }
        };
        Ok(words.packed([rows, columns], Packed { packing, integers, scale, zero, beside }))
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
        let found = match values {
            Some(values) => {
                let found = fp8::encode(values, shape, block, of_scales(scale_dtype));
                Some(found.map_err(|e| {
                    Error::new(Kind::Numeric, "cannot quantize").source(e).tensor(name)
                })?)
            }
            None => None,
        };
        let found = || found.as_ref().expect("bytes are made of values only");
        let counts = [shape[0].div_ceil(block[0]), shape[1].div_ceil(block[1])];
        let scale = self.weight(name, scale_dtype, &counts, || {
            encoded(&found().scales, of_scales(scale_dtype), name)
        })?;
        let codes = self.weight(name, Dtype::F8_E4M3, &shape, || Ok(found().codes.clone()))?;
        Ok(codes.in_blocks(scale, block))
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
