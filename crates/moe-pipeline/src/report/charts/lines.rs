//! Values over steps.

use crate::report::charts::columns::{every, short};
use crate::report::svg::{Anchor, Path, Scale, Svg};

/// A CSS class, the label, and the points as (step, value).
pub(crate) type Line<'a> = (&'a str, &'a str, Vec<(u64, f64)>);

/// Lines that share an axis of steps.
pub(crate) struct LineChart<'a> {
    pub id: &'a str,
    pub title: &'a str,
    pub lines: &'a [Line<'a>],
}

const WIDTH: f64 = 352.0;
const HEIGHT: f64 = 176.0;
const LEFT: f64 = 52.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 38.0;
/// Width for the label of a step.
const LABEL: f64 = 40.0;

/// Draws the lines with both axes; NaN and infinite values are left out.
pub(crate) fn lines(chart: &LineChart<'_>) -> Svg {
    let all = || {
        chart
            .lines
            .iter()
            .flat_map(|(_, _, points)| points.iter().copied())
            .filter(|(_, v)| v.is_finite())
    };
    let last = all().map(|(step, _)| step).max().unwrap_or(0).max(1);
    let ends = |points: &[(u64, f64)]| Some((points.first()?.1, points.last()?.1));
    let described = chart.lines.iter().filter_map(|(_, words, points)| {
        let (first, last) = ends(points)?;
        Some(format!("{words}: {first:.4} at first, {last:.4} at last."))
    });
    let mut svg = Svg::new(
        chart.id,
        [WIDTH, HEIGHT],
        chart.title.to_owned(),
        described.collect::<Vec<_>>().join(" "),
    );
    let (foot, tall, wide) = (HEIGHT - BOTTOM, HEIGHT - BOTTOM - TOP, WIDTH - LEFT);
    let scale = Scale::between(all().map(|(_, value)| value), foot, -tall);
    for tick in scale.ticks() {
        svg.line("grid", [LEFT, scale.at(tick)], [WIDTH, scale.at(tick)]);
        svg.text("tick", [LEFT - 6.0, scale.at(tick) + 4.0], Anchor::End, &short(tick));
    }
    let x = |step: u64| LEFT + wide * step as f64 / last as f64;
    for (class, _, points) in chart.lines {
        let mut path = Path::new();
        let finite = points.iter().filter(|(_, value)| value.is_finite());
        path.through(finite.map(|(step, value)| [x(*step), scale.at(*value)]));
        svg.path(&format!("line {class}"), &path);
    }
    svg.line("axis", [LEFT, foot], [WIDTH, foot]);
    let each = every(last as usize + 1, wide / last as f64, LABEL) as u64;
    for step in (0..=last).step_by(each.max(1) as usize) {
        svg.text("tick", [x(step), foot + 15.0], Anchor::Middle, &step.to_string());
    }
    svg.text("tick", [LEFT + wide / 2.0, HEIGHT - 5.0], Anchor::Middle, "step");
    svg
}
