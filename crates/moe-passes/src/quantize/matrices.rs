//! The matrices of a model, each in its encoding.

use moe_checkpoint::Dtype;
use moe_checkpoint::quantization::{Integers, Quantization, Scheme};
use moe_math::quantize;
use moe_model::{Attention, Expert, Moe, Result, Weight};

use super::encode::{Store, scale_dtype};
use super::options::{QuantizeOptions, QuantizedPart};

/// The data that a quantized matrix is made from.
pub(super) enum MadeWeight {
    Codes(quantize::Codes),
    Values(Vec<f32>),
}

impl MadeWeight {
    fn codes(&self) -> &quantize::Codes {
        match self {
            Self::Codes(codes) => codes,
            Self::Values(_) => unreachable!("integers are made of codes"),
        }
    }

    fn values(&self) -> &[f32] {
        match self {
            Self::Values(values) => values,
            Self::Codes(_) => unreachable!("floats are made of values"),
        }
    }
}

impl QuantizeOptions {
    /// `moe` with each matrix that is to be quantized replaced by what `of` makes of it. Matrices
    /// of an expert are gate, up and down. Networks are counted: the routed experts, then the
    /// shared one.
    pub(super) fn quantized(
        &self,
        moe: &Moe,
        mut of: impl FnMut(usize, usize, &Weight) -> Result<Weight>,
    ) -> Result<Moe> {
        let mut moe = moe.clone();
        let shared_place = moe.experts.len();
        let mut expert = |place: usize, expert: &mut Expert| -> Result<()> {
            for (matrix, linear) in
                [&mut expert.gate, &mut expert.up, &mut expert.down].into_iter().enumerate()
            {
                linear.weight = of(place, matrix, &linear.weight)?;
            }
            Ok(())
        };
        for (index, network) in moe.experts.iter_mut().enumerate() {
            expert(index, network)?;
        }
        if let Some(shared) =
            moe.shared.as_mut().filter(|_| self.include.contains(&QuantizedPart::Shared))
        {
            expert(shared_place, &mut shared.expert)?;
        }
        Ok(moe)
    }

    /// `weight` in `scheme`, from the data `made` for it; without data it has only its shape.
    pub(super) fn encoded(
        &self,
        weight: &Weight,
        scheme: Scheme,
        store: &Store,
        made: Option<&MadeWeight>,
    ) -> Result<Weight> {
        match scheme {
            Scheme::Integers(integers) => {
                store.packed(weight, self.packing(), integers, made.map(MadeWeight::codes))
            }
            Scheme::Fp8(blocks) => {
                let dtype = match self.quantization()? {
                    Quantization::BlockFp8 { .. } => Dtype::F32,
                    Quantization::Compressed(_) | Quantization::Gptq(_) => weight.dtype(),
                };
                store.float(weight, blocks, dtype, made.map(MadeWeight::values))
            }
        }
    }
}

/// `attention` with each projection replaced by what `of` makes of it, in the order of
/// [`Attention::linears`].
pub(super) fn quantized_attention(
    attention: &Attention,
    mut of: impl FnMut(&Weight) -> Result<Weight>,
) -> Result<Attention> {
    let mut attention = attention.clone();
    for linear in attention.linears_mut() {
        linear.weight = of(&linear.weight)?;
    }
    Ok(attention)
}

/// The grids of codes for `weight`.
pub(super) fn grid(
    options: &QuantizeOptions,
    integers: Integers,
    weight: &Weight,
) -> Result<quantize::GridScheme> {
    let scale_dtype = scale_dtype(weight, options.packing())?;
    Ok(quantize::GridScheme {
        bits: integers.bits,
        symmetric: integers.symmetric,
        group: integers.group,
        scale_dtype,
    })
}
