//! Compares statistics, pruning and merging of the built-in MoE with transformers' own modules in
//! float64 and with numpy (golden/pruning).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use moe_checkpoint::{Error, Result};
use moe_forward::{Batch, LmHead, Silent, Sweep, labels, to_f32};
use moe_math::Compute;
use moe_math::statistics::{CalibrationSums, Quantity};
use moe_model::Model;
use moe_passes::{
    CalibrationOptions, LayerStatistics, LayerTrust, MergeOptions, NetworkEdit, PruneOptions,
};
use serde_json::json;

use super::goldens::Goldens;
use super::{Check, apart, check, golden, numbers, numeric};
use crate::{ConvertOptions, ObserveOptions, Quiet, StatisticsFile, convert, observe};

/// The layer that golden/pruning/merge.py merges, and the interval of the experts' neurons that it
/// stores.
const MERGED_LAYER: usize = 1;
const MERGED_STEP: usize = 32;

pub fn checks(goldens: &Goldens, compute: &Compute) -> Result<Vec<Check>> {
    let statistics = observed(goldens, compute)?;
    Ok(vec![
        statistics_of_transformers(goldens, &statistics)?,
        kept(goldens, &statistics, compute)?,
        masked(goldens, &statistics, compute)?,
        merged(goldens, &statistics, compute)?,
    ])
}

/// Statistics of the tokens of golden/pruning.
fn observed(goldens: &Goldens, compute: &Compute) -> Result<PathBuf> {
    let tokens: BTreeMap<String, Vec<Vec<u32>>> = golden(&goldens.json("pruning/tokens.json")?)?;
    let mut data = Vec::new();
    for label in ["english", "code", "spanish", "arithmetic"] {
        let path = goldens.path(&format!("{label}.jsonl"));
        let lines: Vec<String> =
            tokens[label].iter().map(|ids| json!({ "input_ids": ids }).to_string()).collect();
        std::fs::write(&path, lines.join("\n"))
            .map_err(|e| Error::io("cannot write this file", &path, e))?;
        data.push(format!("{label}={}", path.display()));
    }
    let calibration: CalibrationOptions = golden(&json!({ "data": data, "sequence-length": 256 }))?;
    let options =
        ObserveOptions { add: Vec::new(), no_left_out: false, all_experts_every: 1, calibration };
    let output = goldens.path("statistics.safetensors");
    observe(&goldens.path("models/moe"), &options, &output, true, None, compute, &Quiet)?;
    Ok(output)
}

fn statistics_of_transformers(goldens: &Goldens, statistics: &Path) -> Result<Check> {
    let file = StatisticsFile::open(statistics)?;
    let quantities: BTreeMap<&str, Quantity> =
        Quantity::ALL.iter().map(|q| (q.name(), *q)).collect();
    let mut outcomes = Vec::new();
    for (name, expected) in goldens.tensors("pruning/statistics.safetensors")? {
        // layers.N.QUANTITY
        let mut parts = name.split('.').skip(1);
        let layer = parts.next().and_then(|layer| layer.parse().ok());
        let quantity = parts.next().and_then(|name| quantities.get(name));
        let (Some(layer), Some(quantity)) = (layer, quantity) else { continue };
        let sums = file.layer(layer)?.unwrap_or_default();
        let mut found = Vec::new();
        for label in labels(file.groups()) {
            let groups = file.groups().iter().zip(&sums).filter(|(group, _)| group.label == label);
            found.extend_from_slice(
                CalibrationSums::pooled(groups.map(|(_, sums)| (sums, 1.0))).get(*quantity),
            );
        }
        let expected = numbers(&expected)?;
        let differing = match quantity {
            Quantity::Tokens => found.iter().zip(&expected).filter(|(a, b)| a != b).count(),
            _ => 0,
        };
        outcomes.push((apart(&found, &expected), differing));
    }
    Ok(check("observe".to_owned(), 1e-5, &outcomes))
}

fn run(compute: &Compute) -> Result<ConvertOptions> {
    Ok(ConvertOptions {
        overwrite: true,
        resume: false,
        max_shard_size: "5GB".parse()?,
        probe_tokens: 0,
        compute: compute.clone(),
        memory_budget: None,
    })
}

/// Prunes the built-in MoE to `count` experts, and returns those that each layer keeps.
fn pruned(
    goldens: &Goldens,
    statistics: &Path,
    criterion: &str,
    count: usize,
    compute: &Compute,
) -> Result<(Model, Vec<Vec<usize>>)> {
    let mut options =
        json!({ "criterion": criterion, "experts": count, "no-super-expert-guard": true });
    if criterion != "aimer" {
        options["stats"] = statistics.to_string_lossy().into();
    }
    let options: PruneOptions = golden(&options)?;
    let output = goldens.path("pruned");
    let done = convert(&[&options], &goldens.path("models/moe"), &output, &run(compute)?, &Quiet)?;
    let of_layer = |experts: &[NetworkEdit]| {
        let mut kept: Vec<usize> = experts.iter().flat_map(NetworkEdit::experts).collect();
        kept.sort_unstable();
        kept
    };
    Ok((
        Model::open(&output)?,
        done.receipt.layers.iter().map(|layer| of_layer(&layer.experts)).collect(),
    ))
}

