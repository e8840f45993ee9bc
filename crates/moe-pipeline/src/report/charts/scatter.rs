//! Points by two values.

use crate::report::svg::{Anchor, Path, Scale, Svg};

/// Points, and the labels of their axes.
pub(crate) struct Scatter<'a> {
    pub id: &'a str,
    pub title: &'a str,
    /// Labels of the axes: the horizontal one, then the vertical one.
    pub axes: [&'a str; 2],
    /// For each point, a count (logarithmic axis), a value (axis from 0), and whether to highlight
    /// it.
    pub points: &'a [(u64, f64, bool)],
}

const WIDTH: f64 = 352.0;
const HEIGHT: f64 = 212.0;
const LEFT: f64 = 46.0;
const TOP: f64 = 22.0;
const BOTTOM: f64 = 38.0;
const SIDE: f64 = 3.0;

/// Draws the points; NaN and infinite values are left out.
pub(crate) fn scatter(chart: &Scatter<'_>) -> Svg {
    let points: Vec<_> =
        chart.points.iter().copied().filter(|(_, value, _)| value.is_finite()).collect();
    let foot = HEIGHT - BOTTOM;
    let values = Scale::linear(points.iter().map(|(_, value, _)| *value), foot, TOP - foot);
    let most = points.iter().map(|(count, ..)| *count).max().unwrap_or(1).max(1);
    // Leaves a place for 0 before that of 1.
    let decades = (most as f64).log10().ceil().max(1.0) + 1.0;
    let pitch = (WIDTH - LEFT - SIDE) / decades;
    let across =
        |count: u64| LEFT + pitch * if count == 0 { 0.0 } else { 1.0 + (count as f64).log10() };
    let description = format!("{} points; the table has every number.", points.len());
    let mut svg = Svg::new(chart.id, [WIDTH, HEIGHT], chart.title.to_owned(), description);
    for tick in values.ticks() {
        svg.line("grid", [LEFT, values.at(tick)], [WIDTH, values.at(tick)]);
        svg.text(
            "tick",
            [LEFT - 6.0, values.at(tick) + 4.0],
            Anchor::End,
            &super::columns::short(tick),
        );
    }
    for decade in 0..=decades as u32 {
        let text = if decade == 0 { "0".to_owned() } else { 10u64.pow(decade - 1).to_string() };
        let anchor = if decade == decades as u32 { Anchor::End } else { Anchor::Middle };
        svg.text("tick", [LEFT + pitch * f64::from(decade), foot + 15.0], anchor, &text);
    }
    let [mut others, mut standing_out] = [const { Path::new() }; 2];
    for (count, value, stands_out) in &points {
        let path = if *stands_out { &mut standing_out } else { &mut others };
        path.rect([across(*count) - SIDE / 2.0, values.at(*value) - SIDE / 2.0], [SIDE, SIDE]);
    }
    svg.path("kept", &others);
    svg.path("control", &standing_out);
    svg.line("axis", [LEFT, values.base()], [WIDTH, values.base()]);
    svg.text("tick", [LEFT + (WIDTH - LEFT) / 2.0, HEIGHT - 5.0], Anchor::Middle, chart.axes[0]);
    svg.text("tick", [2.0, 12.0], Anchor::Start, chart.axes[1]);
    svg
}
