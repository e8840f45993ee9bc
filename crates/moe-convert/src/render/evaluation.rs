//! Tables of measurements on text.

use std::path::Path;

use moe_checkpoint::shown_path;
use moe_forward::{Comparison, DomainReport, EvalReport};
use moe_pipeline::{HeldOutReport, MeasuredGate, Receipt, StageReport};

use super::table::{or_dash, table};

/// Formats the output of `eval`.
pub fn evaluation(
    model: &Path,
    against: Option<&Path>,
    report: &EvalReport,
    met: &[MeasuredGate],
) -> String {
    let mut header = vec!["domain", "tokens", "loss", "perplexity"];
    let has_rare = report.rows().any(|d| d.against.as_ref().is_some_and(|a| a.rare_kl.is_some()));
    if against.is_some() {
        header.extend(["original loss", "Δ loss", "KL"]);
        header.extend(has_rare.then_some("KL, rare experts"));
        header.push("top-1 same");
    }
    let beside = against.map_or(String::new(), |a| format!(" against {}", shown_path(a)));
    let mut text = format!("{}{beside}\n", shown_path(model));
    text += &table(&header, report.rows().map(|d| domain_row(d, has_rare)));
    if !report.load.is_empty() {
        text.push('\n');
        text += &expert_load(report);
    }
    text += &gates_met(met);
    text
}

fn domain_row(d: &DomainReport, has_rare: bool) -> Vec<String> {
    let mut row = vec![
        d.label.clone(),
        d.tokens.to_string(),
        format!("{:.4}", d.loss),
        format!("{:.3}", d.perplexity),
    ];
    if let Some(a) = &d.against {
        row.push(format!("{:.4}", a.original_loss));
        row.extend(d.loss_change().map(|change| signed(change, 5)));
        row.push(format!("{:.2e}", a.kl));
        row.extend(has_rare.then(|| or_dash(a.rare_kl.map(|kl| format!("{kl:.2e}")))));
        row.push(format!("{:.2} %", 100.0 * a.top1_agreement));
    }
    row
}

/// Describes the gates that were met. The others are in the error.
fn gates_met(met: &[MeasuredGate]) -> String {
    const SHOWN: usize = 6;
    if met.is_empty() {
        return String::new();
    }
    let mut lines: Vec<String> = met.iter().take(SHOWN).map(MeasuredGate::describe).collect();
    if met.len() > SHOWN {
        lines.push(format!("and {} more", met.len() - SHOWN));
    }
    format!("\n  gates met: {}\n", lines.join("; "))
}

/// Formats `change` with its sign, unless it rounds to zero.
fn signed(change: f64, decimals: usize) -> String {
    let text = format!("{change:+.decimals$}");
    if text.trim_start_matches(['+', '-', '0', '.']).is_empty() {
        format!("{:.decimals$}", 0.0)
    } else {
        text
    }
}

fn expert_load(report: &EvalReport) -> String {
    let rows = report.load.iter().map(|l| {
        let total: u64 = l.load.counts.iter().sum();
        let share = |c: Option<&u64>| {
            format!("{:.1} %", 100.0 * *c.unwrap_or(&0) as f64 / total.max(1) as f64)
        };
        let overloaded: Vec<_> = l.load.overloaded.iter().map(usize::to_string).collect();
        vec![
            l.layer.to_string(),
            l.load.counts.len().to_string(),
            share(l.load.counts.iter().min()),
            share(l.load.counts.iter().max()),
            format!("{:.3}", l.load.gini),
            format!("{:.3}", l.load.entropy),
            l.load.dead.to_string(),
            if overloaded.is_empty() { "–".to_owned() } else { overloaded.join(" ") },
        ]
    });
    table(&["layer", "experts", "least", "most", "Gini", "entropy", "dead", "over 3× mean"], rows)
}

/// For runs of several stages, held-out results of each: KL and top-1 agreement over all text, and
/// the change of loss by domain.
fn stages(held_out: &HeldOutReport) -> String {
    if held_out.stages.is_empty() {
        return String::new();
    }
    let of_domain = |d: &DomainReport| format!("{}: Δ loss", d.label);
    let mut header: Vec<String> = ["stage", "KL", "top-1 same", "Δ loss"].map(str::to_owned).into();
    header.extend(held_out.result.domains.iter().map(of_domain));
    let change = |d: &DomainReport| or_dash(d.loss_change().map(|change| signed(change, 4)));
    let row = |stage: &StageReport| {
        let all = &stage.report.all;
        let against = |format: fn(&Comparison) -> String| or_dash(all.against.as_ref().map(format));
        let mut row = vec![
            stage.name(),
            against(|a| format!("{:.4}", a.kl)),
            against(|a| format!("{:.1} %", 100.0 * a.top1_agreement)),
        ];
        row.push(change(all));
        row.extend(stage.report.domains.iter().map(change));
        row
    };
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    format!("\n{}", table(&header, held_out.stages.iter().map(row)))
}

/// Formats the cost of a result on held-out text, compared with that of its baseline.
pub(super) fn held_out(receipt: &Receipt) -> String {
    let Some(held_out) = &receipt.held_out else { return String::new() };
    let of_control = format!("{}: Δ loss", receipt.baseline_name());
    let mut header = vec!["held-out", "tokens", "original loss", "Δ loss", "KL", "top-1 same"];
    if held_out.baseline.is_some() {
        header.extend([of_control.as_str(), "KL"]);
    }
    let changes = |d: &DomainReport| {
        let kl = d.against.as_ref().map(|a| format!("{:.4}", a.kl));
        [or_dash(d.loss_change().map(|change| signed(change, 4))), or_dash(kl)]
    };
    let row = |(d, control): (&DomainReport, Option<&DomainReport>)| {
        let against = |format: fn(&Comparison) -> String| or_dash(d.against.as_ref().map(format));
        let mut row = vec![
            d.label.clone(),
            d.tokens.to_string(),
            against(|a| format!("{:.4}", a.original_loss)),
        ];
        row.extend(changes(d));
        row.push(against(|a| format!("{:.1} %", 100.0 * a.top1_agreement)));
        row.extend(control.into_iter().flat_map(changes));
        row
    };
    format!("{}\n{}", stages(held_out), table(&header, held_out.rows().map(row)))
}
