//! Makes models of made-up shapes, whose weights have no bytes.

use std::collections::BTreeMap;
use std::path::Path;

use moe_checkpoint::Dtype;
use moe_checkpoint::quantization::{
    Blocks, CompressedTensors, Integers, Quantization, Scheme, SchemeGroup,
};
use moe_model::{Ffn, Linear, Model, PackedIntegers, Packing, Weight, WeightSource};
use serde_json::{Value, json};

struct NoBytes;

impl WeightSource for NoBytes {
    fn make(&self) -> moe_model::Result<Vec<u8>> {
        panic!("engines are asked about shapes alone")
    }
}

/// One layer with two experts and a shared one, all of `width` neurons, in bfloat16.
pub(super) fn plain([hidden, width]: [usize; 2]) -> Model {
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

pub(super) fn weight(name: &str, dtype: Dtype, shape: &[usize]) -> Weight {
    Weight::made(name, dtype, shape, NoBytes)
}

pub(super) fn encoded(linear: &mut Linear, scheme: Scheme, packing: Packing, scales: Dtype) {
    let shape = [linear.weight.shape()[0], linear.weight.shape()[1]];
    linear.weight = match scheme {
        Scheme::Fp8(blocks) => weight("codes", Dtype::F8_E4M3, &shape)
            .in_blocks(weight("scales", scales, &[1, 1]), blocks.size(shape)),
        Scheme::Integers(integers) => {
            let groups = shape[1] / integers.group.unwrap_or(shape[1]);
            let scale = weight("scales", scales, &packing.scales(shape[0], groups));
            let shape_or_groups = match packing {
                Packing::Rows => weight("shape_or_groups", Dtype::I64, &[2]),
                Packing::Columns => weight("shape_or_groups", Dtype::I32, &[shape[1]]),
            };
            let words = weight("words", Dtype::I32, &packing.words(integers, shape));
            words.packed(
                shape,
                PackedIntegers { packing, integers, scale, zero: None, shape_or_groups },
            )
        }
    };
}

pub(super) fn integers(bits: u32, group: i64, symmetric: bool) -> Scheme {
    Scheme::Integers(Integers { bits, group: usize::try_from(group).ok(), symmetric })
}

/// `plain` with its routed experts in the scheme.
pub(super) fn quantized(shape: [usize; 2], quantization: Quantization, scheme: Scheme) -> Model {
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

pub(super) fn compressed(shape: [usize; 2], scheme: Scheme) -> Model {
    let group = SchemeGroup { input_activations: Value::Null, ..SchemeGroup::linear(scheme) };
    quantized(
        shape,
        Quantization::Compressed(CompressedTensors { groups: vec![group], ignore: vec![] }),
        scheme,
    )
}

pub(super) fn gptq(shape: [usize; 2], bits: u32, group: i64, symmetric: bool) -> Model {
    let scheme = integers(bits, group, symmetric);
    let Scheme::Integers(said) = scheme else { panic!("it is integers") };
    quantized(shape, Quantization::Gptq(said), scheme)
}

pub(super) fn fp8(shape: [usize; 2], block: [usize; 2]) -> Model {
    quantized(shape, Quantization::BlockFp8 { block }, Scheme::Fp8(Blocks::Of(block)))
}

/// `model` as if its config said `said` of its quantization.
pub(super) fn said(mut model: Model, said: Value) -> Model {
    model.config.insert("quantization_config".to_owned(), said);
    model
}

pub(super) fn with_first_gate(mut model: Model, change: impl Fn(&mut Linear)) -> Model {
    let Ffn::Moe(moe) = &mut model.layers[0].ffn else { panic!("it is a mixture") };
    change(&mut moe.experts[0].gate);
    model
}

/// `model` with activations that are to be quantized too.
pub(super) fn active(mut model: Model) -> Model {
    let Some(Quantization::Compressed(said)) = &mut model.quantization else {
        panic!("it is compressed-tensors")
    };
    said.groups[0].input_activations =
        json!({ "num_bits": 8, "type": "float", "strategy": "token", "dynamic": true });
    model
}
