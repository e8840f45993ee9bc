//! Saliencies of one layer in descending order.

use crate::report::layer::{Fate, ReportedLayer};
use crate::report::number::significant;
use crate::report::svg::{Anchor, Path, Scale, Svg};

const WIDTH: f64 = 260.0;
const HEIGHT: f64 = 124.0;
const LEFT: f64 = 50.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 20.0;

/// A bar for each expert; None where the layer has no saliencies.
pub(crate) fn curve(layer: &ReportedLayer) -> Option<Svg> {
    let saliency = &layer.trust.saliency;
    let mut order: Vec<usize> = (0..saliency.len().min(layer.fates.len())).collect();
    if order.is_empty() {
        return None;
    }
    let value = |expert: usize| if saliency[expert].is_finite() { saliency[expert] } else { 0.0 };
    order.sort_by(|a, b| value(*b).total_cmp(&value(*a)).then(a.cmp(b)));
    let foot = HEIGHT - BOTTOM;
    let scale = Scale::of_positive(saliency, foot, TOP - foot);
    let logarithmic = if scale.logarithmic() { ", logarithmic" } else { "" };
    let [greatest, least] =
        [order[0], order[order.len() - 1]].map(|e| significant(Some(saliency[e])));
    let kept = layer.with(Fate::Kept);
    let description = format!(
        "{} experts from {greatest} down to {least}{logarithmic}; kept: {} of them.",
        order.len(),
        kept.len()
    );
    let title = format!("Saliency, layer {}{logarithmic}", layer.index);
    let mut svg =
        Svg::new(format!("saliency-{}", layer.index), [WIDTH, HEIGHT], title, description);
    for end in scale.ends() {
        svg.line("grid", [LEFT, scale.at(end)], [WIDTH, scale.at(end)]);
        svg.text("tick", [LEFT - 5.0, scale.at(end) + 4.0], Anchor::End, &significant(Some(end)));
    }
    let pitch = (WIDTH - LEFT) / order.len() as f64;
    let width = (pitch * 0.8).min(24.0);
    let [mut stays, mut goes, mut merged, mut supers] = [const { Path::new() }; 4];
    for (rank, expert) in order.iter().enumerate() {
        let center = LEFT + pitch * (rank as f64 + 0.5);
        let (y, base) = (scale.at(value(*expert)), scale.base());
        let path = match layer.fates[*expert] {
            Fate::Kept => &mut stays,
            Fate::Merged => &mut merged,
            Fate::Dropped => &mut goes,
        };
        path.rect([center - width / 2.0, y.min(base)], [width, (y - base).abs().max(0.7)]);
        if layer.trust.super_experts.contains(expert) {
            supers.triangle([center, y.min(base) - 2.0], 7.0);
        }
    }
    svg.path("gone", &goes);
    svg.path("merged", &merged);
    svg.path("kept", &stays);
    svg.path("super", &supers);
    svg.line("axis", [LEFT, scale.base()], [WIDTH, scale.base()]);
    svg.text("tick", [LEFT, HEIGHT - 6.0], Anchor::Start, "greatest");
    svg.text("tick", [WIDTH, HEIGHT - 6.0], Anchor::End, "least");
    Some(svg)
}
