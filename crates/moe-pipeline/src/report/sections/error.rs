//! Each layer's loss of mass and choices, and its output error.

use crate::report::charts::{Columns, columns};
use crate::report::html::{Section, Table};
use crate::report::layer::{ReportedLayer, merges};
use crate::report::number::{ABSENT, decimal, percent};
use crate::report::svg::Svg;

const HEADER: [&str; 6] = [
    "layer",
    "mass kept",
    "worst domain",
    "its mass kept",
    "choices that lost their expert",
    "relative output error",
];

const LOST: &str = "Mass kept is the share of Σ gate × ‖output‖ that the experts which go on had before; choices lost is the share of routed \
     tokens' choices whose expert is gone; the relative error is that of the layer's output when all tokens are routed \
     anew, on the states that reached it.";

/// The addition to [`LOST`] where experts were merged.
const MERGED: &str = " An expert that was merged into another isn't gone: its mass and choices are kept, and what merging costs shows in the \
     error. Where only some of its neurons were merged, it counts by their share.";

pub(crate) fn section(layers: &[ReportedLayer]) -> Section {
    let merged = if merges(layers) { MERGED } else { "" };
    Section::new("error", "What each layer loses")
        .text(&format!("{LOST}{merged}"))
        .legend(&[("kept", "all calibration text"), ("mark", "worst domain")])
        .charts(charts(layers))
        .table(&Table::numbers(
            "Error and retained mass, by layer",
            &HEADER,
            layers.iter().map(row),
        ))
}

/// Charts of the masses, unless no layer has any, of lost choices and of errors.
fn charts(layers: &[ReportedLayer]) -> Vec<Svg> {
    let indices: Vec<usize> = layers.iter().map(|layer| layer.index).collect();
    let gone: Vec<_> = layers.iter().map(lost).collect();
    let errors: Vec<_> = layers.iter().map(|layer| layer.trust.output_error).collect();
    let choices = Columns {
        id: "error-lost",
        title: "Choices that lost their expert",
        layers: &indices,
        values: &gone,
        marks: &[],
        format: percent,
        shares: true,
    };
    let errors = Columns {
        id: "error-output",
        title: "Relative error of the output, tokens rerouted",
        values: &errors,
        format: |value| decimal(value, 3),
        shares: false,
        ..choices
    };
    masses(layers, &choices).into_iter().chain([columns(&choices), columns(&errors)]).collect()
}

/// The mass that each layer keeps, drawn as `like`; None where no layer has any.
fn masses(layers: &[ReportedLayer], like: &Columns<'_>) -> Option<Svg> {
    let kept: Vec<_> = layers.iter().map(ReportedLayer::mass).collect();
    let worst: Vec<_> = layers.iter().map(ReportedLayer::worst).collect();
    kept.iter().any(Option::is_some).then(|| {
        columns(&Columns {
            id: "error-mass",
            title: "Saliency mass kept",
            values: &kept,
            marks: &worst,
            ..*like
        })
    })
}

fn row(layer: &ReportedLayer) -> Vec<String> {
    let worst_domain = layer.trust.worst_domain.as_ref();
    vec![
        layer.index.to_string(),
        if layer.trust.merges_all() { "all, merged".to_owned() } else { percent(layer.mass()) },
        worst_domain.map_or(ABSENT.to_owned(), |(label, _)| label.clone()),
        percent(layer.worst()),
        percent(lost(layer)),
        decimal(layer.trust.output_error, 3),
    ]
}

fn lost(layer: &ReportedLayer) -> Option<f64> {
    layer.counted(layer.trust.lost_choices)
}
