//! Messages of a running training, and its log.

use std::fs::File;
use std::io::{self, Write as _};

use moe_checkpoint::Hasher;
use moe_forward::train::LayerCounts;
use moe_math::load::Load;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::record::StepRecord;
use super::settings::Settings;

/// The written part of a training's log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LoggedSteps {
    /// Length of the log in bytes.
    pub bytes: u64,
    /// SHA-256 of these bytes; empty where nothing is written.
    pub sha256: String,
}

impl LoggedSteps {
    /// A log with this `text`.
    pub fn of(text: &[u8]) -> Self {
        let mut hasher = Hasher::default();
        hasher.update(text);
        Self { bytes: text.len() as u64, sha256: hasher.finish() }
    }
}

/// A log to append to.
pub(super) struct Log {
    file: File,
    bytes: u64,
    hasher: Hasher,
}

impl Log {
    /// The log in `file`, which contains `said` already and is open for appending.
    pub fn new(file: File, said: &[u8]) -> Self {
        let mut hasher = Hasher::default();
        hasher.update(said);
        Self { file, bytes: said.len() as u64, hasher }
    }

    /// Appends a line.
    ///
    /// # Errors
    /// Errors of writing.
    pub fn write(&mut self, line: &Value) -> io::Result<()> {
        let text = format!("{line}\n");
        self.file.write_all(text.as_bytes())?;
        self.bytes += text.len() as u64;
        self.hasher.update(text.as_bytes());
        Ok(())
    }

    /// Waits until the whole log is on the disk.
    ///
    /// # Errors
    /// Errors of the disk.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Length and hash of the log so far.
    pub fn written(&self) -> LoggedSteps {
        LoggedSteps { bytes: self.bytes, sha256: self.hasher.clone().finish() }
    }
}

/// The log's line for a step.
pub(super) fn step_line(record: &StepRecord, rate: f64, load: &[LayerCounts]) -> Value {
    let load: Vec<_> = load
        .iter()
        .map(|l| json!({ "layer": l.layer, "counts": l.counts, "dropped": l.dropped }))
        .collect();
    let mut line = serde_json::to_value(record).unwrap_or_default();
    line["tokens_per_second"] = json!(rate.round());
    line["load"] = json!(load);
    line
}

/// The loss of next tokens and, with a teacher, the KL, in the same form for a batch and for
/// held-out text, so that they can be compared.
pub(super) fn figures(loss: f64, kl: Option<f64>) -> String {
    let kl = kl.map_or(String::new(), |kl| format!(", KL {kl:.4}"));
    format!("loss {loss:.4}{kl}")
}

/// Describes the layer with the least even load, and the number of experts without a token.
pub(super) fn describe_load(load: &[LayerCounts]) -> String {
    let measured = load.iter().map(|l| (l.layer, Load::new(l.counts.clone())));
    let measured: Vec<_> = measured.collect();
    let Some((layer, least)) = measured.iter().min_by(|a, b| a.1.entropy.total_cmp(&b.1.entropy))
    else {
        return String::new();
    };
    let dead: usize = measured.iter().map(|(_, load)| load.dead).sum();
    let dropped: u64 = load.iter().map(|l| l.dropped).sum();
    let dropped = if dropped > 0 { format!(", {dropped} choices dropped") } else { String::new() };
    format!(
        "; load: entropy {:.3} at least (layer {layer}), {dead} experts without a token{dropped}",
        least.entropy
    )
}

/// A parsed line of the log.
pub(super) struct LogLine {
    /// The number of the step; None for a line that isn't a training's, such as one that was cut
    /// when the run was killed.
    pub step: Option<u64>,
    /// Whether it is the line that every step has.
    pub is_of_step: bool,
    /// The settings that hold after this line; None where the line doesn't change them.
    pub settings: Option<Settings>,
}

/// The lines of `log` in order.
pub(super) fn lines(log: &str) -> impl Iterator<Item = LogLine> {
    log.lines().map(|text| {
        let mut parsed: Value = serde_json::from_str(text).unwrap_or_default();
        LogLine {
            step: parsed["step"].as_u64(),
            is_of_step: parsed["loss"].is_number(),
            settings: parsed
                .get_mut("settings")
                .and_then(|found| serde_json::from_value(found.take()).ok()),
        }
    })
}
