//! Summaries of checkpoints.

use std::path::Path;

use moe_checkpoint::{counted, shown_path};
use moe_model::{GroupScore, Scoring};
use moe_pipeline::{Applicable, ByteSize, Inspection, MoeSummary};

use super::table::{count, facts, table};

/// Formats the output of `inspect`.
pub fn inspection(model: &Path, i: &Inspection) -> String {
    let mut rows = architecture(i);
    rows.extend(weights(i));
    rows.extend(i.warnings.iter().map(|warning| ("warning", warning.clone())));
    let bytes = i.dtypes.values().sum();
    let dtypes = i
        .dtypes
        .iter()
        .map(|(dtype, n)| vec![dtype.clone(), ByteSize(*n).to_string(), share(*n, bytes)]);
    let passes = i.passes.iter().map(|p| (p.pass.name, answer(p)));
    [
        format!("{}\n{}", shown_path(model), facts(rows)),
        parameters(i),
        table(&["weights", "size", "share"], dtypes),
        format!("  passes\n{}", facts(passes)),
    ]
    .join("\n")
}

/// Describes the structure of the layers.
fn architecture(i: &Inspection) -> Vec<(&'static str, String)> {
    let mut rows = vec![
        ("family", i.model_type.clone()),
        ("layers", format!("{} of width {}", i.layers, i.hidden)),
        ("attention", attention(i)),
    ];
    if let Some(window) = i.window {
        rows.push(("window", format!("{window} tokens in {}", layers(i.sliding_layers))));
    }
    if let Some(moe) = &i.moe {
        let (experts, width) = (moe.experts, moe.expert_width);
        let sparse = layers(moe.sparse_layers);
        rows.push(("experts", format!("{experts} of width {width} in {sparse}")));
        rows.push(("routing", routing(moe)));
        if let Some(width) = moe.shared_width {
            let gate = if moe.shared_gated { ", behind a sigmoid gate" } else { "" };
            rows.push(("shared expert", format!("of width {width}{gate}")));
        }
    }
    if let Some(width) = i.dense_width {
        let dense = layers(i.dense_layers);
        rows.push(("dense", format!("{dense} with one network of width {width}")));
    }
    rows
}

/// Lists facts about the model's tensors.
fn weights(i: &Inspection) -> Vec<(&'static str, String)> {
    let tied = if i.tied { ", tied to the head" } else { "" };
    let bytes = ByteSize(i.dtypes.values().sum());
    let tensors = counted(i.tensors as u64, "tensor");
    let files = counted(i.files.len() as u64, "file");
    let mut rows = vec![
        ("vocabulary", format!("{} tokens{tied}", i.vocab)),
        ("weights", format!("{bytes} in {tensors}, {files}")),
    ];
    if let Some(quantization) = &i.quantization {
        let computed = "computed from the dequantized weights, activations as they are";
        rows.push(("quantized", format!("{quantization}; {computed}")));
    }
    if i.multi_token_layers > 0 {
        let further = layers(i.multi_token_layers);
        rows.push(("prediction", format!("{further} for further tokens, carried but not run")));
    }
    if !i.unknown_tensors.is_empty() {
        rows.push(("unknown", i.unknown_tensors.join(", ")));
    }
    rows
}

fn layers(count: usize) -> String {
    counted(count as u64, "layer")
}

fn parameters(i: &Inspection) -> String {
    let p = &i.parameters;
    let parts = [
        ("embedding", p.embedding, p.embedding),
        ("attention", p.attention, p.attention),
        ("dense networks", p.dense_ffn, p.dense_ffn),
        ("routers", p.routers, p.routers),
        ("experts", p.experts, p.experts_active),
        ("shared experts", p.shared_experts, p.shared_experts),
        ("norms, other", p.other, p.other),
        ("head", p.head, p.head),
        ("multi-token", p.multi_token, 0),
        ("total", i.total_parameters, i.active_parameters),
    ];
    let row = |(name, all, active): (&str, usize, usize)| {
        vec![
            name.to_owned(),
            count(all),
            share(all as u64, i.total_parameters as u64),
            count(active),
        ]
    };
    let parts = parts.into_iter().filter(|(_, all, _)| *all > 0).map(row);
    table(&["parameters", "count", "share", "active per token"], parts)
}

fn share(part: u64, all: u64) -> String {
    format!("{:.1} %", 100.0 * part as f64 / all.max(1) as f64)
}

fn answer(pass: &Applicable) -> String {
    match &pass.refuses {
        Some(why) => format!("no: {why}"),
        None => format!("yes, gives {}", pass.gives.join(" or ")),
    }
}

fn attention(i: &Inspection) -> String {
    let heads = format!("{} heads of {}", i.heads, i.head_dim);
    let partial = if i.rotary_dims < i.head_dim {
        format!(", {} rotated", i.rotary_dims)
    } else {
        String::new()
    };
    match &i.latent {
        None => format!("{heads}, {} for keys and values{partial}", i.kv_heads),
        Some(latent) => {
            let queries =
                latent.queries.map_or(String::new(), |width| format!("queries {width}, "));
            let latents = format!("latents: {queries}keys and values {}", latent.keys_and_values);
            format!("{heads}{partial}, values of {}; {latents}", latent.value)
        }
    }
}

fn routing(moe: &MoeSummary) -> String {
    let scoring = match moe.scoring {
        Scoring::Softmax => "softmax",
        Scoring::Sigmoid => "sigmoid",
    };
    let bias = if moe.bias { " + bias" } else { "" };
    let groups = moe.groups.map_or(String::new(), |groups| {
        let by = match groups.score {
            GroupScore::Max => "best",
            GroupScore::TopTwoSum => "two best",
        };
        format!(" in {} of {} groups (by their {by})", groups.kept, groups.count)
    });
    let norm = if moe.normalized { "normalised" } else { "not normalised" };
    let scale = if moe.scale == 1.0 { String::new() } else { format!(", × {}", moe.scale) };
    format!("{scoring}{bias}, top-{}{groups}, {norm}{scale}", moe.top_k)
}
