//! What is said of a training while it runs, and what a log says of it later.

use moe_forward::train::LayerCounts;
use moe_math::load::Load;
use serde_json::{Value, json};

use super::record::StepRecord;
use super::settings::Settings;

/// A line of the log.
pub(super) fn step_line(record: &StepRecord, rate: f64, load: &[LayerCounts]) -> Value {
    let load: Vec<_> =
        load.iter().map(|l| json!({ "layer": l.layer, "counts": l.counts, "dropped": l.dropped })).collect();
    let mut line = serde_json::to_value(record).unwrap_or_default();
    line["tokens_per_second"] = json!(rate.round());
    line["load"] = json!(load);
    line
}

/// The least even layer, and experts without a token.
pub(super) fn describe_load(load: &[LayerCounts]) -> String {
    let measured = load.iter().map(|l| (l.layer, Load::new(l.counts.clone())));
    let measured: Vec<_> = measured.collect();
    let Some((layer, least)) = measured.iter().min_by(|a, b| a.1.entropy.total_cmp(&b.1.entropy)) else {
        return String::new();
    };
    let dead: usize = measured.iter().map(|(_, load)| load.dead).sum();
    let dropped: u64 = load.iter().map(|l| l.dropped).sum();
    let dropped = if dropped > 0 { format!(", {dropped} choices dropped") } else { String::new() };
    format!("; load: entropy {:.3} at least (layer {layer}), {dead} experts without a token{dropped}", least.entropy)
}

/// A line that was read.
pub(super) struct Line<'a> {
    /// The line itself.
    pub text: &'a str,
    /// Its step; None for what is none of a training's lines, as one that was cut when the run was killed.
    pub step: Option<u64>,
    /// Whether it is the one that each step has.
    pub is_of_step: bool,
    /// The settings that held from then on, if it says them.
    pub settings: Option<Settings>,
}

/// The lines of `log` in order.
pub(super) fn lines(log: &str) -> impl Iterator<Item = Line<'_>> {
    log.lines().map(|text| {
        let mut parsed: Value = serde_json::from_str(text).unwrap_or_default();
        Line {
            text,
            step: parsed["step"].as_u64(),
            is_of_step: parsed["loss"].is_number(),
            settings: parsed.get_mut("settings").and_then(|found| serde_json::from_value(found.take()).ok()),
        }
    })
}
