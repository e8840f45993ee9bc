//! Tests that statistics add up, count what they should, and belong to one model.

use moe_checkpoint::{Kind, SourceFile};
use moe_forward::labels;
use moe_math::Compute;
use moe_math::statistics::{CalibrationSums, Quantity};
use moe_passes::{CalibrationOptions, LayerStatistics, PruneOptions};
use moe_pipeline::{ConvertOptions, ObserveOptions, Quiet, StatisticsFile, convert, observe};
use serde_json::Value;

use super::{Text, by_domain, copied, moe, prune, read_json};
use crate::common::run_again;

#[test]
fn statistics_add_up_over_files_blocks_and_scratch_files() {
    let text = Text::of_golden();
    let whole = StatisticsFile::open(&text.observe("whole", |_| {})).unwrap();
    let part = |name: &str, range: std::ops::Range<usize>| {
        text.observe(name, |options| {
            options.calibration.data = text.calibration().data[range.clone()].to_vec()
        })
    };
    let (first, second) = (part("first", 0..1), part("second", 1..4));
    let sum = text.observe("sum", |options| {
        options.add = vec![first.clone(), second.clone()];
        options.calibration.data.clear();
    });
    let both = text.observe("both", |options| {
        options.add = vec![first.clone()];
        options.calibration.data.drain(..1);
    });
    for other in [sum, both] {
        let other = StatisticsFile::open(&other).unwrap();
        for layer in 0..4 {
            for (a, b) in by_domain(&whole, layer).iter().zip(by_domain_of(&other, layer, &whole)) {
                for quantity in Quantity::ALL {
                    let pairs = a.get(quantity).iter().zip(b.get(quantity));
                    let scale = a.get(quantity).iter().fold(0f64, |most, x| most.max(x.abs()));
                    // The rounding of an f32 product depends on how many tokens share it. Sums even
                    // that out, a maximum doesn't.
                    let tolerance = if quantity == Quantity::Largest { 1e-5 } else { 1e-6 } * scale;
                    pairs.for_each(|(a, b)| {
                        assert!((a - b).abs() <= tolerance, "{}: {a} {b}", quantity.name())
                    });
                }
            }
        }
    }
}

/// [`by_domain`] in the order of domains in `like`.
fn by_domain_of(
    file: &StatisticsFile,
    layer: usize,
    like: &StatisticsFile,
) -> Vec<CalibrationSums> {
    let found = by_domain(file, layer);
    let order = labels(file.groups());
    labels(like.groups())
        .iter()
        .map(|l| found[order.iter().position(|o| o == l).unwrap()].clone())
        .collect()
}

/// Hidden states of so much text take more than a quarter of the budget, so they go to a scratch
/// file.
#[test]
fn a_scratch_file_changes_nothing() {
    const TIMES: usize = 32;
    const BUDGET: &str = "90MB";
    let tokens = read_json("pruning/tokens.json");
    let windows = |label: &str| -> Value {
        std::iter::repeat_n(tokens[label].as_array().unwrap(), TIMES).flatten().cloned().collect()
    };
    let text = Text::new(&[("english", &windows("english")), ("code", &windows("code"))]);
    let options = text.with_data("experts = 12\ncriterion = \"frequency\"");
    let bytes = |budget: Option<&str>| {
        let output = text.path("out");
        let run =
            ConvertOptions { memory_budget: budget.map(|b| b.parse().unwrap()), ..run_again() };
        convert(&[&options], &moe(), &output, &run, &Quiet).unwrap();
        std::fs::read(output.join("model.safetensors")).unwrap()
    };
    assert!(bytes(None) == bytes(Some(BUDGET)));
}

#[test]
fn padding_and_masked_tokens_enter_no_statistic() {
    let tokens = read_json("pruning/tokens.json");
    let ids: Vec<u32> = serde_json::from_value(tokens["english"][0].clone()).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let observed = |name: &str, line: Value| {
        let path = directory.path().join(format!("{name}.jsonl"));
        std::fs::write(&path, line.to_string()).unwrap();
        let output = directory.path().join(name);
        let options = ObserveOptions {
            add: Vec::new(),
            no_left_out: true,
            all_experts_every: 0,
            calibration: CalibrationOptions {
                data: vec![format!("x={}", path.display()).parse().unwrap()],
                ..CalibrationOptions::default()
            },
        };
        observe(&moe(), &options, &output, false, None, &Compute::cpu(), &Quiet).unwrap();
        let file = StatisticsFile::open(&output).unwrap();
        by_domain(&file, 3).remove(0)
    };
    let plain = observed("plain", serde_json::json!({ "input_ids": ids }));
    let padded = [vec![7; 9], ids.clone(), vec![9; 5]].concat();
    let mask = [vec![0; 9], vec![1; ids.len()], vec![0; 5]].concat();
    let padded =
        observed("padded", serde_json::json!({ "input_ids": padded, "attention_mask": mask }));
    assert_eq!(plain, padded);
    assert_eq!(plain.scalar(Quantity::SeenTokens), ids.len() as f64);
}

#[test]
fn statistics_of_another_model_are_refused() {
    let text = Text::of_golden();
    let stats = text.observe("stats", |options| options.no_left_out = true);
    let copy = copied(&moe(), text.path("copy"));
    let mut options: PruneOptions = toml::from_str("experts = 12").unwrap();
    options.reduce.stats = Some(stats.clone());
    let error = |message: &str| {
        let error = prune(&options, &copy, &text.path("out")).unwrap_err();
        assert_eq!(error.kind(), Kind::Mismatch);
        assert!(error.to_string().contains(message), "{error}");
    };
    let map = copy.join("special_tokens_map.json");
    std::fs::write(&map, "{}").unwrap();
    error("another tokenizer");
    std::fs::remove_file(map).unwrap();
    std::fs::write(copy.join("tokenizer.json"), "{}").unwrap();
    error("another tokenizer");
    let weights = copy.join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let (_, entries) = SourceFile::open(&weights).unwrap();
    let header = bytes.len() as u64 - entries.iter().map(|e| e.end).max().unwrap();
    bytes[header as usize] ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    error("another model");
    assert!(!text.path("out").exists());
    // A ranking by leaving experts out needs statistics of what that does.
    options.criterion =
        toml::from_str::<PruneOptions>("criterion = \"leave-one-out\"").unwrap().criterion;
    let message = prune(&options, &moe(), &text.path("out")).unwrap_err().to_string();
    assert!(message.contains("--no-left-out"), "{message}");
}
