//! The fate of every expert.

use crate::receipt::{RECEIPT_FILE, Receipt};
use crate::report::html::{Section, Table};
use crate::report::layer::{Fate, ReportedLayer, merges};
use crate::report::number::{ABSENT, runs};

/// A table of more experts than this is opened on demand.
const SHOWN_EXPERTS: usize = 1024;

pub(crate) fn section(receipt: &Receipt, layers: &[ReportedLayer]) -> Section {
    let merged = merges(layers);
    let mut header = vec!["layer", "kept", "dropped"];
    header.extend(merged.then_some("merged"));
    let row = |layer: &ReportedLayer| {
        let mut row = vec![
            layer.index.to_string(),
            runs(&layer.with(Fate::Kept)),
            runs(&layer.with(Fate::Dropped)),
        ];
        row.extend(merged.then(|| clusters(layer)));
        row
    };
    let table =
        Table::words("Experts by their numbers in the source", &header, layers.iter().map(row));
    let mut section = Section::new("experts", "What became of each expert").text(&match merged {
        true => "Numbers are the source's. `3 ← 5, 9` is expert 3 with 5 and 9 merged into it; it keeps the router row of 3.".to_owned(),
        false => "Numbers are the source's; kept experts and their router rows keep their order.".to_owned(),
    });
    let experts: usize = layers.iter().map(|layer| layer.fates.len()).sum();
    section = match experts <= SHOWN_EXPERTS {
        true => section.table(&table),
        false => section.folded(&format!("{experts} experts of {} layers", layers.len()), &table),
    };
    let others: Vec<usize> = receipt
        .layers
        .iter()
        .filter(|l| l.router.is_some() && l.details.is_none())
        .map(|l| l.layer)
        .collect();
    match others.as_slice() {
        [] => section,
        others => section.text(&format!(
            "Layers without statistics, such as those for multi-token prediction: {}; {RECEIPT_FILE} says which experts they \
             have.",
            runs(others)
        )),
    }
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
