//! The saliencies that experts were ranked by.

use crate::report::charts::curve;
use crate::report::html::{Section, Table};
use crate::report::layer::{Fate, ReportedLayer, merges};
use crate::report::number::{runs, significant};

const HEADER: [&str; 6] = [
    "layer",
    "greatest",
    "least of the kept",
    "greatest of the others",
    "least",
    "super experts, by number",
];

const RANKED: &str = "The experts of each layer, the most salient first. Where the curve is flat at the cut, the choice was close; where \
     it is steep, it was clear. Super experts have outputs so large that a model breaks without them. Saliencies of \
     different layers don't compare.";

pub(crate) fn section(layers: &[ReportedLayer]) -> Section {
    let section = Section::new("saliency", "Saliency of experts");
    let curves: Vec<_> = layers.iter().filter_map(curve).collect();
    if curves.is_empty() {
        return section.text("This method gives experts no saliency of their own.");
    }
    let mut legend = vec![("kept", "kept"), ("gone", "dropped"), ("super", "super expert")];
    if merges(layers) {
        legend.insert(1, ("merged", "merged into another"));
    }
    section.text(RANKED).legend(&legend).charts(curves).table(&Table::numbers(
        "Saliency, by layer",
        &HEADER,
        layers.iter().map(row),
    ))
}

fn row(layer: &ReportedLayer) -> Vec<String> {
    let saliency = |kept: Option<bool>| {
        let wanted = move |fate: Fate| kept.is_none_or(|kept| (fate == Fate::Kept) == kept);
        let both = layer.fates.iter().zip(&layer.trust.saliency);
        both.filter(move |(fate, value)| wanted(**fate) && value.is_finite())
            .map(|(_, value)| *value)
    };
    vec![
        layer.index.to_string(),
        significant(saliency(None).reduce(f64::max)),
        significant(saliency(Some(true)).reduce(f64::min)),
        significant(saliency(Some(false)).reduce(f64::max)),
        significant(saliency(None).reduce(f64::min)),
        runs(&layer.trust.super_experts),
    ]
}
