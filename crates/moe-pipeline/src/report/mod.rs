//! `report.html`: one page without scripts that shows the decisions, their cost, and how far they
//! can be trusted.
//!
//! It is made from the receipt alone, so that the same run gives the same bytes.

mod charts;
mod escaped;
mod html;
mod layer;
mod number;
mod sections;
mod svg;
#[cfg(test)]
mod tests;
mod written;

use moe_passes::ReportKind;

use crate::file_names::REPORT_FILE;
use crate::receipt::Receipt;
use crate::train::TrainingRecord;
pub(crate) use escaped::Escaped;
use html::{Section, page};
use layer::ReportedLayer;
pub use written::{report, write_report};

/// Pages by file name: one for the result and, where passes ran before the last one, one for each
/// of them. Empty where nothing was decided about experts, and nothing trained.
pub(crate) fn pages(receipt: &Receipt) -> Vec<(String, String)> {
    let earlier = receipt.earlier().into_iter().enumerate().filter_map(|(index, earlier)| {
        let (title, mut sections) = sections_of(&earlier)?;
        sections.retain(|section| section.id() != sections::cost::ID);
        Some((format!("report-{}-{}.html", index + 1, earlier.pass), page(&title, &sections)))
    });
    let last = sections_of(receipt).map(|(title, mut sections)| {
        sections.push(sections::provenance::section(receipt));
        (REPORT_FILE.to_owned(), page(&title, &sections))
    });
    last.into_iter().chain(earlier).collect()
}

/// The title and sections of a page, except provenance; None where there is nothing to report.
fn sections_of(receipt: &Receipt) -> Option<(String, Vec<Section>)> {
    let source = &receipt.source.name;
    if let (ReportKind::Training, Some(training)) = (receipt.pass.report, &receipt.training) {
        return Some((format!("{source}, trained on"), on_training(receipt, training)));
    }
    receipt.decided?;
    match receipt.pass.report {
        ReportKind::Quantized => Some((format!("{source}, quantized"), on_quantized(receipt))),
        ReportKind::Dense => Some((format!("{source}, dense"), on_dense(receipt))),
        ReportKind::Training | ReportKind::Experts { .. } => on_experts(receipt),
    }
}

fn on_training(receipt: &Receipt, training: &TrainingRecord) -> Vec<Section> {
    vec![
        sections::training::summary(receipt, training),
        sections::training::held_out(training),
        sections::training::curves(training),
        sections::training::load(training),
    ]
}

fn on_quantized(receipt: &Receipt) -> Vec<Section> {
    vec![
        sections::quantized::summary(receipt),
        sections::cost::section(receipt),
        sections::quantized::experts(receipt),
    ]
}

fn on_dense(receipt: &Receipt) -> Vec<Section> {
    vec![
        sections::distilled::summary(receipt),
        sections::cost::section(receipt),
        sections::distilled::layers(receipt),
    ]
}

/// As [`sections_of`], for a pass that chose among experts.
fn on_experts(receipt: &Receipt) -> Option<(String, Vec<Section>)> {
    let (first, _) = receipt.first_converted()?;
    let layers: Vec<ReportedLayer> = receipt.layers.iter().filter_map(ReportedLayer::new).collect();
    let mut sections =
        vec![sections::summary::section(receipt, &layers), sections::cost::section(receipt)];
    match receipt.no_figures() {
        Some(why) => {
            sections.push(Section::new("layers", "Layers").warning(&format!("There are {why}.")));
        }
        None => sections.extend([
            sections::load::section(&layers),
            sections::saliency::section(&layers),
            sections::error::section(&layers),
            sections::experts::section(receipt, &layers),
            sections::stability::section(receipt, &layers),
        ]),
    }
    let experts = match layers.first().map(|layer| layer.trust.experts) {
        Some([before, after]) => format!("{after} of {before}"),
        None => first.experts.len().to_string(),
    };
    Some((format!("{}: {experts} experts", receipt.source.name), sections))
}
