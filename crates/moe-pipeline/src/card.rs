//! The model card: README.md of an output.

use std::fmt::Write as _;

use moe_passes::{Identity, Kept};

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
    card.push_str(&how_it_was_made(receipt));
    card.push_str("\n| option | keeps the function | because |\n|---|---|---|\n");
    for effect in &receipt.effects {
        let kept = match effect.kept {
            Kept::Exactly => "yes",
            Kept::Approximately => "approximately",
            Kept::No => "no",
        };
        let _ = writeln!(card, "| `{}` | {kept} | {} |", effect.option, effect.why);
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

fn how_it_was_made(receipt: &Receipt) -> String {
    let Some((layer, router)) = receipt.first_converted() else { return String::new() };
    let mut text = String::from("\n## How it was made\n\n");
    let converted: Vec<usize> = receipt.layers.iter().filter(|l| l.router.is_some()).map(|l| l.layer).collect();
    if converted.len() < receipt.layers.len() {
        let _ = writeln!(text, "Layers with experts: {converted:?}; the others are the source's dense ones.\n");
    }
    let _ = writeln!(text, "Each of {} layers has {} experts:\n", converted.len(), layer.experts.len());
    for kind in layer.experts_by_kind() {
        let _ = writeln!(text, "- {kind}");
    }
    if let Some(shared) = &layer.shared {
        let _ = writeln!(text, "- shared expert: {shared}");
    }
    let _ = writeln!(text, "\nRouter: {router}.");
    if !receipt.others.is_empty() {
        let names: Vec<_> = receipt.others.iter().map(|source| format!("`{}`", source.name)).collect();
        let _ = writeln!(text, "\nExperts come from {}.", names.join(", "));
    }
    text
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
