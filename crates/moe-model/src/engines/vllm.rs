//! vLLM, on CUDA. Files are below `vllm/model_executor/layers/`.

use moe_checkpoint::Quantization;
use moe_checkpoint::quantization::{Blocks, Integers, Scheme};

use super::experts::QuantizedExperts;
use super::projections::Projections;
use super::sizes::{misfit, other_groups};
use super::verdict::{EngineAnswer, every, not_known, refuses};

pub(super) const VERSION: &str = "vLLM 0.33.0";

/// Group sizes of the Marlin kernels, in addition to whole rows
/// (`quantization/utils/marlin_utils.py`).
const MARLIN_GROUPS: [usize; 3] = [32, 64, 128];

pub(super) fn takes(experts: &QuantizedExperts<'_>) -> EngineAnswer {
    // `quantization/compressed_tensors/compressed_tensors_moe/compressed_tensors_moe.py`
    // (get_moe_method), layer by layer; names come first, then classes
    // (`quantization/compressed_tensors/utils.py`, find_matched_target).
    experts.served_alike(Projections::OfHub)?;
    if experts.shuffles_columns() {
        // `compressed_tensors.py`, `gptq_utils.py`: "no longer supported".
        return refuses(
            "groups of columns out of order are no longer supported; quantize with static groups",
        );
    }
    let each = experts.schemes.iter().map(|scheme| match (experts.quantization, *scheme) {
        (Quantization::Gptq(_), Scheme::Integers(integers)) => gptq(experts, integers),
        (_, Scheme::Integers(integers)) => packed(experts, integers),
        (Quantization::BlockFp8 { .. }, Scheme::Fp8(Blocks::Of(block))) => {
            fine_grained(experts, block)
        }
        (_, Scheme::Fp8(blocks)) => float_quantized(experts, blocks),
    });
    every(each)
}

/// `quantization/compressed_tensors/compressed_tensors_moe/compressed_tensors_moe_wna16.py`
/// (CompressedTensorsWNA16MoEMethod) and `fused_moe/oracle/int_wna16.py`
/// (select_wna16_moe_backend).
fn packed(experts: &QuantizedExperts<'_>, integers: Integers) -> EngineAnswer {
    if experts.quantizes_activations() {
        return not_known("its kernels for quantized activations are not looked at here");
    }
    packed_groups(experts, integers)?;
    packed_codes(integers)?;
    let ranks = experts.tensor_parallel(|rank| match integers.group {
        Some(group) => misfit(rank, group, "groups"),
        None => misfit(rank, 32 / integers.bits as usize, "words"),
    })?;
    // Marlin pads an expert's width to a multiple of 64, but never the hidden size
    // (`marlin_utils.py`, check_moe_marlin_supports_config).
    if experts.hidden.is_multiple_of(128) {
        return Ok(ranks);
    }
    Ok(format!(
        "{ranks}, by its slower Triton kernels: Marlin wants a hidden size that 128 divides"
    ))
}

/// Whether some backend has kernels for these groups of columns.
fn packed_groups(experts: &QuantizedExperts<'_>, integers: Integers) -> EngineAnswer {
    let hidden = experts.hidden;
    match integers.group {
        // `assert weight_quant.strategy == "group"` for all backends except Marlin.
        None if ![4, 8].contains(&integers.bits) => refuses(format!(
            "{}-bit experts need groups of columns; {}",
            integers.bits,
            other_groups(hidden, &experts.widths)
        )),
        None => whole_rows(experts),
        Some(group) if !hidden.is_multiple_of(group) => {
            refuses(format!("groups of {group} don't divide the hidden size {hidden}"))
        }
        Some(group) => marlin_groups(group),
    }
}

/// Whether some backend has kernels for these bit widths and zero points.
fn packed_codes(integers: Integers) -> EngineAnswer {
    let Integers { bits, symmetric, .. } = integers;
    if ![4, 8].contains(&bits) {
        return not_known(format!(
            "only its Humming kernels have {bits} bits, and their shapes are not looked at here"
        ));
    }
    if !symmetric && bits == 8 {
        return refuses(
            "its kernels have zero points at 4 bits only; quantize without --asymmetric",
        );
    }
    Ok(String::new())
}

