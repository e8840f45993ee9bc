//! `quantization_config`, beside weights in each encoding. What is understood is dequantized.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use moe_checkpoint::CONFIG_FILE;
use moe_checkpoint::quantization::QUANTIZATION_KEY;
use moe_forward::quantized_values;
use moe_fuzz::{Base, accepted, quantized_bases};
use moe_model::Model;
use serde_json::Value;

static BASES: LazyLock<Vec<Base>> = LazyLock::new(quantized_bases);

fuzz_target!(|said: &[u8]| {
    let Ok(said) = serde_json::from_slice::<Value>(said) else { return };
    for base in BASES.iter() {
        let mut config = base.config.clone();
        config[QUANTIZATION_KEY] = said.clone();
        base.write(CONFIG_FILE, config.to_string().as_bytes());
        let Some(mut model) = accepted(Model::open(&base.dir())) else { continue };
        for weight in model.weights_mut() {
            if let Some(values) = quantized_values(weight).expect("what is understood is dequantized") {
                assert_eq!(values.len(), weight.elements());
            }
        }
    }
});
