//! Which engine takes which quantized experts: every rule with a model that breaks it. Shapes are
//! made up; no weight has bytes.

use std::collections::BTreeMap;
use std::path::Path;

use moe_checkpoint::Dtype;
use moe_checkpoint::quantization::{
    Blocks, CompressedTensors, Integers, Quantization, Scheme, SchemeGroup, Target,
};
use moe_model::Answer::{NotKnown, Refuses, Takes};
use moe_model::{Answer, Ffn, Linear, Model, Packed, Packing, Verdict, Weight, WeightSource};
use serde_json::{Value, json};

struct NoBytes;

impl WeightSource for NoBytes {
    fn make(&self) -> moe_model::Result<Vec<u8>> {
        panic!("engines are asked about shapes alone")
    }
}

fn weight(name: &str, dtype: Dtype, shape: &[usize]) -> Weight {
    Weight::made(name, dtype, shape, NoBytes)
}

/// One layer with two experts and a shared one, all of `width` neurons, in bfloat16.
fn plain([hidden, width]: [usize; 2]) -> Model {
    let config = json!({
        "model_type": "qwen2_moe", "hidden_act": "silu", "hidden_size": hidden, "vocab_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 1, "num_key_value_heads": 1, "rms_norm_eps": 1e-6, "tie_word_embeddings": true, "dtype": "bfloat16",
        "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": width, "shared_expert_intermediate_size": width,
        "intermediate_size": width, "decoder_sparse_step": 1, "norm_topk_prob": true,
    });
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_owned(), vec![8, hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
    ];
    let mut add = |name: &str, shape: &[usize]| {
        shapes.push((format!("model.layers.0.{name}"), shape.to_vec()))
    };
    for norm in ["input_layernorm", "post_attention_layernorm"] {
        add(&format!("{norm}.weight"), &[hidden]);
    }
    for letter in ["q", "k", "v", "o"] {
        add(&format!("self_attn.{letter}_proj.weight"), &[hidden, hidden]);
        if letter != "o" {
            add(&format!("self_attn.{letter}_proj.bias"), &[hidden]);
        }
    }
    add("mlp.gate.weight", &[2, hidden]);
    add("mlp.shared_expert_gate.weight", &[1, hidden]);
    for expert in ["experts.0", "experts.1", "shared_expert"] {
        add(&format!("mlp.{expert}.gate_proj.weight"), &[width, hidden]);
        add(&format!("mlp.{expert}.up_proj.weight"), &[width, hidden]);
        add(&format!("mlp.{expert}.down_proj.weight"), &[hidden, width]);
    }
    let tensors: BTreeMap<_, _> = shapes
        .into_iter()
        .map(|(name, shape)| (name.clone(), weight(&name, Dtype::BF16, &shape)))
        .collect();
    Model::assemble(config.as_object().unwrap().clone(), Path::new("config.json"), tensors).unwrap()
}

fn integers(bits: u32, group: i64, symmetric: bool) -> Scheme {
    Scheme::Integers(Integers { bits, group: usize::try_from(group).ok(), symmetric })
}

fn encoded(linear: &mut Linear, scheme: Scheme, packing: Packing, scales: Dtype) {
    let shape = [linear.weight.shape()[0], linear.weight.shape()[1]];
    linear.weight = match scheme {
        Scheme::Fp8(blocks) => weight("codes", Dtype::F8_E4M3, &shape)
            .in_blocks(weight("scales", scales, &[1, 1]), blocks.size(shape)),
        Scheme::Integers(integers) => {
            let groups = shape[1] / integers.group.unwrap_or(shape[1]);
            let scale = weight("scales", scales, &packing.scales(shape[0], groups));
            let beside = match packing {
                Packing::Rows => weight("beside", Dtype::I64, &[2]),
                Packing::Columns => weight("beside", Dtype::I32, &[shape[1]]),
            };
            let words = weight("words", Dtype::I32, &packing.words(integers, shape));
            words.packed(shape, Packed { packing, integers, scale, zero: None, beside })
        }
    };
}

/// `plain` with its routed experts in the scheme.
fn quantized(shape: [usize; 2], quantization: Quantization, scheme: Scheme) -> Model {
    let mut model = plain(shape);
    let packing = if matches!(quantization, Quantization::Gptq(_)) {
        Packing::Columns
    } else {
        Packing::Rows
    };
    let Ffn::Moe(moe) = &mut model.layers[0].ffn else { panic!("it is a mixture") };
    for expert in &mut moe.experts {
        for linear in [&mut expert.gate, &mut expert.up, &mut expert.down] {
            encoded(linear, scheme, packing, Dtype::BF16);
        }
    }
    model.quantization = Some(quantization);
    model
}

fn compressed(shape: [usize; 2], scheme: Scheme) -> Model {
    let group = SchemeGroup { input_activations: Value::Null, ..SchemeGroup::linear(scheme) };
    quantized(
        shape,
        Quantization::Compressed(CompressedTensors { groups: vec![group], ignore: vec![] }),
        scheme,
    )
}