fn differing(found: &[Vec<usize>], expected: &[Vec<usize>]) -> usize {
    let of_layer = |(found, expected): (&Vec<usize>, &Vec<usize>)| {
        expected.iter().filter(|e| !found.contains(e)).count()
    };
    found.iter().zip(expected).map(of_layer).sum::<usize>() + found.len().abs_diff(expected.len())
}

fn kept(goldens: &Goldens, statistics: &Path, compute: &Compute) -> Result<Check> {
    let saliencies = goldens.json("pruning/saliencies.json")?;
    let expected: BTreeMap<String, BTreeMap<usize, Vec<Vec<usize>>>> = golden(&saliencies["kept"])?;
    let mut outcomes = Vec::new();
    // The criterion of ranked choice looks at the tokens of each layer, which statistics don't
    // have.
    for (criterion, counts) in
        expected.iter().filter(|(criterion, _)| *criterion != "ranked-choice")
    {
        for (count, expected) in counts {
            let (_, kept) = pruned(goldens, statistics, criterion, *count, compute)?;
            outcomes.push((0.0, differing(&kept, expected)));
        }
    }
    Ok(check("prune: experts kept".to_owned(), 0.0, &outcomes))
}

/// A pruned model must compute what transformers computes with experts masked.
fn masked(goldens: &Goldens, statistics: &Path, compute: &Compute) -> Result<Check> {
    let described = goldens.json("pruning/masked.json")?;
    let expected = goldens.tensors("pruning/masked.safetensors")?;
    let batch = Batch::from_json(&goldens.path("models/moe.tokens.json"))?;
    let mut outcomes = Vec::new();
    for count in [18, 12] {
        let (model, kept) = pruned(goldens, statistics, "reap", count, compute)?;
        let of = |key: &str| &described[key][count.to_string()];
        let mut sweep = Sweep::new(&model, &batch, compute)?;
        sweep.run(&mut Silent)?;
        let logits = LmHead::load(&model, compute)?.logits(&sweep.hidden(0..batch.tokens())?)?;
        let step: u32 = golden(of("vocabulary_step"))?;
        let some = || {
            let columns = Tensor::arange_step(0, model.vocab as u32, step, &Device::Cpu)?;
            logits.to_device(&Device::Cpu)?.index_select(&columns, 1)
        };
        let found = some().map_err(|e| numeric("the logits of a pruned model", e))?;
        let expected = numbers(&expected[&format!("keep_{count}.logits")])?;
        let kept = differing(&kept, &golden::<Vec<Vec<usize>>>(of("kept"))?);
        outcomes.push((apart(&numbers(&found)?, &expected), kept));
    }
    Ok(check("prune: logits".to_owned(), 1e-5, &outcomes))
}

/// Merged experts must be those of numpy, up to the rounding of the written file.
fn merged(goldens: &Goldens, statistics: &Path, compute: &Compute) -> Result<Check> {
    let mut outcomes = Vec::new();
    for method in ["average", "hc-smoe", "m-smoe"] {
        let expected = goldens.tensors(&format!("pruning/merge-{method}.safetensors"))?;
        let groups: Vec<Vec<usize>> =
            golden(&goldens.json(&format!("pruning/merge-{method}.json"))?["groups"])?;
        let options = json!({ "algorithm": method, "experts": groups.len(), "stats": statistics.to_string_lossy(), "no-super-expert-guard": true });
        let options: MergeOptions = golden(&options)?;
        let output = goldens.path("merged");
        let done =
            convert(&[&options], &goldens.path("models/moe"), &output, &run(compute)?, &Quiet)?;
        let layer = done.receipt.layers.get(MERGED_LAYER);
        let trust = layer.and_then(|layer| layer.details::<LayerTrust>());
        let clusters = trust.map(|trust| trust.clusters).unwrap_or_default();
        let model = Model::open(&output)?;
        let experts = model.layers[MERGED_LAYER]
            .ffn
            .moe()
            .map(|moe| moe.experts.as_slice())
            .unwrap_or_default();
        let mut error = 0f64;
        for (cluster, expert) in clusters.iter().zip(experts) {
            for (part, linear) in ["gate", "up", "down"].into_iter().zip(expert.linears()) {
                let Some(expected) = expected.get(&format!("experts.{}.{part}", cluster[0])) else {
                    continue;
                };
                let dimension = usize::from(part == "down");
                let some = || {
                    let weight = to_f32(&linear.weight, &Compute::cpu())
                        .map_err(candle_core::Error::wrap)?;
                    let count = weight.dim(dimension)?;
                    let every: Vec<u32> = (0..count as u32).step_by(MERGED_STEP).collect();
                    weight
                        .index_select(&Tensor::new(every, &Device::Cpu)?, dimension)?
                        .to_dtype(DType::F64)
                };
                let found = some().map_err(|e| numeric("a merged expert", e))?;
                error = error.max(apart(&numbers(&found)?, &numbers(expected)?));
            }
        }
        outcomes.push((error, groups.iter().filter(|group| !clusters.contains(group)).count()));
    }
    // Half of the spacing of bf16 values at the largest weight.
    Ok(check("merge".to_owned(), 1.0 / 256.0, &outcomes))
}
