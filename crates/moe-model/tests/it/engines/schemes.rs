//! Tests the schemes that vLLM and SGLang take, by bits, groups and blocks.

use moe_checkpoint::quantization::{Blocks, Scheme};
use moe_model::Answer::{NotKnown, Refuses, Takes};
use moe_model::{Answer, Model};
use serde_json::json;

use super::models::{active, compressed, fp8, gptq, integers, plain, said};
use super::{WIDE, expect};

#[test]
fn models_without_quantized_experts_have_no_verdicts() {
    assert_eq!(plain(WIDE).engines(), []);
}

#[test]
fn vllm_takes_packed_integers_by_their_bits_groups_and_symmetry() {
    let is = |scheme: Scheme, shape: [usize; 2], answer: Answer, what: &str| {
        expect(&compressed(shape, scheme), "vLLM", answer, what)
    };
    is(integers(4, 128, true), WIDE, Takes, "up to 2 (4: groups of 128 don't divide 192");
    is(integers(8, 32, true), WIDE, Takes, "up to 8");
    is(integers(4, -1, true), WIDE, Takes, "up to 8");
    is(integers(4, 32, true), [2048 + 32, 768], Takes, "Triton");
    is(integers(4, -1, true), [2048 + 32, 768], Refuses, "128 doesn't divide the hidden size 2080");
    is(integers(4, -1, true), [2048 + 32, 768], Refuses, "--group-size 32");
    is(integers(4, -1, true), [2048, 20], Refuses, "words of 8 don't divide 20");
    is(integers(4, 64, true), [2048, 96], Refuses, "groups of 64 don't divide 96");
    is(integers(4, 96, true), [2048, 96], Refuses, "groups of 96 don't divide the hidden size");
    is(integers(4, 16, true), WIDE, NotKnown, "groups of 16");
    is(integers(3, 64, true), WIDE, NotKnown, "3 bits");
    is(integers(2, -1, true), WIDE, Refuses, "2-bit experts need groups");
    is(integers(4, 64, false), WIDE, Takes, "up to 4");
    is(integers(8, 64, false), WIDE, Refuses, "zero points at 4 bits");
    is(
        integers(4, 32, true),
        [2048, 768 - 32],
        Takes,
        "on one GPU (tensor parallel 2: groups of 32 don't divide 368",
    );
    is(integers(4, 32, true), [2048, 96], Takes, "2: groups of 32 don't divide 48");
}

#[test]
fn sglang_takes_packed_integers_by_their_bits_groups_and_symmetry() {
    let is = |scheme: Scheme, shape: [usize; 2], answer: Answer, what: &str| {
        expect(&compressed(shape, scheme), "SGLang", answer, what)
    };
    is(integers(4, 128, true), WIDE, Takes, "up to 2 (4: groups of 128 don't divide 192");
    is(integers(8, -1, true), WIDE, Takes, "up to 4 (8: tiles of 64 don't divide 96");
    is(integers(3, 64, true), WIDE, Refuses, "4 and 8 bits");
    is(integers(4, 64, false), WIDE, Refuses, "AWQ");
    is(integers(4, 16, true), WIDE, Refuses, "not 16; quantize with --group-size 128");
    is(integers(4, 32, true), [2048 + 32, 768], Refuses, "hidden size that 128 divides, not 2080");
    is(integers(4, 32, true), [2048, 96], Refuses, "tiles of 64 don't divide 96");
}

#[test]
fn gptq_is_taken_symmetric_in_4_and_8_bits() {
    let both = |model: &Model, answer: Answer, what: &str| {
        expect(model, "vLLM", answer, what);
        expect(model, "SGLang", answer, what);
    };
    both(&gptq(WIDE, 4, 64, true), Takes, "tensor parallel up to");
    both(&gptq(WIDE, 8, -1, true), Takes, "tensor parallel up to");
    both(&gptq(WIDE, 4, 64, false), Refuses, "symmetric");
    both(&gptq(WIDE, 3, 64, true), Refuses, "4 and 8 bits");
    both(&gptq([2080, 768], 4, -1, true), Refuses, "2080");
    // vLLM halves groups where they don't fit.
    expect(&gptq(WIDE, 4, 128, true), "vLLM", Takes, "up to 8");
    expect(&gptq(WIDE, 4, 128, true), "SGLang", Takes, "up to 2 (4: groups of 128");
    expect(&gptq([2048, 16], 4, 32, true), "vLLM", Refuses, "groups of 32 don't divide 16");
    expect(&gptq([2048, 20], 4, -1, true), "vLLM", Refuses, "words of 8 don't divide 20");
    expect(&gptq(WIDE, 4, 16, true), "vLLM", NotKnown, "groups of 16");
    expect(&gptq(WIDE, 4, 16, true), "SGLang", Refuses, "not 16");
    let shuffled = said(gptq(WIDE, 4, 128, true), json!({ "desc_act": true }));
    expect(&shuffled, "vLLM", Refuses, "out of order");
    expect(&shuffled, "SGLang", NotKnown, "out of order");
    for transformers in ["transformers 5", "transformers 4"] {
        expect(&gptq(WIDE, 4, 128, true), transformers, Refuses, "GPTQModel");
    }
}

#[test]
fn float8_is_taken_in_whole_blocks_or_with_quantized_activations() {
    let blocks = |block| Scheme::Fp8(Blocks::Of(block));
    expect(&fp8(WIDE, [128, 128]), "vLLM", Takes, "up to 8");
    expect(&fp8([2048, 128], [128, 128]), "vLLM", Takes, "up to 4 (8: neither");
    expect(&fp8([2048, 80], [128, 128]), "vLLM", Refuses, "80 neurons");
    expect(&fp8(WIDE, [128, 128]), "SGLang", Takes, "up to 2 (4: blocks of 128 don't divide 192");
    expect(&fp8([2048, 96], [128, 128]), "SGLang", Refuses, "blocks of 128 don't divide 96");
    for scheme in [Scheme::Fp8(Blocks::Rows), blocks([128, 128])] {
        for engine in ["vLLM", "SGLang"] {
            expect(&compressed(WIDE, scheme), engine, Refuses, "input_activations");
            expect(&active(compressed(WIDE, scheme)), engine, Takes, "rounded to float8");
        }
    }
    for engine in ["vLLM", "SGLang"] {
        expect(&fp8(WIDE, [64, 64]), engine, NotKnown, "64 × 64");
        expect(
            &active(compressed([2048, 96], blocks([128, 128]))),
            engine,
            Refuses,
            "blocks of 128",
        );
        expect(&active(compressed(WIDE, integers(4, 128, true))), engine, NotKnown, "activations");
    }
}