fn gptq(shape: [usize; 2], bits: u32, group: i64, symmetric: bool) -> Model {
    let scheme = integers(bits, group, symmetric);
    let Scheme::Integers(said) = scheme else { panic!("it is integers") };
    quantized(shape, Quantization::Gptq(said), scheme)
}

fn fp8(shape: [usize; 2], block: [usize; 2]) -> Model {
    quantized(shape, Quantization::BlockFp8 { block }, Scheme::Fp8(Blocks::Of(block)))
}

/// `model` as if its config said `said` of its quantization.
fn said(mut model: Model, said: Value) -> Model {
    model.config.insert("quantization_config".to_owned(), said);
    model
}

fn with_first_gate(mut model: Model, change: impl Fn(&mut Linear)) -> Model {
    let Ffn::Moe(moe) = &mut model.layers[0].ffn else { panic!("it is a mixture") };
    change(&mut moe.experts[0].gate);
    model
}

/// `model` with its one group for the modules that `target` names.
fn targeted(mut model: Model, target: &str) -> Model {
    let Some(Quantization::Compressed(said)) = &mut model.quantization else {
        panic!("it is compressed-tensors")
    };
    said.groups[0].targets = vec![Target::parse(target).unwrap()];
    model
}

/// Layers of 4 and 8 bits, as `quantize` names them; one matrix of the last has 3 bits if `inside`
/// differs.
fn of_two_widths(group: i64, inside: bool) -> Model {
    let mut model = compressed(WIDE, integers(4, group, true));
    model.layers.push(compressed(WIDE, integers(8, group, true)).layers.remove(0));
    if inside {
        let Ffn::Moe(moe) = &mut model.layers[1].ffn else { panic!("it is a mixture") };
        moe.experts.iter_mut().for_each(|expert| {
            expert.down.weight = weight("plain", Dtype::BF16, &WIDE);
            encoded(&mut expert.down, integers(3, group, true), Packing::Rows, Dtype::BF16);
        });
    }
    model.declare().unwrap().reread().unwrap()
}

#[test]
fn layers_may_differ_in_width_and_projections_may_not() {
    let (layers, projections) = (of_two_widths(128, false), of_two_widths(128, true));
    for engine in ["vLLM", "SGLang"] {
        expect(&layers, engine, Takes, "up to 2 (4: groups of 128 don't divide 192");
        expect(&projections, engine, Refuses, "all matrices of a layer's experts need one scheme");
    }
    // What holds at 4 bits and what holds at 8.
    expect(&of_two_widths(-1, false), "vLLM", Takes, "tensor parallel up to 8");
    for model in [&layers, &projections] {
        expect(model, "transformers 5", Refuses, "by one config group");
        expect(model, "transformers 4", Takes, "takes it");
    }
    // The config gives a layer's first expert another width than it has.
    let mut swapped = layers;
    let Some(Quantization::Compressed(said)) = &mut swapped.quantization else {
        panic!("it is compressed-tensors")
    };
    said.groups[1].targets = vec![Target::parse(r"re:.*layers\.0\.").unwrap()];
    for engine in ["vLLM", "SGLang"] {
        expect(&swapped, engine, Refuses, "of expert 0 in layer 0, which is another there");
    }
}

fn verdict(model: &Model, engine: &str) -> Verdict {
    let found = model.engines().into_iter().find(|verdict| verdict.engine.starts_with(engine));
    found.unwrap_or_else(|| panic!("nothing is said of {engine}"))
}

/// Each engine's answer, and what it must say.
fn expect(model: &Model, engine: &str, answer: Answer, what: &str) {
    let found = verdict(model, engine);
    assert_eq!(found.answer, answer, "{found}");
    assert!(found.to_string().contains(what), "{found}: without {what:?}");
}

const WIDE: [usize; 2] = [2048, 768];

fn actorder() -> Value {
    json!({ "config_groups": { "group_0": { "weights": { "actorder": "group" } } }, "quantization_status": "compressed" })
}

/// `model` with activations that are to be quantized too.
fn active(mut model: Model) -> Model {
    let Some(Quantization::Compressed(said)) = &mut model.quantization else {
        panic!("it is compressed-tensors")
    };
    said.groups[0].input_activations =
        json!({ "num_bits": 8, "type": "float", "strategy": "token", "dynamic": true });
    model
}

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

