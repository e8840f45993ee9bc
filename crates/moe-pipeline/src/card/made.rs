//! The card's section on how experts, routers and dense layers were made.

use std::fmt::Write as _;

use moe_passes::{LayerRecord, RouterEdit};

use crate::markdown::{MarkdownCode, MarkdownText};
use crate::receipt::{RECEIPT_FILE, Receipt};

/// The section on what the last pass of `receipt` made; empty where it converted no layer.
pub(super) fn how_it_was_made(receipt: &Receipt, heading: &str) -> String {
    let made = if let Some(made) = receipt.distilled() {
        format!("{}; `{RECEIPT_FILE}` says of what.\n", MarkdownText(&made))
    } else if let Some((layer, router)) = receipt.first_converted() {
        if receipt.decided.is_some() {
            chosen(receipt, router)
        } else {
            built(receipt, layer, router)
        }
    } else {
        return String::new();
    };
    format!("\n## {heading}\n\n{made}")
}

/// Experts that a pass chose.
fn chosen(receipt: &Receipt, router: &RouterEdit) -> String {
    let experts = receipt.experts();
    let experts: Vec<_> = experts.iter().map(|line| MarkdownText(line).to_string()).collect();
    let router = router.to_string();
    format!("Experts: {}.\n\nRouter: {}.\n", experts.join("\n"), MarkdownText(&router))
}

/// Experts that a pass built alike in all layers, of which `layer` is the first.
fn built(receipt: &Receipt, layer: &LayerRecord, router: &RouterEdit) -> String {
    let mut text = String::new();
    let converted = receipt.layers.iter().filter(|layer| layer.router.is_some());
    let converted: Vec<usize> = converted.map(|layer| layer.layer).collect();
    if converted.len() < receipt.layers.len() {
        let _ = writeln!(
            text,
            "Layers with experts: {converted:?}; the others are the source's dense ones.\n"
        );
    }
    let (layers, experts) = (converted.len(), layer.experts.len());
    let _ = writeln!(text, "Each of {layers} layers has {experts} experts:\n");
    for kind in layer.experts_by_kind() {
        let _ = writeln!(text, "- {}", MarkdownText(&kind));
    }
    if let Some(shared) = layer.shared_sentence() {
        let _ = writeln!(text, "- shared expert: {}", MarkdownText(&shared));
    }
    let _ = writeln!(text, "\nRouter: {}.", MarkdownText(&router.to_string()));
    if !receipt.others.is_empty() {
        let names = receipt.others.iter().map(|source| MarkdownCode(&source.name).to_string());
        let _ = writeln!(text, "\nExperts come from {}.", names.collect::<Vec<_>>().join(", "));
    }
    text
}
