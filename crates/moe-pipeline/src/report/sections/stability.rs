//! How stable the decision is, and how even the load.

use moe_math::load::Load;

use crate::receipt::Receipt;
use crate::report::html::{Section, Table};
use crate::report::layer::ReportedLayer;
use crate::report::number::{ABSENT, decimal, runs};

const HEADER: [&str; 11] = [
    "layer",
    "Spearman",
    "Jaccard",
    "Gini",
    "entropy",
    "dead",
    "above 3× mean",
    "after: Gini",
    "entropy",
    "dead",
    "above 3× mean",
];

const AGREEMENT: &str = "Rank stability compares what either half of the calibration text alone would have decided: Spearman's \
     correlation of the saliencies, and the Jaccard index of the kept sets; 1 is full agreement. Low figures ask for \
     more text.";

const LOADS: &str = "Load before is that of the calibration text, load after that of the held-out text through the result. Gini: 0 is \
     even, towards 1 one expert gets everything; entropy: 1 is even. Dead experts got no token; experts above 3× mean \
     are named.";

pub(crate) fn section(receipt: &Receipt, layers: &[ReportedLayer]) -> Section {
    let rows = layers.iter().map(|layer| row(layer, load_after(receipt, layer.index)));
    Section::new("stability", "Stability and load").text(AGREEMENT).text(LOADS).table(
        &Table::numbers("Agreement of calibration halves, and load, by layer", &HEADER, rows),
    )
}

/// The load of a layer of the result on held-out text.
fn load_after(receipt: &Receipt, layer: usize) -> Option<&Load> {
    let loads = &receipt.held_out.as_ref()?.result.load;
    Some(&loads.iter().find(|load| load.layer == layer)?.load)
}

fn row(layer: &ReportedLayer, after: Option<&Load>) -> Vec<String> {
    let [rank, kept] = layer.trust.stability.map_or([None; 2], |both| both.map(Some));
    let mut row = vec![layer.index.to_string(), decimal(rank, 3), decimal(kept, 3)];
    row.extend(load((layer.choices() > 0).then_some(&layer.trust.load)));
    row.extend(load(after));
    row
}

fn load(load: Option<&Load>) -> [String; 4] {
    let Some(load) = load else { return [(); 4].map(|()| ABSENT.to_owned()) };
    let overloaded =
        if load.overloaded.is_empty() { "none".to_owned() } else { runs(&load.overloaded) };
    [decimal(Some(load.gini), 3), decimal(Some(load.entropy), 3), load.dead.to_string(), overloaded]
}
