//! transformers with compressed-tensors 0.20, read and tried (`golden/quantize/exact-config.md`, `scripts/interop/quantized.py`).

use moe_checkpoint::quantization::{Blocks, Scheme};
use moe_checkpoint::{Dtype, Quantization};

use super::{Experts, Found, dtype_name, not_known, refuses};

pub(super) const NEWER: &str = "transformers 5.23.0";
pub(super) const OLDER: &str = "transformers 4.57.6";

/// `integrations/compressed_tensors.py`, `integrations/finegrained_fp8.py`: experts are decoded on loading, to the dtype of their scales
/// (Hugging Face's fp8: to the model's), whatever `dtype` says.
pub(super) fn newer(experts: &Experts<'_>) -> Found {
    common(experts)?;
    if experts.schemes.len() > 1 {
        // `integrations/compressed_tensors.py` (get_experts_scheme): the group whose targets say "experts", else the first with a class.
        return refuses(
            "it decodes all routed experts by one config group, where shapes allow it without an error; \
             transformers 4.57 reads each by its own",
        );
    }
    let computed = experts.dtype.map_or("float32", dtype_name);
    let scales_match = experts.scales.iter().all(|scale| *scale == computed);
    match experts.quantization {
        Quantization::BlockFp8 { .. } => {}
        _ if has_blocks(experts) && experts.quantizes_activations() => {
            return refuses("it cannot convert float8 in blocks with quantized activations");
        }
        _ if has_floats(experts) => return Ok(String::new()),
        _ if !scales_match => {
            return refuses(format!("it computes in the dtype of the scales, which is not the model's, {computed}"));
        }
        _ => {}
    }
    Ok(match experts.dtype {
        Some(Dtype::F32) | None => String::new(),
        Some(_) => format!("with dtype=\"auto\", its values rounded to {computed}; in float32 its forward pass fails"),
    })
}

pub(super) fn older(experts: &Experts<'_>) -> Found {
    common(experts)?;
    if let Quantization::BlockFp8 { .. } = experts.quantization {
        return refuses(
            "it refuses fp8 without a GPU, and with one rounds scales to the model's dtype; use transformers 5",
        );
    }
    if experts.said.is_object() && experts.said.get("quantization_status").is_none() {
        return refuses("it reads no scales where config.json has no quantization_status; set it to \"compressed\"");
    }
    match has_floats(experts) && experts.quantizes_activations() {
        true => Ok("activations rounded to float8".to_owned()),
        false => Ok(String::new()),
    }
}

/// What neither takes.
fn common(experts: &Experts<'_>) -> Found {
    if let Quantization::Gptq(_) = experts.quantization {
        return refuses("it asks for optimum, and even with that the experts do not work; GPTQModel reads them");
    }
    if !experts.hub_names {
        return refuses("it looks for quantized experts under the hub's names, which `quantize` writes");
    }
    if experts.partial || (experts.schemes.len() == 1 && !experts.targets_linear()) {
        return not_known("one scheme was tried for \"Linear\" in all layers alone");
    }
    if experts.schemes.iter().any(|scheme| matches!(scheme, Scheme::Integers(integers) if !integers.symmetric)) {
        return refuses("it cannot load zero points of compressed-tensors' experts; quantize without --asymmetric");
    }
    if experts.shuffles_columns() {
        return not_known("groups of columns out of order were not tried");
    }
    if !has_floats(experts) && experts.quantizes_activations() {
        return not_known("integers with quantized activations were not tried");
    }
    Ok(String::new())
}

fn has_floats(experts: &Experts<'_>) -> bool {
    experts.schemes.iter().any(|scheme| matches!(scheme, Scheme::Fp8(_)))
}

fn has_blocks(experts: &Experts<'_>) -> bool {
    experts.schemes.iter().any(|scheme| matches!(scheme, Scheme::Fp8(Blocks::Of(_))))
}
