//! Compares observing and pruning with transformers' own modules, in float64, and with
//! llm-compressor (golden/pruning).

mod choices;
mod planted;
mod results;
mod statistics;

use std::path::{Path, PathBuf};

use moe_forward::labels;
use moe_math::Compute;
use moe_math::statistics::CalibrationSums;
use moe_passes::{CalibrationOptions, LayerStatistics, NetworkEdit, PruneOptions};
use moe_pipeline::{
    ConvertOptions, ObserveOptions, Quiet, Receipt, StatisticsFile, convert, observe,
};
use serde_json::Value;

use crate::common::{golden, run_again};

fn read_json(path: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(golden(path)).unwrap()).unwrap()
}

fn moe() -> PathBuf {
    golden("models/moe")
}

/// Token ids of golden/pruning as `--data` arguments, one label for each domain.
struct Text {
    directory: tempfile::TempDir,
    data: Vec<String>,
}

impl Text {
    fn new(domains: &[(&str, &Value)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let write = |(label, windows): &(&str, &Value)| {
            let path = directory.path().join(format!("{label}.jsonl"));
            let lines = windows.as_array().unwrap().iter();
            let lines: Vec<_> =
                lines.map(|ids| serde_json::json!({ "input_ids": ids }).to_string()).collect();
            std::fs::write(&path, lines.join("\n")).unwrap();
            format!("{label}={}", path.display())
        };
        let data = domains.iter().map(write).collect();
        Self { directory, data }
    }

    fn of_golden() -> Self {
        let tokens = read_json("pruning/tokens.json");
        let order = ["english", "code", "spanish", "arithmetic"];
        Self::new(&order.map(|label| (label, &tokens[label])))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn calibration(&self) -> CalibrationOptions {
        let data = self.data.iter().map(|d| d.parse().unwrap()).collect();
        CalibrationOptions { data, sequence_length: 256, ..CalibrationOptions::default() }
    }

    fn observe(&self, name: &str, change: impl Fn(&mut ObserveOptions)) -> PathBuf {
        let output = self.path(name);
        let mut options = ObserveOptions {
            add: Vec::new(),
            no_left_out: false,
            all_experts_every: 0,
            calibration: self.calibration(),
        };
        change(&mut options);
        observe(&moe(), &options, &output, false, None, &Compute::cpu(), &Quiet).unwrap();
        output
    }

    /// Options of `prune` in TOML, with this text as data.
    fn with_data(&self, toml: &str) -> PruneOptions {
        let mut options: PruneOptions = toml::from_str(toml).unwrap();
        options.reduce.calibration = self.calibration();
        options
    }
}

/// Prunes without a probe.
fn prune(options: &PruneOptions, model: &Path, output: &Path) -> moe_checkpoint::Result<Receipt> {
    let run = ConvertOptions { probe_tokens: 0, ..run_again() };
    Ok(convert(&[options], model, output, &run, &Quiet)?.receipt)
}

/// Prunes, and returns the experts that each layer keeps.
fn kept(options: &PruneOptions, model: &Path, output: &Path) -> Vec<Vec<usize>> {
    let receipt = prune(options, model, output).unwrap();
    let mut kept: Vec<Vec<usize>> = receipt
        .layers
        .iter()
        .map(|layer| layer.experts.iter().flat_map(NetworkEdit::experts).collect())
        .collect();
    kept.iter_mut().for_each(|experts| experts.sort_unstable());
    kept
}

/// A copy of the checkpoint `model`.
fn copied(model: &Path, copy: PathBuf) -> PathBuf {
    std::fs::create_dir(&copy).unwrap();
    for file in std::fs::read_dir(model).unwrap().map(|entry| entry.unwrap().path()) {
        std::fs::copy(&file, copy.join(file.file_name().unwrap())).unwrap();
    }
    copy
}

fn indices(value: &Value) -> Vec<Vec<usize>> {
    serde_json::from_value(value.clone()).unwrap()
}

/// The sums of `layer` over both halves, by domain.
fn by_domain(file: &StatisticsFile, layer: usize) -> Vec<CalibrationSums> {
    let sums = file.layer(layer).unwrap().unwrap();
    let of = |label: &str| {
        let groups = file.groups().iter().zip(&sums).filter(|(group, _)| group.label == label);
        CalibrationSums::pooled(groups.map(|(_, sums)| (sums, 1.0)))
    };
    labels(file.groups()).into_iter().map(of).collect()
}
