//! The load of the experts before the pass.

use crate::report::charts::{LEVELS, heatmap};
use crate::report::html::{Section, Table};
use crate::report::layer::{ReportedLayer, merges};
use crate::report::number::grouped;

const BEFORE: &str = "Calibration tokens that the routers sent to each expert before any of its layer's went. A layer whose dropped experts \
     were well used loses more than one whose dropped experts slept.";

pub(crate) fn section(layers: &[ReportedLayer]) -> Section {
    Section::new("load", "Load of experts before")
        .text(BEFORE)
        .legend(&legend(layers))
        .wide(&heatmap(layers))
        .folded("Every number", &table(layers))
}

fn legend(layers: &[ReportedLayer]) -> Vec<(&'static str, &'static str)> {
    let low = if merges(layers) {
        "low cell: the expert was dropped, or merged into another"
    } else {
        "low cell: the expert was dropped"
    };
    let mut legend = vec![("dead", "no token")];
    legend.extend(LEVELS.map(|(class, _, words)| (class, words)));
    legend.extend([("high", "full cell: the expert stays"), ("low", low)]);
    legend
}

fn table(layers: &[ReportedLayer]) -> Table {
    let experts = layers.iter().map(|layer| layer.trust.load.counts.len()).max().unwrap_or(0);
    let mut header = vec!["layer".to_owned()];
    header.extend((0..experts).map(|e| e.to_string()));
    let row = |layer: &ReportedLayer| {
        let counts = layer.trust.load.counts.iter().map(|c| grouped(*c));
        [layer.index.to_string()].into_iter().chain(counts).collect()
    };
    Table {
        caption: "Tokens routed to each expert before",
        header,
        rows: layers.iter().map(row).collect(),
        words: false,
    }
}
