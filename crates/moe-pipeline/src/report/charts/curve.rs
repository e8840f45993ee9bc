//! Saliencies of one layer in descending order.

use super::frame::Frame;
use crate::report::layer::{Fate, ReportedLayer};
use crate::report::number::significant;
use crate::report::svg::{Anchor, AxisScale, Path, Svg};

const FRAME: Frame = Frame { size: [260.0, 124.0], left: 50.0, top: 12.0, bottom: 20.0 };

/// A bar for each expert; None where the layer has no saliencies.
pub(crate) fn curve(layer: &ReportedLayer) -> Option<Svg> {
    let order = ranked(layer);
    let (first, last) = (*order.first()?, *order.last()?);
    let scale = AxisScale::of_positive(&layer.trust.saliency, FRAME.foot(), FRAME.rise());
    let logarithmic = if scale.logarithmic() { ", logarithmic" } else { "" };
    let [greatest, least] = [first, last].map(|e| significant(Some(layer.trust.saliency[e])));
    let description = format!(
        "{} experts from {greatest} down to {least}{logarithmic}; kept: {} of them.",
        order.len(),
        layer.with(Fate::Kept).len()
    );
    let title = format!("Saliency, layer {}{logarithmic}", layer.index);
    let mut svg = Svg::new(format!("saliency-{}", layer.index), FRAME.size, title, description);
    for end in scale.ends() {
        svg.line("grid", [FRAME.left, scale.at(end)], [FRAME.width(), scale.at(end)]);
        let place = [FRAME.left - 5.0, scale.at(end) + 4.0];
        svg.text("tick", place, Anchor::End, &significant(Some(end)));
    }
    Bars::of(layer, &order, &scale).draw(&mut svg);
    FRAME.axis(&mut svg, scale.base());
    svg.text("tick", [FRAME.left, FRAME.height() - 6.0], Anchor::Start, "greatest");
    svg.text("tick", [FRAME.width(), FRAME.height() - 6.0], Anchor::End, "least");
    Some(svg)
}

/// The experts of `layer` that have a saliency, the most salient first.
fn ranked(layer: &ReportedLayer) -> Vec<usize> {
    let count = layer.trust.saliency.len().min(layer.fates.len());
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by(|a, b| drawn(layer, *b).total_cmp(&drawn(layer, *a)).then(a.cmp(b)));
    order
}

/// The saliency of `expert` as it is drawn: 0 where it isn't finite.
fn drawn(layer: &ReportedLayer, expert: usize) -> f64 {
    let saliency = layer.trust.saliency[expert];
    if saliency.is_finite() { saliency } else { 0.0 }
}

/// Bars by the fate of their experts, and marks above super experts.
struct Bars {
    kept: Path,
    merged: Path,
    dropped: Path,
    supers: Path,
}

impl Bars {
    fn of(layer: &ReportedLayer, order: &[usize], scale: &AxisScale) -> Self {
        let [kept, merged, dropped, supers] = [const { Path::new() }; 4];
        let mut bars = Self { kept, merged, dropped, supers };
        let pitch = FRAME.wide() / order.len() as f64;
        let width = (pitch * 0.8).min(24.0);
        for (rank, expert) in order.iter().enumerate() {
            let center = FRAME.left + pitch * (rank as f64 + 0.5);
            let (y, base) = (scale.at(drawn(layer, *expert)), scale.base());
            let size = [width, (y - base).abs().max(0.7)];
            bars.with(layer.fates[*expert]).rect([center - width / 2.0, y.min(base)], size);
            if layer.trust.super_experts.contains(expert) {
                bars.supers.triangle([center, y.min(base) - 2.0], 7.0);
            }
        }
        bars
    }

    fn with(&mut self, fate: Fate) -> &mut Path {
        match fate {
            Fate::Kept => &mut self.kept,
            Fate::Merged => &mut self.merged,
            Fate::Dropped => &mut self.dropped,
        }
    }

    fn draw(&self, svg: &mut Svg) {
        svg.path("gone", &self.dropped);
        svg.path("merged", &self.merged);
        svg.path("kept", &self.kept);
        svg.path("super", &self.supers);
    }
}
