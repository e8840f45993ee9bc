//! The cost on held-out text, and how far decisions can be trusted, in short.

use std::fmt::Write as _;

use moe_forward::DomainReport;
use moe_passes::{LayerTrust, ReportKind};

use crate::file_names::REPORT_FILE;
use crate::markdown::{MarkdownCode, MarkdownText};
use crate::receipt::Receipt;
use crate::trust::HeldOutReport;

/// The section on held-out text and decisions; empty where there were neither.
pub(super) fn trust(receipt: &Receipt) -> String {
    if receipt.decided.is_none() && receipt.held_out.is_none() {
        return String::new();
    }
    let mut text = String::from("\n## How far it can be trusted\n\n");
    match &receipt.held_out {
        Some(held_out) => text.push_str(&table(held_out, receipt.baseline_name())),
        None => text.push_str("Nothing was measured on held-out text (`--held-out`).\n"),
    }
    if let Some(why) = receipt.no_figures() {
        let _ = writeln!(text, "\nThere are {}.", MarkdownText(why));
    }
    let decided = receipt.details::<LayerTrust>().into_iter();
    let worst = decided.min_by(|a, b| a.1.retained_mass.total_cmp(&b.1.retained_mass));
    if let Some((layer, trust)) = worst {
        let _ = writeln!(
            text,
            "\n{} `{REPORT_FILE}` shows every layer: loads, saliencies, errors, what became of each expert, and how \
             stable the choice is.",
            least_kept(receipt.pass.report, layer, &trust)
        );
    }
    text
}

/// Describes the mass that `layer`, which keeps the smallest share, keeps.
fn least_kept(report: ReportKind, layer: usize, trust: &LayerTrust) -> String {
    match (trust.retained_mass, report) {
        (1.0.., ReportKind::Experts { none_lost }) => {
            format!("Every layer keeps all of its mass (Σ gate × norm of output): {none_lost}.")
        }
        (share, _) => {
            let domain = trust.worst_domain.as_ref().map_or(String::new(), |(label, share)| {
                format!(", {:.1} % of the domain {}", 100.0 * share, MarkdownCode(label))
            });
            format!(
                "The layer that keeps least, {layer}, keeps {:.1} % of its mass (Σ gate × norm of output){domain}.",
                100.0 * share
            )
        }
    }
}

/// A table of held-out text by domain, compared with the baseline.
fn table(held_out: &HeldOutReport, baseline: &str) -> String {
    let mut text = format!(
        "| held-out text | Δ loss | KL | top-1 agreement | {}: Δ loss | KL | top-1 agreement |\n\
         |---|--:|--:|--:|--:|--:|--:|\n",
        MarkdownText(baseline)
    );
    for (domain, beside) in held_out.rows() {
        let (label, result) = (MarkdownText(&domain.label), figures(Some(domain)));
        let _ = writeln!(text, "| {label} | {result} | {} |", figures(beside));
    }
    text
}

/// Three cells of the table.
fn figures(domain: Option<&DomainReport>) -> String {
    let both = domain.and_then(|d| Some((d.loss_change()?, d.against.as_ref()?)));
    match both.filter(|(change, _)| change.is_finite()) {
        Some((change, a)) => {
            format!("{change:+.4} | {:.4} | {:.1} %", a.kl, 100.0 * a.top1_agreement)
        }
        None => "– | – | –".to_owned(),
    }
}
