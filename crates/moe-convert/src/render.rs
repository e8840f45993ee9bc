//! Results as text for people.

mod evaluation;
mod inspection;
mod layers;
mod next;
mod speed;
mod summary;
mod table;
mod training;

use std::path::Path;

use moe_checkpoint::{counted, shown_path};
use moe_passes::Identity;
use moe_pipeline::{
    ByteSize, Conversion, Observation, PlannedOutput, Receipt, VerifyReport, describe_identity,
    peak_memory_bytes,
};

use evaluation::held_out;
use table::{count, facts, table};

pub use evaluation::evaluation;
pub use inspection::inspection;
pub use next::word;
pub use speed::{bench, selftest, timings};
pub use summary::summary;

/// What comes after a conversion.
#[derive(Clone, Copy, PartialEq)]
pub enum After {
    /// What its user types next.
    Nothing,
    /// The other steps of a recipe.
    Steps,
}

/// What a receipt says; of a run that is only planned, with how many held-out tokens it will
/// measure on.
fn receipt_facts(receipt: &Receipt, measured_tokens: Option<usize>) -> Vec<(&'static str, String)> {
    let (source, result) = (&receipt.source, &receipt.result);
    let mut rows = vec![
        ("family", format!("{} → {}", source.model_type, result.model_type)),
        (
            "parameters",
            format!(
                "{} → {} in total, {} → {} active for each token",
                count(source.total_parameters),
                count(result.total_parameters),
                count(source.active_parameters),
                count(result.active_parameters)
            ),
        ),
        (
            "size",
            format!(
                "{} → {}, {}",
                ByteSize(source.bytes),
                ByteSize(result.bytes),
                times(source.bytes, result.bytes)
            ),
        ),
        (
            "tensors",
            format!("{}, {} of them copied byte for byte", result.tensors, result.tensors_copied),
        ),
    ];
    if !receipt.before.is_empty() {
        rows.push(("passes", receipt.passes()));
    }
    receipt.earlier().into_iter().for_each(|earlier| rows.extend(made(&earlier)));
    rows.extend(made(receipt));
    rows.push(("function", describe_identity(&receipt.identity)));
    let quality = quality(receipt);
    // Of a model that was changed, random tokens say little, and nothing beside text.
    let measured = receipt
        .measured
        .as_ref()
        .filter(|_| receipt.identity == Identity::Exact || quality.is_none());
    if let Some(measured) = measured {
        let d = &measured.difference;
        let text = format!(
            "max |Δlogit| {:.2e} (largest logit {:.1}), KL {:.1e}, top-1 agreement {:.1} %, on {} random tokens",
            d.max_logit_difference,
            d.max_logit,
            d.kl,
            100.0 * d.top1_agreement,
            d.tokens
        );
        rows.push(("measured", text));
    }
    match quality {
        Some(quality) => rows.push(("quality", quality)),
        None if measured_tokens.is_some() => {
            let tokens = counted(measured_tokens.unwrap_or_default() as u64, "held-out token");
            rows.push(("quality", format!("measured when it runs, on {tokens}")));
        }
        None if receipt.identity == Identity::Exact => {}
        None => {
            // What starts out as its source has nothing to measure yet.
            let measures = if receipt.pass.has_option("held-out") {
                "--held-out TEXT does, and eval"
            } else {
                "eval does"
            };
            rows.push(("quality", format!("not measured on text ({measures})")));
        }
    }
    if let Some(training) = &receipt.training {
        rows.push(("trained", training::fact(training)));
    }
    if let Some(why) = receipt.no_figures() {
        let ask = if receipt.held_out.is_some() || measured_tokens.is_some() {
            ""
        } else {
            "; --held-out TEXT shows what the result costs"
        };
        rows.push(("trust", format!("{why}{ask}")));
    }
    rows
}

/// What a pass made of experts.
fn made(receipt: &Receipt) -> Vec<(&'static str, String)> {
    let mut rows = Vec::new();
    if let Some((layer, router)) = receipt.first_converted() {
        rows.extend(
            receipt
                .experts()
                .into_iter()
                .enumerate()
                .map(|(i, line)| (if i == 0 { "experts" } else { "" }, line)),
        );
        if let Some(shared) = &layer.shared {
            rows.push(("shared expert", shared.clone()));
        }
        rows.push(("router", router.to_owned()));
    }
    rows.extend(receipt.distilled().map(|made| ("dense", made)));
    rows
}

