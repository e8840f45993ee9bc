//! The model card: README.md of an output.

use std::fmt::Write as _;

use moe_passes::Identity;

use crate::receipt::{RECEIPT_FILE, RUN_FILE, Receipt};
use crate::resources::ByteSize;

/// The card as Markdown.
pub(crate) fn render(receipt: &Receipt, name: &str) -> String {
    let result = &receipt.result;
    let mut card = format!(
        "---\nlibrary_name: transformers\ntags:\n- moe\n- moe-convert\n- {pass}\n---\n# {name}\n\n\
         Made by moe-convert {version} (`{pass}`) from `{source}` ({source_type}).\n\n\
         | | |\n|---|---|\n\
         | architecture | {family} |\n\
         | parameters | {total} in total, {active} active for each token |\n\
         | weights | {bytes} in {tensors} tensors, {copied} of them byte-identical to the source's |\n",
        pass = receipt.pass,
        version = receipt.tool.version,
        source = receipt.source.name,
        source_type = receipt.source.model_type,
        family = result.model_type,
        total = millions(result.total_parameters),
        active = millions(result.active_parameters),
        bytes = ByteSize(result.bytes),
        tensors = result.tensors,
        copied = result.tensors_copied,
    );
    let _ = writeln!(card, "| function | {} |", identity(&receipt.identity));
    if let Some(measured) = &receipt.measured {
        let d = &measured.difference;
        let _ = writeln!(
            card,
            "| measured | max \\|Δlogit\\| {:.2e} (largest logit {:.1}), KL {:.2e} nats, top-1 agreement {:.1} %, on {} random tokens |",
            d.max_logit_difference,
            d.max_logit,
            d.kl,
            100.0 * d.top1_agreement,
            d.tokens,
        );
    }
    for warning in &receipt.warnings {
        let _ = writeln!(card, "\n> **Note:** {warning}.");
    }
    if let Some(layer) = receipt.layers.first() {
        let _ = write!(
            card,
            "\n## How it was made\n\nRouter: {}. Each of {} layers has",
            layer.router,
            receipt.layers.len()
        );
        let _ = writeln!(card, " {} experts: {}.", layer.experts.len(), layer.experts[0]);
        if let Some(shared) = &layer.shared {
            let _ = writeln!(card, "Shared expert: {shared}.");
        }
    }
    let options = serde_json::to_string_pretty(&receipt.options).unwrap_or_default();
    let _ = write!(
        card,
        "\nOptions:\n\n```json\n{options}\n```\n\n\
         `{RECEIPT_FILE}` has the record of every layer and the hashes of the source, `{RUN_FILE}` times and memory.\n\
         Check this folder with `moe-convert verify .` or `sha256sum -c SHA256SUMS`.\n"
    );
    card
}

/// The promise in words.
pub fn identity(identity: &Identity) -> String {
    match identity {
        Identity::Exact => "the same as the source's, exactly".to_owned(),
        Identity::Approximate { reason } => format!("the source's, approximately: {reason}"),
        Identity::Changed { reason } => format!("changed: {reason}"),
    }
}

fn millions(count: usize) -> String {
    match count {
        0..1_000_000 => format!("{:.1} K", count as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} M", count as f64 / 1e6),
        _ => format!("{:.2} B", count as f64 / 1e9),
    }
}
