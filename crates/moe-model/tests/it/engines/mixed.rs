//! Tests what engines say of experts, layers and matrices that differ from each other.

use std::path::Path;

use moe_checkpoint::Dtype;
use moe_checkpoint::quantization::{Quantization, Target};
use moe_model::Answer::{NotKnown, Refuses, Takes};
use moe_model::{Ffn, Linear, Model, Packing};
use serde_json::{Value, json};

use super::models::{compressed, encoded, integers, plain, said, weight, with_first_gate};
use super::{WIDE, expect, verdict};

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

/// `model` with its one group for the modules that `target` names.
fn targeted(mut model: Model, target: &str) -> Model {
    let Some(Quantization::Compressed(said)) = &mut model.quantization else {
        panic!("it is compressed-tensors")
    };
    said.groups[0].targets = vec![Target::parse(target).unwrap()];
    model
}

fn actorder() -> Value {
    json!({ "config_groups": { "group_0": { "weights": { "actorder": "group" } } }, "quantization_status": "compressed" })
}

const SERVERS: [&str; 2] = ["vLLM", "SGLang"];

/// Experts of packed integers with 4 bits.
fn packed() -> Model {
    compressed(WIDE, integers(4, 128, true))
}

fn plain_gate(gate: &mut Linear) {
    gate.weight = weight("plain", Dtype::BF16, &[WIDE[1], WIDE[0]]);
}

/// The same with a plain first gate, which a config group doesn't match.
fn one_plain() -> Model {
    with_first_gate(packed(), plain_gate)
}

/// The same with 8 bits in the first gate.
fn two_bit_widths() -> Model {
    with_first_gate(packed(), |gate| {
        plain_gate(gate);
        encoded(gate, integers(8, 128, true), Packing::Rows, Dtype::BF16);
    })
}

/// The same with another layer, whose experts are plain.
fn one_plain_layer() -> Model {
    let mut model = packed();
    model.layers.push(plain(WIDE).layers.remove(0));
    model
}

#[test]
fn servers_want_one_scheme_for_all_experts() {
    for engine in SERVERS {
        expect(&one_plain(), engine, Refuses, "one scheme");
        expect(&two_bit_widths(), engine, Refuses, "one scheme");
        expect(&one_plain_layer(), engine, NotKnown, "layers whose experts are not quantized");
    }
}

#[test]
fn servers_look_for_experts_under_the_names_they_expect() {
    for engine in SERVERS {
        let tensors = targeted(packed(), "re:.*experts.*");
        expect(&tensors, engine, Takes, "tensor");
        let second = targeted(packed(), r"re:.*experts\.1\..*");
        expect(&second, engine, Refuses, "expert 0");
        let projections = targeted(packed(), "re:.*_proj$");
        expect(&projections, engine, Takes, "tensor");
    }
    // Of a Mixtral's matrices, that SGLang asks for by other names than they have.
    let golden =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/quantize/checkpoints/mixtral.w8");
    let named = targeted(Model::open(&golden).unwrap(), r"re:.*\.(w1|w2|w3)$");
    expect(&named, "SGLang", Refuses, "gate_proj, up_proj and down_proj");
    assert!(!verdict(&named, "vLLM").to_string().contains("expert 0"));
}

#[test]
fn transformers_want_one_config_group() {
    for transformers in ["transformers 5", "transformers 4"] {
        expect(&targeted(packed(), "re:.*experts.*"), transformers, NotKnown, "Linear");
        expect(&one_plain_layer(), transformers, NotKnown, "Linear");
    }
    expect(&one_plain(), "transformers 4", Takes, "takes it");
    expect(&two_bit_widths(), "transformers 5", Refuses, "one config group");
}

#[test]
fn columns_out_of_order_are_not_taken() {
    let model = said(packed(), actorder());
    expect(&model, "vLLM", Refuses, "out of order");
    expect(&model, "SGLang", NotKnown, "out of order");
    expect(&model, "transformers 5", NotKnown, "out of order");
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