#[test]
fn engines_want_one_scheme_for_all_experts_under_the_names_they_look_for() {
    let all = ["vLLM", "SGLang"];
    let packed = || compressed(WIDE, integers(4, 128, true));
    let one_plain = with_first_gate(packed(), |gate| {
        gate.weight = weight("plain", Dtype::BF16, &[WIDE[1], WIDE[0]])
    });
    let two_widths = with_first_gate(packed(), |gate| {
        gate.weight = weight("plain", Dtype::BF16, &[WIDE[1], WIDE[0]]);
        encoded(gate, integers(8, 128, true), Packing::Rows, Dtype::BF16);
    });
    let mut twice = packed();
    twice.layers.push(plain(WIDE).layers.remove(0));
    for engine in all {
        expect(&one_plain, engine, Refuses, "one scheme");
        expect(&two_widths, engine, Refuses, "one scheme");
        expect(&twice, engine, NotKnown, "layers whose experts are not quantized");
        for (target, answer) in
            [("re:.*experts.*", Takes), (r"re:.*experts\.1\..*", Refuses), ("re:.*_proj$", Takes)]
        {
            expect(
                &targeted(packed(), target),
                engine,
                answer,
                if answer == Takes { "tensor" } else { "expert 0" },
            );
        }
    }
    // Of a Mixtral's matrices, that SGLang asks for by other names than they have.
    let golden =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/quantize/checkpoints/mixtral.w8");
    let named = targeted(Model::open(&golden).unwrap(), r"re:.*\.(w1|w2|w3)$");
    expect(&named, "SGLang", Refuses, "gate_proj, up_proj and down_proj");
    assert!(!verdict(&named, "vLLM").to_string().contains("expert 0"));
    for transformers in ["transformers 5", "transformers 4"] {
        expect(&targeted(packed(), "re:.*experts.*"), transformers, NotKnown, "Linear");
        expect(&twice, transformers, NotKnown, "Linear");
    }
    expect(&one_plain, "transformers 4", Takes, "takes it");
    expect(&two_widths, "transformers 5", Refuses, "one config group");
    expect(&said(packed(), actorder()), "vLLM", Refuses, "out of order");
    expect(&said(packed(), actorder()), "SGLang", NotKnown, "out of order");
    expect(&said(packed(), actorder()), "transformers 5", NotKnown, "out of order");
    assert_eq!(packed().engines().len(), 4);
}

/// What quantized shared experts leave over for tensor parallelism.
#[test]
fn shared_experts_count_where_they_are_quantized() {
    let mut model = compressed(WIDE, integers(4, 32, true));
    expect(&model, "vLLM", Takes, "up to 8");
    let Ffn::Moe(moe) = &mut model.layers[0].ffn else { panic!("it is a mixture") };
    let shared = &mut moe.shared.as_mut().unwrap().expert;
    shared.gate.weight = weight("gate", Dtype::BF16, &[96, WIDE[0]]);
    expect(&model, "vLLM", Takes, "up to 8");
    let Ffn::Moe(moe) = &mut model.layers[0].ffn else { panic!("it is a mixture") };
    encoded(
        &mut moe.shared.as_mut().unwrap().expert.gate,
        integers(4, 32, true),
        Packing::Rows,
        Dtype::BF16,
    );
    expect(&model, "vLLM", Takes, "2: groups of 32 don't divide 48");
}

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
    expect(
        &said(packed(), json!({ "quant_method": "compressed-tensors" })),
        older,
        Refuses,
        "quantization_status",
    );
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
    let one_plain = with_first_gate(compressed(WIDE, integers(4, 128, true)), |gate| {
        gate.weight = weight("plain", Dtype::BF16, &[WIDE[1], WIDE[0]]);
    });
    expect(&one_plain, newer, Refuses, "some of their matrices are plain");
    // Blocks that don't divide a matrix of more than one: 5.23 was off by 9.1 in logits, or raised.
    for shape in [[2048, 200], [2048 + 64, 768]] {
        expect(&fp8(shape, [128, 128]), newer, Refuses, "splits scales evenly");
        let blocks = compressed(shape, Scheme::Fp8(Blocks::Of([128, 128])));
        expect(&blocks, newer, Refuses, "splits scales evenly");
        expect(&blocks, older, Takes, "takes it");
    }
    expect(&fp8([2048, 96], [128, 128]), newer, Takes, "rounded to bfloat16");
}

/// A checkpoint with transformers' names in memory, which llm-compressor writes, and a sound one of
/// the same family.
#[test]
fn experts_under_other_names_than_the_hubs_are_not_taken() {
    let golden =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/quantize/checkpoints/mixtral.w8");
    let dir = tempfile::tempdir().unwrap();
    let file = std::fs::read(golden.join("model.safetensors")).unwrap();
    let header_bytes = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let (header, data) = file[8..].split_at(header_bytes);
    let mut header = String::from_utf8(header.to_vec()).unwrap();
    for (hub, other) in [
        ("block_sparse_moe", "mlp"),
        (".w1.", ".gate_proj."),
        (".w2.", ".down_proj."),
        (".w3.", ".up_proj."),
    ] {
        assert!(header.contains(hub), "{hub}");
        header = header.replace(hub, other);
    }
    let renamed = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat();
    std::fs::write(dir.path().join("model.safetensors"), renamed).unwrap();
    let config = std::fs::read_to_string(golden.join("config.json")).unwrap();
    std::fs::write(dir.path().join("config.json"), config).unwrap();
    for engine in ["vLLM", "SGLang", "transformers 5", "transformers 4"] {
        expect(&Model::open(dir.path()).unwrap(), engine, Refuses, "hub's names");
    }
    expect(&Model::open(&golden).unwrap(), "transformers 4", Takes, "takes it");
}
