//! What is said of a training while it runs, and what a log says of it later.

use std::fs::File;
use std::io::{self, Write as _};

use moe_checkpoint::Hasher;
use moe_forward::train::LayerCounts;
use moe_math::load::Load;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::record::StepRecord;
use super::settings::Settings;

/// The log of a training, as far as it is written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LoggedSteps {
    /// Its length.
    pub bytes: u64,
    /// SHA-256 of these bytes; empty where nothing is written.
    pub sha256: String,
}

impl LoggedSteps {
    /// Of a log that says `text`.
    pub fn of(text: &[u8]) -> Self {
        let mut hasher = Hasher::default();
        hasher.update(text);
        Self { bytes: text.len() as u64, sha256: hasher.finish() }
    }
}

/// A log that is added to.
pub(super) struct Log {
    file: File,
    bytes: u64,
    hasher: Hasher,
}

impl Log {
    /// The log in `file`, which says `said` already and is written at its end.
    pub fn new(file: File, said: &[u8]) -> Self {
        let mut hasher = Hasher::default();
        hasher.update(said);
        Self { file, bytes: said.len() as u64, hasher }
    }

    /// Adds a line.
    ///
    /// # Errors
    /// What the disk returns.
    pub fn write(&mut self, line: &Value) -> io::Result<()> {
        let text = format!("{line}\n");
        self.file.write_all(text.as_bytes())?;
        self.bytes += text.len() as u64;
        self.hasher.update(text.as_bytes());
        Ok(())
    }

    /// Waits until the disk has all of it.
    ///
    /// # Errors
    /// What the disk returns.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// What was written.
    pub fn written(&self) -> LoggedSteps {
        LoggedSteps { bytes: self.bytes, sha256: self.hasher.clone().finish() }
    }
}

/// A line of the log.
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

/// The loss of next tokens and, with a teacher, the KL: the same figures for a batch as for
/// held-out text, so that they can be compared.
pub(super) fn figures(loss: f64, kl: Option<f64>) -> String {
    let kl = kl.map_or(String::new(), |kl| format!(", KL {kl:.4}"));
    format!("loss {loss:.4}{kl}")
}

/// The least even layer, and experts without a token.
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

/// A line that was read.
pub(super) struct Line {
    /// Its step; None for what is none of a training's lines, as one that was cut when the run was
    /// killed.
    pub step: Option<u64>,
    /// Whether it is the one that each step has.
    pub is_of_step: bool,
    /// The settings that held from then on, if it says them.
    pub settings: Option<Settings>,
}

/// The lines of `log` in order.
pub(super) fn lines(log: &str) -> impl Iterator<Item = Line> {
    log.lines().map(|text| {
        let mut parsed: Value = serde_json::from_str(text).unwrap_or_default();
        Line {
            step: parsed["step"].as_u64(),
            is_of_step: parsed["loss"].is_number(),
            settings: parsed
                .get_mut("settings")
                .and_then(|found| serde_json::from_value(found.take()).ok()),
        }
    })
}
