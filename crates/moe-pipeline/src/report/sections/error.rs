//! Each layer's loss of saliency mass and choices, and its output error.

use crate::report::charts::{Columns, columns};
use crate::report::html::{Section, Table};
use crate::report::layer::{ReportedLayer, merges};
use crate::report::number::{ABSENT, decimal, percent};

pub(crate) fn section(layers: &[ReportedLayer]) -> Section {
    let indices: Vec<usize> = layers.iter().map(|layer| layer.index).collect();
    let of =
        |value: fn(&ReportedLayer) -> Option<f64>| layers.iter().map(value).collect::<Vec<_>>();
    let [kept, worst, gone, error] = [
        of(|layer| layer.mass()),
        of(|layer| layer.worst()),
        of(lost),
        of(|layer| layer.trust.output_error),
    ];
    let chart = |id, title, values, marks, shares| {
        let format = if shares { percent } else { |value| decimal(value, 3) };
        columns(&Columns { id, title, layers: &indices, values, marks, format, shares })
    };
    let header = [
        "layer",
        "saliency mass kept",
        "worst domain",
        "its mass kept",
        "choices that lost their expert",
        "relative output error",
    ];
    let row = |layer: &ReportedLayer| {
        vec![
            layer.index.to_string(),
            if layer.trust.merges_all() { "all, merged".to_owned() } else { percent(layer.mass()) },
            layer.trust.worst_domain.as_ref().map_or(ABSENT.to_owned(), |(label, _)| label.clone()),
            percent(layer.worst()),
            percent(lost(layer)),
            decimal(layer.trust.output_error, 3),
        ]
    };
    let merged = if merges(layers) {
        " An expert that was merged into another isn't gone: its mass and choices are kept, and what merging costs shows in the \
         error. Where only some of its neurons were merged, it counts by their share."
    } else {
        ""
    };
    let masses = kept
        .iter()
        .any(Option::is_some)
        .then(|| chart("error-mass", "Saliency mass kept", &kept, &worst, true));
    Section::new("error", "What each layer loses")
        .text(&format!(
            "Mass kept is the share of Σ gate × ‖output‖ that the experts which go on had before; choices lost is the share of routed \
             tokens' choices whose expert is gone; the relative error is that of the layer's output when all tokens are routed \
             anew, on the states that reached it.{merged}"
        ))
        .legend(&[("kept", "all calibration text"), ("mark", "worst domain")])
        .charts(masses.into_iter().chain([
            chart("error-lost", "Choices that lost their expert", &gone, &[], true),
            chart("error-output", "Relative error of the output, tokens rerouted", &error, &[], false),
        ]))
        .table(&Table::numbers("Error and retained mass, by layer", &header, layers.iter().map(row)))
}

fn lost(layer: &ReportedLayer) -> Option<f64> {
    layer.counted(layer.trust.lost_choices)
}
