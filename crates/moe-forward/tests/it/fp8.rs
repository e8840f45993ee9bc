//! Block-quantized weights are dequantized as torch does, bit for bit.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use moe_checkpoint::Dtype;
use moe_forward::{candle_dtype, to_f32};
use moe_math::{Compute, fp8};
use moe_model::{Kind, Model};

fn case() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/families/deepseek_v3/fp8")
}

fn reference() -> HashMap<String, Tensor> {
    candle_core::safetensors::load(case().join("dequantised.safetensors"), &Device::Cpu).unwrap()
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

#[test]
fn all_codes_have_the_values_that_torch_gives_them() {
    let values: Vec<f32> = reference()["e4m3"].to_vec1().unwrap();
    assert_eq!(values.len(), 256);
    for (code, value) in (0..=u8::MAX).zip(values) {
        let ours = fp8::e4m3(code);
        assert!(
            ours.to_bits() == value.to_bits() || (ours.is_nan() && value.is_nan()),
            "{code}: {ours}, not {value}"
        );
    }
}

#[test]
fn matrices_with_partial_blocks_are_dequantized_bit_for_bit() {
    let model = Model::open(&case().join("model")).unwrap();
    let declared = model.declare().unwrap();
    let mut compared = 0;
    for (name, expected) in reference().iter().filter(|(name, _)| *name != "e4m3") {
        let (_, weight) = declared.tensors.iter().find(|(n, _)| n == name).unwrap();
        assert_eq!(weight.dtype(), Dtype::F8_E4M3);
        assert!(weight.scale().unwrap().elements() > 1, "{name} has one block only");
        assert_eq!(bits(&to_f32(weight, &Compute::cpu()).unwrap()), bits(expected), "{name}");
        compared += 1;
    }
    assert_eq!(compared, 2);
}

/// What would make new weights of these must not take codes for values.
#[test]
fn nothing_new_is_made_in_their_encoding() {
    let model = Model::open(&case().join("model")).unwrap();
    let error = candle_dtype(&model.layers[0].attention.output().weight).unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported);
    assert!(error.to_string().contains("F8_E4M3"), "{error}");
}
