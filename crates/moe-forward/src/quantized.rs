//! Dequantizes weights.

use moe_checkpoint::{Error, Kind, Result};
use moe_math::encoding::decode_f32;
use moe_math::fp8::Fp8Matrix;
use moe_math::quantize::{Codes, QuantizeError, pack};
use moe_model::{Encoding, PackedIntegers, Packing, Weight};

use crate::context::{Context, tensor_label};
use crate::dtypes::candle_dtype;

/// Returns the values of the quantized matrix `weight` in f32, row by row; None for a plain one.
///
/// # Errors
/// Errors of reading; [`moe_checkpoint::Kind::Mismatch`] if the groups of columns are out of order.
pub fn quantized_values(weight: &Weight) -> Result<Option<Vec<f32>>> {
    match weight.encoding() {
        Encoding::Plain => Ok(None),
        Encoding::Blocks { scale, block } => {
            let codes = weight.read()?;
            let scales = floats(scale)?;
            let blocks =
                Fp8Matrix { codes: &codes, shape: shape(weight), scales: &scales, block: *block };
            blocks.dequantize().context(|| tensor_label(weight)).map(Some)
        }
        Encoding::Packed(packed) => codes(weight, packed).map(|codes| Some(codes.dequantize())),
    }
}

fn shape(weight: &Weight) -> [usize; 2] {
    [weight.shape()[0], weight.shape()[1]]
}

fn floats(weight: &Weight) -> Result<Vec<f32>> {
    decode_f32(&weight.read()?, candle_dtype(weight)?).context(|| tensor_label(weight))
}

fn words(weight: &Weight) -> Result<Vec<i32>> {
    Ok(weight.read()?.as_chunks().0.iter().map(|bytes| i32::from_le_bytes(*bytes)).collect())
}

fn codes(weight: &Weight, packed: &PackedIntegers) -> Result<Codes> {
    let (shape, bits) = (shape(weight), packed.integers.bits);
    let group = packed.integers.group_size(shape[1]);
    let zero = packed.zero.as_ref().map(words).transpose()?;
    let (words, scales) = (words(weight)?, floats(&packed.scale)?);
    let codes = match packed.packing {
        Packing::Rows => {
            let groups = packed.integers.groups(shape[1]);
            unpack_rows(&words, zero.as_deref(), shape, bits, groups).map(|(codes, zeros)| Codes {
                shape,
                group,
                codes,
                scales,
                zeros,
            })
        }
        Packing::Columns => {
            check_order(&packed.shape_or_groups, group)?;
            let qzeros = zero.unwrap_or_default();
            pack::unpack_gptq(&pack::Gptq { qweight: words, qzeros, scales }, shape, group, bits)
        }
    };
    codes.map_err(|e| {
        Error::new(Kind::Mismatch, "these packed integers don't fit")
            .source(e)
            .tensor(weight.name())
    })
}

/// Unpacks codes, and the zero points of `groups` groups per row, which are the middle of the range
/// if none are stored.
fn unpack_rows(
    words: &[i32],
    zero: Option<&[i32]>,
    shape: [usize; 2],
    bits: u32,
    groups: usize,
) -> Result<(Vec<u8>, Vec<u8>), QuantizeError> {
    let zeros = match zero {
        Some(zero) => pack::unpack_columns(zero, shape[0], groups, bits)?,
        None => vec![1 << (bits - 1); shape[0] * groups],
    };
    Ok((pack::unpack_rows(words, shape[1], bits)?, zeros))
}

/// Checks that groups are runs of `group` columns.
fn check_order(group_of: &Weight, group: usize) -> Result<()> {
    let groups = words(group_of)?;
    if groups.iter().enumerate().all(|(column, found)| *found as usize == column / group) {
        return Ok(());
    }
    let what = "groups of columns out of order are not read by this version";
    Err(Error::new(Kind::Unsupported, what)
        .tensor(group_of.name())
        .remedy("quantize with static groups"))
}