/// How much larger or smaller something became.
fn times(before: u64, after: u64) -> String {
    match after as f64 / before.max(1) as f64 {
        0.995..1.005 => "the same".to_owned(),
        factor => format!("{factor:.2} ×"),
    }
}

/// What held-out text says of the result, all of it together; beside what was trained, or else the
/// original.
fn quality(receipt: &Receipt) -> Option<String> {
    let training = receipt.training.as_ref();
    let trained =
        training.and_then(|t| Some((t.before.as_ref()?.all.loss, &t.after.as_ref()?.all)));
    let (before, all) = match &receipt.held_out {
        Some(held_out) => {
            (held_out.result.all.against.as_ref()?.original_loss, &held_out.result.all)
        }
        None => trained?,
    };
    let against = all.against.as_ref().map_or(String::new(), |a| {
        format!(", KL to the original {:.4}, top-1 same {:.1} %", a.kl, 100.0 * a.top1_agreement)
    });
    Some(format!("loss {before:.4} → {:.4}{against}, on {} held-out tokens", all.loss, all.tokens))
}

/// A finished conversion, with `warnings` that weren't shown while it ran.
pub fn conversion(
    input: &Path,
    output: &Path,
    done: &Conversion,
    warnings: &[&str],
    after: After,
) -> String {
    let mut rows = receipt_facts(&done.receipt, None);
    let seconds = done.timings.total();
    let writing: f64 = done.timings.0.iter().filter(|s| s.bytes.is_some()).map(|s| s.seconds).sum();
    let peak =
        peak_memory_bytes().map_or(String::new(), |b| format!(", peak memory {}", ByteSize(b)));
    let rate = ByteSize((done.bytes as f64 / writing.max(1e-9)) as u64);
    rows.push((
        "time",
        format!("{seconds:.2} s, of which writing {writing:.2} s ({rate}/s, hashed){peak}"),
    ));
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

/// `observe`.
pub fn observation(model: &Path, done: &Observation) -> String {
    let mut text = format!("{} → {}\n", shown_path(model), shown_path(&done.output));
    let mut rows = vec![("counted", {
        let domains = moe_forward::labels(&done.groups);
        let tokens = |label: &str| {
            done.groups.iter().filter(|g| g.label == label).map(|g| g.tokens).sum::<u64>()
        };
        domains
            .iter()
            .map(|label| format!("{label} {}", tokens(label)))
            .collect::<Vec<_>>()
            .join(", ")
    })];
    if done.tokens > 0 {
        let rate = done.tokens as f64 / done.seconds.max(1e-9);
        rows.push((
            "swept",
            format!("{} tokens in {:.2} s, {rate:.0} tokens/s", done.tokens, done.seconds),
        ));
    }
    rows.extend(done.warnings.iter().map(|warning| ("warning", warning.clone())));
    text += &facts(rows);
    let row = |layer: &moe_pipeline::ObservedLayer| {
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
    };
    text += &table(
        &["layer", "experts", "Gini", "entropy", "dead", "above 3 × mean", "largest output"],
        done.layers.iter().map(row),
    );
    text
}

/// A plan that was not run.
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

/// An estimate in words, as exact as it can be.
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

/// `verify`.
pub fn verification(model: &Path, report: &VerifyReport) -> String {
    let hashes = match report.hashed_files {
        Some(files) => format!("{} match SHA256SUMS", counted(files as u64, "file")),
        None => "no SHA256SUMS: not checked".to_owned(),
    };
    let mut rows = vec![
        ("family", report.model_type.clone()),
        ("hashes", hashes),
        (
            "tensors",
            format!(
                "{} of the right shape and finite ({})",
                report.tensors,
                ByteSize(report.bytes)
            ),
        ),
    ];
    if !report.unlisted.is_empty() {
        rows.push((
            "unlisted",
            format!("SHA256SUMS says nothing of {}", report.unlisted.join(", ")),
        ));
    }
    if report.experts > 0 {
        rows.push((
            "experts",
            format!("all {} present in {}", report.experts, counted(report.layers as u64, "layer")),
        ));
    }
    rows.extend(report.engines.iter().map(|verdict| ("engine", verdict.to_string())));
    rows.extend(report.notes.iter().map(|note| ("loaders", note.clone())));
    format!("{}: sound\n{}", shown_path(model), facts(rows))
}
