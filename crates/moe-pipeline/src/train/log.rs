//! What is said of a training while it runs.

use moe_forward::train::LayerCounts;
use moe_math::load::Load;
use serde_json::{Value, json};

use super::record::StepRecord;

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