/// Whether Marlin takes a scale for each row.
fn whole_rows(experts: &QuantizedExperts<'_>) -> EngineAnswer {
    let hidden = experts.hidden;
    if hidden.is_multiple_of(128) {
        return Ok(String::new());
    }
    let why = format!("128 doesn't divide the hidden size {hidden}, as a scale for each row needs");
    refuses(format!("{why}; {}", other_groups(hidden, &experts.widths)))
}

fn marlin_groups(group: usize) -> EngineAnswer {
    if MARLIN_GROUPS.contains(&group) {
        return Ok(String::new());
    }
    not_known(format!("groups of {group} are not among those of its Marlin kernels (32, 64, 128)"))
}

/// `quantization/auto_gptq.py` (AutoGPTQConfig, AutoGPTQMoEMethod); what Marlin doesn't take goes
/// to `moe_wna16.py`, which halves groups until they fit, down to 32.
fn gptq(experts: &QuantizedExperts<'_>, integers: Integers) -> EngineAnswer {
    let Integers { bits, group, symmetric } = integers;
    if !symmetric || ![4, 8].contains(&bits) {
        return refuses(
            "it reads symmetric GPTQ of 4 and 8 bits only; quantize to w4a16 or w8a16 without --asymmetric",
        );
    }
    let Some(group) = group else {
        whole_rows(experts)?;
        return experts.tensor_parallel(|rank| misfit(rank, 32 / bits as usize, "words"));
    };
    marlin_groups(group)?;
    experts.tensor_parallel(|rank| {
        if fit_halved(group, rank, experts.hidden) {
            return None;
        }
        misfit(rank, group, "groups")
            .or(Some(format!("groups of {group} don't divide the hidden size")))
    })
}

/// Whether groups of `group` columns, or halves of them, divide a rank's width and the hidden size.
fn fit_halved(group: usize, rank: usize, hidden: usize) -> bool {
    let mut halves = MARLIN_GROUPS.iter().filter(|halved| **halved <= group);
    halves.any(|halved| rank.is_multiple_of(*halved) && hidden.is_multiple_of(*halved))
}

/// `quantization/fp8.py` (Fp8MoEMethod), `quantization/utils/fp8_utils.py`
/// (validate_fp8_block_shape_moe) and `fused_moe/oracle/fp8.py` (refine_fp8_moe_block_shape): where
/// ranks split blocks, scales are repeated for blocks of at least 32.
fn fine_grained(experts: &QuantizedExperts<'_>, block: [usize; 2]) -> EngineAnswer {
    if block != [128, 128] {
        return not_known(format!(
            "its kernels for blocks of {} × {} are not looked at here",
            block[0], block[1]
        ));
    }
    experts.tensor_parallel(|rank| {
        let whole = rank.is_multiple_of(128);
        let finer = rank.is_multiple_of(32) && experts.hidden.is_multiple_of(32);
        (!whole && !finer)
            .then(|| format!("neither blocks of 128 nor parts of 32 divide {rank} neurons"))
    })
}

/// `compressed_tensors_moe.py`: without quantized activations, float8 in rows is taken for integers
/// and refused for its format, and float8 in blocks is an "Unsupported FusedMoe scheme". With them,
/// `compressed_tensors_moe_w8a8_fp8.py` takes either.
fn float_quantized(experts: &QuantizedExperts<'_>, blocks: Blocks) -> EngineAnswer {
    if !experts.quantizes_activations() {
        return refuses(
            "of float-quantized experts it takes those alone whose input_activations are quantized too; \
             quantize with --scheme fp8-block and the format that it has by itself",
        );
    }
    let ranks = experts.tensor_parallel(|rank| match blocks {
        Blocks::Rows => None,
        Blocks::Of([rows, columns]) => {
            misfit(rank, rows, "blocks").or_else(|| misfit(rank, columns, "blocks"))
        }
    })?;
    Ok(format!("{ranks}; activations are rounded to float8"))
}
