//! Tests with models whose weights are planted: what must stay would be missed.

use std::path::{Path, PathBuf};

use moe_checkpoint::SourceFile;
use moe_math::statistics::{CalibrationSums, Quantity};
use moe_passes::{LayerTrust, NetworkEdit, PruneOptions};
use moe_pipeline::StatisticsFile;
use serde_json::Value;

use super::{Text, by_domain, copied, moe, prune};
use crate::common::golden;

/// A copy of the checkpoint `model`; `edit` changes the bytes of tensors, given their names.
fn planted(text: &Text, model: &Path, edit: impl Fn(&str, &mut [u8])) -> PathBuf {
    let copy = copied(model, text.path("planted"));
    let weights = copy.join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let (_, entries) = SourceFile::open(&weights).unwrap();
    let data = bytes.len() - entries.iter().map(|e| e.end).max().unwrap() as usize;
    for entry in entries {
        edit(&entry.name, &mut bytes[data + entry.start as usize..data + entry.end as usize]);
    }
    std::fs::write(&weights, bytes).unwrap();
    copy
}

#[test]
fn the_guard_keeps_a_planted_super_expert_and_its_loss_would_hurt() {
    let text = Text::of_golden();
    let stats =
        StatisticsFile::open(&text.observe("stats", |options| options.no_left_out = true)).unwrap();
    let sums = by_domain(&stats, 1);
    let pooled = CalibrationSums::pooled(sums.iter().map(|sums| (sums, 1.0)));
    let tokens = pooled.get(Quantity::Tokens);
    let rarest = (0..24).min_by(|a, b| tokens[*a].total_cmp(&tokens[*b])).unwrap();
    let name = format!("model.layers.1.mlp.experts.{rarest}.down_proj.weight");
    // Outputs 2⁵ times as large: 5 is added to bf16's exponent.
    let model = planted(&text, &moe(), |tensor, bytes| {
        for value in bytes.as_chunks_mut::<2>().0.iter_mut().filter(|_| tensor == name) {
            *value = (u16::from_le_bytes(*value) + (5 << 7)).to_le_bytes();
        }
    });
    let pruned = |guard: &str| {
        let mut options = text.with_data(&format!(
            "criterion = \"frequency\"\nexperts = 18\nno-baseline = true\n{guard}"
        ));
        options.reduce.measuring.held_out.clone_from(&options.reduce.calibration.data);
        let receipt = prune(&options, &model, &text.path("out")).unwrap();
        let trust: LayerTrust = receipt.layers[1].details().unwrap();
        let kl = receipt.held_out.unwrap().result.all.against.unwrap().kl;
        (trust.clusters.contains(&vec![rarest]), trust.super_experts, kl)
    };
    let (kept, found, with_guard) = pruned("");
    let (kept_without, found_without, without_guard) = pruned("no-super-expert-guard = true");
    assert!(kept && found == [rarest], "{found:?}");
    assert!(!kept_without && found_without.is_empty());
    assert!(with_guard < 0.8 * without_guard, "{with_guard} and {without_guard}");
}

/// Three kinds of tokens, top-2, and a router with two groups of four experts, one of which is
/// chosen for a token. Tokens 0 go to experts 0 and 1, tokens 1 to 4 and 5, tokens 2 to 5 and 6.
fn planted_groups(text: &Text) -> PathBuf {
    const CHOSEN: [[usize; 2]; 3] = [[0, 1], [4, 5], [5, 6]];
    const HIDDEN: usize = 24;
    let set = |bytes: &mut [u8], value: &dyn Fn(usize, usize) -> f32| {
        for (index, bytes) in bytes.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            *bytes = value(index / HIDDEN, index % HIDDEN).to_le_bytes();
        }
    };
    let model =
        planted(text, &golden("families/glm4_moe/base/model"), |tensor, bytes| match tensor {
            // The router's input depends on the token alone: attention, the dense layer and shared
            // experts give 0.
            "model.embed_tokens.weight" => {
                set(bytes, &|token, column| if token == column { 1.0 } else { 0.0 })
            }
            "model.layers.1.post_attention_layernorm.weight" => set(bytes, &|_, _| 1.0),
            "model.layers.1.mlp.gate.weight" => {
                set(bytes, &|expert, column| match CHOSEN.get(column) {
                    Some(chosen) if chosen.contains(&expert) => 1.0,
                    _ => -1.0,
                })
            }
            "model.layers.1.mlp.gate.e_score_correction_bias" => bytes.fill(0),
            name if [
                "o_proj.weight",
                "layers.0.mlp.down_proj.weight",
                "shared_experts.down_proj.weight",
            ]
            .iter()
            .any(|suffix| name.ends_with(suffix)) =>
            {
                bytes.fill(0);
            }
            _ => {}
        });
    let path = model.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for (key, value) in [("n_group", 2), ("topk_group", 1), ("num_experts_per_tok", 2)] {
        config[key] = value.into();
    }
    std::fs::write(&path, config.to_string()).unwrap();
    model
}

#[test]
fn groups_are_kept_apart_and_mixing_them_would_hurt() {
    let ids = [vec![0; 30], vec![1; 35], vec![2; 35]].concat();
    let text = Text::new(&[("planted", &serde_json::json!([ids]))]);
    let model = planted_groups(&text);
    let pruned = |options: &mut PruneOptions| {
        options.reduce.measuring.held_out.clone_from(&text.calibration().data);
        let receipt = prune(options, &model, &text.path("out")).unwrap();
        (
            receipt.layers[0].experts.iter().flat_map(NetworkEdit::experts).collect::<Vec<_>>(),
            receipt.held_out.unwrap().result.all.against.unwrap().kl,
        )
    };
    let mut options =
        text.with_data("criterion = \"frequency\"\nexperts = 4\nno-super-expert-guard = true");
    let (kept, apart) = pruned(&mut options);
    assert_eq!(kept, [0, 1, 4, 5]);
    // The four experts that are chosen most: two of the second group are moved to the first.
    let plan = text.path("plan.json");
    std::fs::write(&plan, r#"{"layers": {"1": {"experts": 8, "keep": [0, 4, 5, 6]}}}"#).unwrap();
    let mut options: PruneOptions = toml::from_str("").unwrap();
    options.plan = Some(plan);
    let (_, mixed) = pruned(&mut options);
    assert!(apart < 0.8 * mixed, "{apart} and {mixed}");
}
