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

use crate::receipt::Receipt;
use html::page;
use layer::ReportedLayer;

/// The page's file name.
pub(crate) const REPORT_FILE: &str = "report.html";

/// The page; none where no layer was decided on data.
pub(crate) fn render(receipt: &Receipt) -> Option<String> {
    let layers: Vec<ReportedLayer<'_>> = receipt.layers.iter().filter_map(ReportedLayer::new).collect();
    if layers.is_empty() {
        return None;
    }
    let sections = [
        sections::summary::section(receipt, &layers),
        sections::cost::section(receipt),
        sections::load::section(&layers),
        sections::saliency::section(&layers),
        sections::error::section(&layers),
        sections::experts::section(receipt, &layers),
        sections::stability::section(receipt, &layers),
        sections::provenance::section(receipt),
    ];
    let [before, after] = layers[0].trust.experts;
    let title = format!("{}: {after} of {before} experts", receipt.source.name);
    Some(page(&title, &sections))
}
