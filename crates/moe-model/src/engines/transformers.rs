//! transformers with compressed-tensors 0.20, read and tried (`golden/quantize/exact-config.md`,
//! `scripts/interop/quantized.py`).

use moe_checkpoint::quantization::{Blocks, Scheme};
use moe_checkpoint::{Dtype, Quantization};
use serde_json::Value;

use super::experts::{QuantizedExperts, dtype_name};
use super::verdict::{EngineAnswer, not_known, refuses};

pub(super) const NEWER: &str = "transformers 5.23.0";
pub(super) const OLDER: &str = "transformers 4.57.6";

/// `integrations/compressed_tensors.py`, `integrations/finegrained_fp8.py`: experts are decoded on
/// loading, to the dtype of their scales (Hugging Face's fp8: to the model's), whatever `dtype`
/// says.
pub(super) fn newer(experts: &QuantizedExperts<'_>) -> EngineAnswer {
    common(experts)?;
    if experts.schemes.len() > 1 {
        // `integrations/compressed_tensors.py` (get_experts_scheme): the group whose targets say
        // "experts", else the first with a class.
        return refuses(
            "it decodes all routed experts by one config group, where shapes allow it without an error; \
             transformers 4.57 reads each by its own",
        );
    }
    if experts.mixed {
        return refuses(
            "it decodes all routed experts alike, and can't where some of their matrices are plain",
        );
    }
    if let Some([rows, columns]) = experts.ragged {
        // `integrations/finegrained_fp8.py` (Fp8Dequantize) takes rows / rows of scales for a
        // block; compressed-tensors' raises.
        return refuses(format!(
            "without a GPU it splits scales evenly, and blocks don't divide a matrix of {rows} × {columns}"
        ));
    }
    decoded(experts)
}

/// Says which dtype the newer version computes with, after it has decoded the experts.
fn decoded(experts: &QuantizedExperts<'_>) -> EngineAnswer {
    let computed = experts.dtype.map_or("float32", dtype_name);
    let scales_match = experts.scales.iter().all(|scale| *scale == computed);
    match experts.quantization {
        Quantization::BlockFp8 { .. } => {}
        _ if has_blocks(experts) && experts.quantizes_activations() => {
            return refuses("it cannot convert float8 in blocks with quantized activations");
        }
        _ if has_floats(experts) => return Ok(String::new()),
        _ if !scales_match => {
            return refuses(format!(
                "it computes in the dtype of the scales, which is not the model's, {computed}"
            ));
        }
        _ => {}
    }
    Ok(match experts.dtype {
        Some(Dtype::F32) | None => String::new(),
        Some(_) => format!(
            "with dtype=\"auto\", its values rounded to {computed}; in float32 its forward pass fails"
        ),
    })
}

pub(super) fn older(experts: &QuantizedExperts<'_>) -> EngineAnswer {
    common(experts)?;
    if let Quantization::BlockFp8 { .. } = experts.quantization {
        return refuses(
            "it refuses fp8 without a GPU, and with one rounds scales to the model's dtype; use transformers 5",
        );
    }
    if experts.said.is_object()
        && experts.said.get("quantization_status").is_none_or(|status| status != "compressed")
    {
        return refuses(
            "it reads no scales where quantization_status isn't \"compressed\" in config.json; set it",
        );
    }
    if ignores_linear(&experts.said) {
        return refuses(
            "it quantizes no expert where ignore lists the class Linear; take that out of config.json",
        );
    }
    if has_floats(experts) && experts.quantizes_activations() {
        return Ok("activations rounded to float8".to_owned());
    }
    Ok(String::new())
}

/// Checks what both versions require of experts.
fn common(experts: &QuantizedExperts<'_>) -> EngineAnswer {
    if let Quantization::Gptq(_) = experts.quantization {
        return refuses(
            "it asks for optimum, and even with that the experts do not work; GPTQModel reads them",
        );
    }
    if let Some(why) = invalid(&experts.said) {
        return refuses(why);
    }
    if !experts.hub_names {
        return refuses(
            "it looks for quantized experts under the hub's names, which `quantize` writes",
        );
    }
    if experts.partial || (experts.schemes.len() == 1 && !experts.targets_linear()) {
        return not_known("one scheme was tried for \"Linear\" in all layers alone");
    }
    common_schemes(experts)
}

/// Checks what both versions require of the encoding of experts' matrices.
fn common_schemes(experts: &QuantizedExperts<'_>) -> EngineAnswer {
    if experts.schemes.iter().any(has_zeros) {
        return refuses(
            "it cannot load zero points of compressed-tensors' experts; quantize without --asymmetric",
        );
    }
    if experts.shuffles_columns() {
        return not_known("groups of columns out of order were not tried");
    }
    if !has_floats(experts) && experts.quantizes_activations() {
        return not_known("integers with quantized activations were not tried");
    }
    Ok(String::new())
}

/// Names a setting of a `quantization_config` that compressed-tensors refuses, or that makes
/// loaders look for other tensors; None if there is none.
fn invalid(said: &Value) -> Option<String> {
    let said = said.as_object()?;
    for key in ["quantization_status", "format"] {
        if said.get(key).is_some_and(Value::is_null) {
            return Some(format!(
                "compressed-tensors takes no null for {key}; set it, or remove it"
            ));
        }
    }
    if said.get("kv_cache_scheme").is_some_and(|scheme| !scheme.is_null()) {
        return Some(
            "kv_cache_scheme calls for scales of keys and values, which aren't there; set it to null".to_owned(),
        );
    }
    let groups = said.get("config_groups").and_then(Value::as_object)?;
    groups.iter().find_map(|(name, group)| invalid_group(name, group))
}

fn invalid_group(name: &str, group: &Value) -> Option<String> {
    let weights = group.get("weights")?;
    if weights.get("dynamic").is_some_and(|dynamic| *dynamic != false) {
        return Some(format!(
            "compressed-tensors takes no weights that are dynamic, as those of {name} are"
        ));
    }
    let format = group.get("format").filter(|format| !format.is_null())?;
    let is_float = weights.get("type").is_some_and(|kind| kind == "float");
    let right = if is_float { "float-quantized" } else { "pack-quantized" };
    (format != right)
        .then(|| format!("{name} has the format {format}, where its tensors are {right}"))
}

fn has_zeros(scheme: &Scheme) -> bool {
    matches!(scheme, Scheme::Integers(integers) if !integers.symmetric)
}

fn ignores_linear(said: &Value) -> bool {
    said.get("ignore")
        .and_then(Value::as_array)
        .is_some_and(|listed| listed.iter().any(|name| name == "Linear"))
}

fn has_floats(experts: &QuantizedExperts<'_>) -> bool {
    experts.schemes.iter().any(|scheme| matches!(scheme, Scheme::Fp8(_)))
}

fn has_blocks(experts: &QuantizedExperts<'_>) -> bool {
    experts.schemes.iter().any(|scheme| matches!(scheme, Scheme::Fp8(Blocks::Of(_))))
}
