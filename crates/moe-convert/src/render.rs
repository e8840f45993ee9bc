//! Renders results as text.

mod evaluation;
mod inspection;
mod layers;
mod next;
mod receipt;
mod speed;
mod summary;
mod table;
mod training;

use std::path::Path;

use moe_checkpoint::{counted, shown_path};
use moe_forward::Group;
use moe_pipeline::{
    ByteSize, Conversion, Observation, ObservedLayer, PlannedOutput, VerifyReport,
    peak_memory_bytes,
};

use evaluation::held_out;
use receipt::receipt_facts;
use table::{facts, table};

pub use evaluation::evaluation;
pub use inspection::inspection;
pub use speed::{bench, selftest, timings};
pub use summary::summary;

/// The user's situation after a conversion.
#[derive(Clone, Copy, PartialEq)]
pub enum After {
    /// The conversion was all; commands to type next are shown.
    Nothing,
    /// It was a step of a recipe, which continues.
    Steps,
}

/// Formats a finished conversion, with `warnings` that weren't shown while it ran.
pub fn conversion(
    input: &Path,
    output: &Path,
    done: &Conversion,
    warnings: &[&str],
    after: After,
) -> String {
    let mut rows = receipt_facts(&done.receipt, None);
    rows.push(("time", time(done)));
    rows.extend(warnings.iter().map(|warning| ("warning", (*warning).to_owned())));
    if after == After::Nothing {
        let next = next::steps(input, output, done).into_iter().enumerate();
        rows.extend(next.map(|(i, step)| (if i == 0 { "next" } else { "" }, step)));
    }
    format!(
        "{} → {}\n{}{}",
        shown_path(input),
        shown_path(output),
        facts(rows),
        done.receipt.earlier().iter().map(layers::all).collect::<String>()
            + &layers::all(&done.receipt)
            + &training::tables(&done.receipt)
            + &held_out(&done.receipt)
    )
}

/// Describes the time and the peak memory of a conversion.
fn time(done: &Conversion) -> String {
    let seconds = done.timings.total();
    let writing: f64 = done.timings.0.iter().filter(|s| s.bytes.is_some()).map(|s| s.seconds).sum();
    let peak =
        peak_memory_bytes().map_or(String::new(), |b| format!(", peak memory {}", ByteSize(b)));
    let rate = ByteSize((done.bytes as f64 / writing.max(1e-9)) as u64);
    format!("{seconds:.2} s, of which writing {writing:.2} s ({rate}/s, hashed){peak}")
}

/// Formats the output of `observe`.
pub fn observation(model: &Path, done: &Observation) -> String {
    let mut text = format!("{} → {}\n", shown_path(model), shown_path(&done.output));
    let mut rows = vec![("counted", tokens_by_domain(&done.groups))];
    if done.tokens > 0 {
        let rate = done.tokens as f64 / done.seconds.max(1e-9);
        rows.push((
            "swept",
            format!("{} tokens in {:.2} s, {rate:.0} tokens/s", done.tokens, done.seconds),
        ));
    }
    rows.extend(done.warnings.iter().map(|warning| ("warning", warning.clone())));
    text += &facts(rows);
    text += &table(
        &["layer", "experts", "Gini", "entropy", "dead", "above 3 × mean", "largest output"],
        done.layers.iter().map(observed),
    );
    text
}

fn tokens_by_domain(groups: &[Group]) -> String {
    let mut domains = Vec::new();
    for label in moe_forward::labels(groups) {
        let tokens: u64 = groups.iter().filter(|g| g.label == label).map(|g| g.tokens).sum();
        domains.push(format!("{label} {tokens}"));
    }
    domains.join(", ")
}

fn observed(layer: &ObservedLayer) -> Vec<String> {
    let load = &layer.load;
    vec![
        layer.layer.to_string(),
        load.counts.len().to_string(),
        format!("{:.3}", load.gini),
        format!("{:.3}", load.entropy),
        load.dead.to_string(),
        load.overloaded.len().to_string(),
        format!("{:.3}", layer.largest_output),
    ]
}

/// Formats the output of a dry run.
pub fn plan(output: &Path, planned: &PlannedOutput) -> String {
    let mut rows = receipt_facts(&planned.receipt, planned.measured_tokens);
    rows.push(("memory", format!("about {}", ByteSize(planned.memory_estimate_bytes))));
    rows.push(("disk", format!("about {} while it runs", ByteSize(planned.disk_bytes))));
    let of = "estimated from what it reads, its matrix products and this machine's speed";
    rows.extend(
        planned
            .time_estimate_seconds
            .map(|seconds| ("time", format!("{} ({of})", duration(seconds)))),
    );
    rows.extend(planned.receipt.warnings.iter().map(|w| ("warning", w.clone())));
    let shards =
        planned.shards.iter().map(|(name, bytes)| vec![name.clone(), ByteSize(*bytes).to_string()]);
    let trust = layers::trust(&planned.receipt);
    format!(
        "would write {}\n{}{}{trust}",
        shown_path(output),
        facts(rows),
        table(&["file", "size"], shards)
    )
}

/// Formats an estimate in words, with few digits.
pub fn duration(seconds: f64) -> String {
    let rounded =
        |value: f64| if value < 10.0 { format!("{value:.1}") } else { format!("{value:.0}") };
    match seconds {
        ..1.0 => "less than a second".to_owned(),
        ..90.0 => format!("about {} s", rounded(seconds)),
        ..5400.0 => format!("about {} minutes", rounded(seconds / 60.0)),
        _ => format!("about {} hours", rounded(seconds / 3600.0)),
    }
}

/// Formats the output of `verify`.
pub fn verification(model: &Path, report: &VerifyReport) -> String {
    let (tensors, size) = (report.tensors, ByteSize(report.bytes));
    let mut rows = vec![
        ("family", report.model_type.clone()),
        ("hashes", hashes(report)),
        ("tensors", format!("{tensors} of the right shape and finite ({size})")),
    ];
    if !report.unlisted.is_empty() {
        let files = report.unlisted.join(", ");
        rows.push(("unlisted", format!("SHA256SUMS says nothing of {files}")));
    }
    if report.experts > 0 {
        let layers = counted(report.layers as u64, "layer");
        rows.push(("experts", format!("all {} present in {layers}", report.experts)));
    }
    rows.extend(report.engines.iter().map(|verdict| ("engine", verdict.to_string())));
    rows.extend(report.notes.iter().map(|note| ("loaders", note.clone())));
    format!("{}: sound\n{}", shown_path(model), facts(rows))
}

fn hashes(report: &VerifyReport) -> String {
    match report.hashed_files {
        Some(files) => format!("{} match SHA256SUMS", counted(files as u64, "file")),
        None => "no SHA256SUMS: not checked".to_owned(),
    }
}
