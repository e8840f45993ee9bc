//! The fate of every expert.

use crate::receipt::{RECEIPT_FILE, Receipt};
use crate::report::html::{Section, Table};
use crate::report::layer::{Fate, ReportedLayer, merges};
use crate::report::number::{ABSENT, runs};

/// A table of more experts than this is opened on demand.
const SHOWN_EXPERTS: usize = 1024;

const MERGED: &str = "Numbers are the source's. `3 ← 5, 9` is expert 3 with 5 and 9 merged into it; it keeps the router row of 3.";
const DROPPED: &str =
    "Numbers are the source's; kept experts and their router rows keep their order.";

pub(crate) fn section(receipt: &Receipt, layers: &[ReportedLayer]) -> Section {
    let text = if merges(layers) { MERGED } else { DROPPED };
    let section = Section::new("experts", "What became of each expert").text(text);
    let experts: usize = layers.iter().map(|layer| layer.fates.len()).sum();
    let section = if experts <= SHOWN_EXPERTS {
        section.table(&table(layers))
    } else {
        section.folded(&format!("{experts} experts of {} layers", layers.len()), &table(layers))
    };
    match without_statistics(receipt).as_slice() {
        [] => section,
        others => section.text(&format!(
            "Layers without statistics, such as those for multi-token prediction: {}; {RECEIPT_FILE} says which experts they \
             have.",
            runs(others)
        )),
    }
}

fn table(layers: &[ReportedLayer]) -> Table {
    let merged = merges(layers);
    let mut header = vec!["layer", "kept", "dropped"];
    header.extend(merged.then_some("merged"));
    let row = |layer: &ReportedLayer| {
        let [kept, dropped] = [Fate::Kept, Fate::Dropped].map(|fate| runs(&layer.with(fate)));
        let mut row = vec![layer.index.to_string(), kept, dropped];
        row.extend(merged.then(|| clusters(layer)));
        row
    };
    Table::words("Experts by their numbers in the source", &header, layers.iter().map(row))
}

/// Converted layers that no figures were gathered for.
fn without_statistics(receipt: &Receipt) -> Vec<usize> {
    let layers = receipt.layers.iter();
    let without = layers.filter(|layer| layer.router.is_some() && layer.details.is_none());
    without.map(|layer| layer.layer).collect()
}

fn clusters(layer: &ReportedLayer) -> String {
    let merged = layer.trust.clusters.iter().filter_map(|cluster| match cluster.as_slice() {
        [first, others @ ..] if !others.is_empty() => Some(format!(
            "{first} ← {}",
            others.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
        )),
        _ => None,
    });
    let text = merged.collect::<Vec<_>>().join("; ");
    if text.is_empty() { ABSENT.to_owned() } else { text }
}
