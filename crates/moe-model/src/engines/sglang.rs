//! SGLang, on CUDA. Files are below `python/sglang/srt/layers/quantization/`.

use moe_checkpoint::Quantization;
use moe_checkpoint::quantization::{Blocks, Integers, Scheme};

use super::experts::QuantizedExperts;
use super::projections::Projections;
use super::sizes::{group_of, misfit, other_groups};
use super::verdict::{EngineAnswer, every, not_known, refuses};

pub(super) const VERSION: &str = "SGLang 0.5.23";

pub(super) fn takes(experts: &QuantizedExperts<'_>) -> EngineAnswer {
    // `compressed_tensors/compressed_tensors.py` (get_moe_scheme), layer by layer: .0.gate_proj,
    // .0.up_proj and .0.down_proj in all families; names come first, then classes
    // (`compressed_tensors/utils.py`, find_matched_target).
    experts.served_alike(Projections::Plain)?;
    if experts.shuffles_columns() {
        return not_known("its kernels for groups of columns out of order are not looked at here");
    }
    let each = experts.schemes.iter().map(|scheme| match (experts.quantization, *scheme) {
        (Quantization::Gptq(_), Scheme::Integers(integers)) => gptq(experts, integers),
        (_, Scheme::Integers(integers)) => packed(experts, integers),
        (Quantization::BlockFp8 { .. }, Scheme::Fp8(Blocks::Of(block))) => {
            whole_blocks(experts, block)
        }
        (_, Scheme::Fp8(blocks)) => float_quantized(experts, blocks),
    });
    every(each)
}

/// `compressed_tensors/schemes/compressed_tensors_wNa16_moe.py` (CompressedTensorsWNA16MoE).
fn packed(experts: &QuantizedExperts<'_>, integers: Integers) -> EngineAnswer {
    if experts.quantizes_activations() {
        return not_known("its kernels for quantized activations are not looked at here");
    }
    if ![4, 8].contains(&integers.bits) {
        return refuses(format!(
            "it has 4 and 8 bits for experts, not {}; quantize to w4a16 or w8a16",
            integers.bits
        ));
    }
    if !integers.symmetric {
        // process_weights_after_loading calls moe_awq_to_marlin_zero_points, which undoes the
        // interleaving of zero points in AWQ's files, although compressed-tensors' files have none;
        // `fused_marlin_moe.py` (get_scalar_type) asserts 4 bits.
        return refuses(
            "it takes zero points for AWQ's, in another order; quantize without --asymmetric",
        );
    }
    marlin(experts, integers)
}

/// `gptq/gptq.py`: what GPTQMarlinConfig.is_gptq_marlin_compatible doesn't take goes to GPTQConfig,
/// which refuses experts.
fn gptq(experts: &QuantizedExperts<'_>, integers: Integers) -> EngineAnswer {
    if !integers.symmetric || ![4, 8].contains(&integers.bits) {
        return refuses(
            "it reads symmetric GPTQ of 4 and 8 bits only; quantize to w4a16 or w8a16 without --asymmetric",
        );
    }
    marlin(experts, integers)
}

/// `marlin_utils.py`: MARLIN_SUPPORTED_GROUP_SIZES, and the tiles of
/// check_moe_marlin_supports_layer, which are those of the kernel
/// (`kernels/jit/csrc/gemm/marlin_moe/moe_wna16_marlin.cuh`: rows by 128, columns by 64).
fn marlin(experts: &QuantizedExperts<'_>, integers: Integers) -> EngineAnswer {
    if ![-1, 32, 64, 128].contains(&group_of(integers)) {
        let other = other_groups(experts.hidden, &experts.widths);
        return refuses(format!(
            "its kernels have groups of 32, 64 and 128, not {}; {other}",
            group_of(integers)
        ));
    }
    if !experts.hidden.is_multiple_of(128) {
        return refuses(format!(
            "its kernels want a hidden size that 128 divides, not {}",
            experts.hidden
        ));
    }
    let part = integers.group.unwrap_or(64).max(64);
    experts.tensor_parallel(|rank| misfit(rank, part, if part == 64 { "tiles" } else { "groups" }))
}

/// `fp8.py` (Fp8MoEMethod.create_weights).
fn whole_blocks(experts: &QuantizedExperts<'_>, block: [usize; 2]) -> EngineAnswer {
    if block != [128, 128] {
        return not_known(format!(
            "its kernels for blocks of {} × {} are not looked at here",
            block[0], block[1]
        ));
    }
    experts.tensor_parallel(|rank| misfit(rank, 128, "blocks"))
}

/// `compressed_tensors/compressed_tensors.py` (get_moe_scheme): _is_fp8_w8a8 needs quantized
/// activations, else it is an "Unsupported FusedMoe scheme";
/// `schemes/compressed_tensors_w8a8_fp8_moe.py`.
fn float_quantized(experts: &QuantizedExperts<'_>, blocks: Blocks) -> EngineAnswer {
    if !experts.quantizes_activations() {
        return refuses(
            "of float-quantized experts it takes those alone whose input_activations are quantized too; \
             quantize with --scheme fp8-block and the format that it has by itself",
        );
    }
    let ranks = match blocks {
        Blocks::Rows => experts.tensor_parallel(|_| None)?,
        Blocks::Of(block) => whole_blocks(experts, block)?,
    };
    Ok(format!("{ranks}; activations are rounded to float8"))
}
