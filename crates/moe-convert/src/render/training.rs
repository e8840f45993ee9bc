//! Tables of a training.

use moe_checkpoint::counted;
use moe_forward::DomainReport;
use moe_pipeline::{LoadChange, Receipt, TrainingRecord};

use super::table::{count, or_dash, table};

/// Describes in a line what was trained.
pub fn fact(training: &TrainingRecord) -> String {
    let early = if training.stopped_early { ", stopped early" } else { "" };
    format!(
        "{} weights for {} on {} tokens{early}; written: step {}",
        count(training.parameters),
        counted(training.steps, "step"),
        count(training.tokens as usize),
        training.written
    )
}

/// Tables of held-out results before and after, and of expert load.
pub fn tables(receipt: &Receipt) -> String {
    receipt.training.as_ref().map_or(String::new(), |training| quality(training) + &loads(training))
}

/// Held-out results before and after.
fn quality(training: &TrainingRecord) -> String {
    let (Some(before), Some(after)) = (&training.before, &training.after) else {
        return String::new();
    };
    let compared = before.all.against.is_some();
    let mut header = vec!["held-out", "tokens", "loss before", "after", "Δ loss"];
    if compared {
        header.extend(["KL before", "after", "top-1 same before", "after"]);
    }
    let rows = before.rows().zip(after.rows()).map(|(before, after)| row(before, after, compared));
    format!("\n{}", table(&header, rows))
}

/// Expert load on the text that was trained on.
fn loads(training: &TrainingRecord) -> String {
    if training.load.is_empty() {
        return String::new();
    }
    if training.load_is_of_one_measurement() {
        return format!(
            "\nLoad on what was trained on, measured once (at every --eval-every steps):\n{}",
            table(&LOAD_HEADER_ONCE, training.load.iter().map(load_once))
        );
    }
    format!(
        "\nLoad on what was trained on:\n{}",
        table(&LOAD_HEADER, training.load.iter().map(load))
    )
}

const LOAD_HEADER_ONCE: [&str; 5] = ["layer", "experts", "entropy", "dead", "dropped"];
const LOAD_HEADER: [&str; 7] =
    ["layer", "experts", "entropy at first", "at last", "dead at first", "at last", "dropped"];

fn row(before: &DomainReport, after: &DomainReport, compared: bool) -> Vec<String> {
    let mut row = vec![
        after.label.clone(),
        after.tokens.to_string(),
        format!("{:.4}", before.loss),
        format!("{:.4}", after.loss),
        format!("{:+.4}", after.loss - before.loss),
    ];
    if compared {
        let both = [before, after].map(|d| d.against.as_ref());
        row.extend(both.map(|a| or_dash(a.map(|a| format!("{:.4}", a.kl)))));
        row.extend(both.map(|a| or_dash(a.map(|a| format!("{:.1} %", 100.0 * a.top1_agreement)))));
    }
    row
}

fn load_once(change: &LoadChange) -> Vec<String> {
    let LoadChange { layer, last, dropped, .. } = change;
    vec![
        layer.to_string(),
        last.counts.len().to_string(),
        format!("{:.3}", last.entropy),
        last.dead.to_string(),
        format!("{:.1} %", 100.0 * dropped),
    ]
}

fn load(change: &LoadChange) -> Vec<String> {
    let LoadChange { layer, first, last, dropped } = change;
    vec![
        layer.to_string(),
        last.counts.len().to_string(),
        format!("{:.3}", first.entropy),
        format!("{:.3}", last.entropy),
        first.dead.to_string(),
        last.dead.to_string(),
        format!("{:.1} %", 100.0 * dropped),
    ]
}
