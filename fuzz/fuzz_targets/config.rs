//! `config.json`, beside the weights of a golden of the family that it names. A model that is
//! understood is declared, and what is declared is understood in the same way.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use moe_checkpoint::CONFIG_FILE;
use moe_fuzz::{Base, accepted, quantized_bases};
use moe_model::{Kind, Model};
use serde_json::Value;

static BASES: LazyLock<Vec<Base>> = LazyLock::new(|| {
    let families = [
        ("families/llama/base/model", "llama"),
        ("families/mistral/base/model", "mistral"),
        ("families/qwen2/sliding/model", "qwen2"),
        ("families/qwen3/base/model", "qwen3"),
        ("families/mixtral/base/model", "mixtral"),
        ("families/mixtral/fused/model", "mixtral-fused"),
        ("families/qwen2_moe/base/model", "qwen2_moe"),
        ("families/qwen3_moe/base/model", "qwen3_moe"),
        ("families/olmoe/base/model", "olmoe"),
        ("families/deepseek_v2/yarn/model", "deepseek_v2"),
        ("families/deepseek_v3/mtp/model", "deepseek_v3"),
        ("families/glm4_moe/base/model", "glm4_moe"),
    ];
    let plain = families.map(|(golden, name)| Base::of(golden, name));
    plain.into_iter().chain(quantized_bases()).collect()
});

fuzz_target!(|config: &[u8]| {
    let said: Value = serde_json::from_slice(config).unwrap_or_default();
    let mut bases: Vec<_> = BASES.iter().filter(|base| base.config["model_type"] == said["model_type"]).collect();
    if bases.is_empty() {
        bases.push(&BASES[0]);
    }
    for base in bases {
        base.write(CONFIG_FILE, config);
        let Some(model) = accepted(Model::open(&base.dir())) else { continue };
        let declared = match model.declare() {
            Ok(declared) => declared,
            Err(error) => {
                assert_eq!(error.kind(), Kind::Unsupported, "{error}");
                continue;
            }
        };
        let reread = declared.reread().expect("what is declared is understood");
        assert_eq!(reread.parameters(), model.parameters());
        let again = reread.declare().expect("what was declared is declared again");
        assert_eq!(again.config, declared.config);
    }
});
