//! How stable the decision is, and how even the load.

use moe_math::load::Load;

use crate::receipt::Receipt;
use crate::report::html::{Section, Table};
use crate::report::layer::ReportedLayer;
use crate::report::number::{ABSENT, decimal, runs};

pub(crate) fn section(receipt: &Receipt, layers: &[ReportedLayer]) -> Section {
    let after = |layer: usize| {
        let load = receipt.held_out.as_ref()?.result.load.iter().find(|l| l.layer == layer)?;
        Some(&load.load)
    };
    let row = |layer: &ReportedLayer| {
        let [rank, kept] = layer.trust.stability.map_or([None; 2], |both| both.map(Some));
        let mut row = vec![layer.index.to_string(), decimal(rank, 3), decimal(kept, 3)];
        row.extend(load((layer.choices() > 0).then_some(&layer.trust.load)));
        row.extend(load(after(layer.index)));
        row
    };
    let header = [
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
    let layers = layers.iter().map(row);
    Section::new("stability", "Stability and load")
        .text(
            "Rank stability compares what either half of the calibration text alone would have decided: Spearman's \
             correlation of the saliencies, and the Jaccard index of the kept sets; 1 is full agreement. Low figures ask for \
             more text.",
        )
        .text(
            "Load before is that of the calibration text, load after that of the held-out text through the result. Gini: 0 is \
             even, towards 1 one expert gets everything; entropy: 1 is even. Dead experts got no token; experts above 3× mean \
             are named.",
        )
        .table(&Table::numbers("Agreement of calibration halves, and load, by layer", &header, layers))
}

fn load(load: Option<&Load>) -> [String; 4] {
    let Some(load) = load else { return [(); 4].map(|()| ABSENT.to_owned()) };
    let overloaded =
        if load.overloaded.is_empty() { "none".to_owned() } else { runs(&load.overloaded) };
    [decimal(Some(load.gini), 3), decimal(Some(load.entropy), 3), load.dead.to_string(), overloaded]
}
