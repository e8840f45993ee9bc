//! `report.html`: what was decided, what it costs, and how far that can be trusted, on one page without scripts.
//!
//! It is made of the receipt alone, so that the same run gives the same bytes.

mod charts;
mod html;
mod layer;
mod number;
mod sections;
mod svg;
#[cfg(test)]
mod tests;

use moe_passes::{DistillOptions, Pass, QuantizeOptions};

use crate::receipt::Receipt;
pub(crate) use html::Escaped;
use html::{Section, page};
use layer::ReportedLayer;

/// The page's file name.
pub(crate) const REPORT_FILE: &str = "report.html";

/// The page; none where nothing was decided about experts, and nothing trained.
pub(crate) fn render(receipt: &Receipt) -> Option<String> {
    if let (None, Some(training)) = (receipt.decided, &receipt.training) {
        let sections = [
            sections::training::summary(receipt, training),
            sections::training::held_out(training),
            sections::training::curves(training),
            sections::training::load(training),
            sections::provenance::section(receipt),
        ];
        return Some(page(&format!("{}, trained on", receipt.source.name), &sections));
    }
    receipt.decided?;
    if receipt.pass == QuantizeOptions::NAME {
        let sections = [
            sections::quantized::summary(receipt),
            sections::cost::section(receipt),
            sections::quantized::experts(receipt),
            sections::provenance::section(receipt),
        ];
        return Some(page(&format!("{}, quantized", receipt.source.name), &sections));
    }
    if receipt.pass == DistillOptions::NAME {
        let sections = [
            sections::distilled::summary(receipt),
            sections::cost::section(receipt),
            sections::distilled::layers(receipt),
            sections::provenance::section(receipt),
        ];
        return Some(page(&format!("{}, dense", receipt.source.name), &sections));
    }
    let (first, _) = receipt.first_converted()?;
    let layers: Vec<ReportedLayer<'_>> = receipt.layers.iter().filter_map(ReportedLayer::new).collect();
    let mut sections = vec![sections::summary::section(receipt, &layers), sections::cost::section(receipt)];
    match receipt.no_figures() {
        Some(why) => sections.push(Section::new("layers", "Layers").warning(&format!("There are {why}."))),
        None => sections.extend([
            sections::load::section(&layers),
            sections::saliency::section(&layers),
            sections::error::section(&layers),
            sections::experts::section(receipt, &layers),
            sections::stability::section(receipt, &layers),
        ]),
    }
    sections.push(sections::provenance::section(receipt));
    let experts = match layers.first().map(|layer| layer.trust.experts) {
        Some([before, after]) => format!("{after} of {before}"),
        None => first.experts.len().to_string(),
    };
    Some(page(&format!("{}: {experts} experts", receipt.source.name), &sections))
}
