//! Tests what transformers takes, in the versions that were tried.

use moe_checkpoint::Dtype;
use moe_checkpoint::quantization::{Blocks, Scheme};
use moe_model::Answer::{NotKnown, Refuses, Takes};
use moe_model::Packing;
use serde_json::{Value, json};

use super::models::{active, compressed, encoded, fp8, integers, said, weight, with_first_gate};
use super::{WIDE, expect};

#[test]
fn transformers_take_what_was_tried() {
    let (newer, older) = ("transformers 5.23.0", "transformers 4.57.6");
    let packed = || compressed(WIDE, integers(4, 128, true));
    expect(&packed(), newer, Takes, "dtype=\"auto\"");
    expect(&packed(), older, Takes, "takes it");
    let asymmetric = compressed(WIDE, integers(4, 128, false));
    for transformers in [newer, older] {
        expect(&asymmetric, transformers, Refuses, "zero points");
        expect(&compressed(WIDE, Scheme::Fp8(Blocks::Rows)), transformers, Takes, "takes it");
        expect(&active(packed()), transformers, NotKnown, "activations");
    }
    let other_scales = with_first_gate(packed(), |gate| {
        gate.weight = weight("plain", Dtype::BF16, &[WIDE[1], WIDE[0]]);
        encoded(gate, integers(4, 128, true), Packing::Rows, Dtype::F32);
    });
    expect(&other_scales, newer, Refuses, "dtype of the scales");
    expect(&other_scales, older, Takes, "takes it");
    let without_status = said(packed(), json!({ "quant_method": "compressed-tensors" }));
    expect(&without_status, older, Refuses, "quantization_status");
}

#[test]
fn transformers_take_blocks_of_float8_that_were_tried() {
    let (newer, older) = ("transformers 5.23.0", "transformers 4.57.6");
    let blocks = active(compressed(WIDE, Scheme::Fp8(Blocks::Of([128, 128]))));
    expect(&blocks, newer, Refuses, "in blocks");
    expect(&blocks, older, Takes, "rounded to float8");
    expect(&fp8(WIDE, [128, 128]), newer, Takes, "rounded to bfloat16");
    expect(&fp8(WIDE, [128, 128]), older, Refuses, "GPU");
}

/// Seen with transformers 5.23.0 and 4.57.6 (`golden/loaders/verdicts.json`); both is what each
/// refuses.
#[test]
fn transformers_refuse_what_a_config_says_wrongly() {
    let (newer, older) = ("transformers 5.23.0", "transformers 4.57.6");
    let packed = |said_of_it: Value| said(compressed(WIDE, integers(4, 128, true)), said_of_it);
    let group = |key: &str, value: Value| {
        let mut group =
            json!({ "weights": { "type": "int", "dynamic": false }, "format": "pack-quantized" });
        *group.pointer_mut(key).unwrap() = value;
        json!({ "quantization_status": "compressed", "config_groups": { "group_0": group } })
    };
    expect(&packed(json!({ "quantization_status": "compressed" })), older, Takes, "takes it");
    expect(&packed(group("/format", Value::Null)), older, Takes, "takes it");
    for (said, what) in [
        (json!({ "quantization_status": null }), "no null for quantization_status"),
        (json!({ "quantization_status": "compressed", "format": null }), "no null for format"),
        (
            json!({ "quantization_status": "compressed", "kv_cache_scheme": { "num_bits": 8 } }),
            "scales of keys",
        ),
        (group("/weights/dynamic", json!(true)), "dynamic"),
        (group("/format", json!("int-quantized")), "int-quantized"),
    ] {
        expect(&packed(said.clone()), newer, Refuses, what);
        expect(&packed(said), older, Refuses, what);
    }
    for said in [
        json!({ "quantization_status": "frozen" }),
        json!({ "quantization_status": "compressed", "ignore": ["Linear"] }),
    ] {
        expect(&packed(said.clone()), newer, Takes, "takes it");
        expect(&packed(said), older, Refuses, "config.json");
    }
}

#[test]
fn transformers_refuse_experts_some_of_whose_matrices_are_plain() {
    let newer = "transformers 5.23.0";
    let one_plain = with_first_gate(compressed(WIDE, integers(4, 128, true)), |gate| {
        gate.weight = weight("plain", Dtype::BF16, &[WIDE[1], WIDE[0]]);
    });
    expect(&one_plain, newer, Refuses, "some of their matrices are plain");
}

/// Blocks that don't divide a matrix of more than one: 5.23 was off by 9.1 in logits, or raised.
#[test]
fn transformers_refuse_blocks_that_do_not_divide_a_matrix() {
    let (newer, older) = ("transformers 5.23.0", "transformers 4.57.6");
    for shape in [[2048, 200], [2048 + 64, 768]] {
        expect(&fp8(shape, [128, 128]), newer, Refuses, "splits scales evenly");
        let blocks = compressed(shape, Scheme::Fp8(Blocks::Of([128, 128])));
        expect(&blocks, newer, Refuses, "splits scales evenly");
        expect(&blocks, older, Takes, "takes it");
    }
    expect(&fp8([2048, 96], [128, 128]), newer, Takes, "rounded to bfloat16");
}
