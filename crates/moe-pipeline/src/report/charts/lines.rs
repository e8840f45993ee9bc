//! Line charts of values over steps.

use super::columns::{every, short};
use super::frame::Frame;
use crate::report::number::decimal;
use crate::report::svg::{AxisScale, Path, Svg};

/// A CSS class, the label, and the points as (step, value).
pub(crate) type Line<'a> = (&'a str, &'a str, Vec<(u64, f64)>);

/// Lines that share an axis of steps.
pub(crate) struct LineChart<'a> {
    pub id: &'a str,
    pub title: &'a str,
    pub lines: &'a [Line<'a>],
}

const FRAME: Frame = Frame { size: [352.0, 176.0], left: 52.0, top: 10.0, bottom: 38.0 };
/// Width for the label of a step.
const LABEL: f64 = 40.0;

impl LineChart<'_> {
    fn finite_points(&self) -> impl Iterator<Item = (u64, f64)> {
        let points = self.lines.iter().flat_map(|(_, _, points)| points.iter().copied());
        points.filter(|(_, value)| value.is_finite())
    }

    /// A sentence on each line with its first and last value.
    fn described(&self) -> String {
        let lines = self.lines.iter().filter_map(|(_, words, points)| {
            let [first, last] =
                [points.first()?, points.last()?].map(|(_, value)| decimal(Some(*value), 4));
            Some(format!("{words}: {first} at first, {last} at last."))
        });
        lines.collect::<Vec<_>>().join(" ")
    }

    fn last_step(&self) -> u64 {
        self.finite_points().map(|(step, _)| step).max().unwrap_or(0).max(1)
    }
}

/// Draws the lines with both axes; NaN and infinite values are left out.
pub(crate) fn lines(chart: &LineChart<'_>) -> Svg {
    let mut svg = Svg::new(chart.id, FRAME.size, chart.title.to_owned(), chart.described());
    let values = chart.finite_points().map(|(_, value)| value);
    let scale = AxisScale::between(values, FRAME.foot(), FRAME.rise());
    FRAME.grid(&mut svg, &scale, short);
    let last = chart.last_step();
    for (class, _, points) in chart.lines {
        let mut path = Path::new();
        let finite = points.iter().filter(|(_, value)| value.is_finite());
        path.through(finite.map(|(step, value)| [x(*step, last), scale.at(*value)]));
        svg.path(&format!("line {class}"), &path);
    }
    FRAME.axis(&mut svg, FRAME.foot());
    let each = every(last as usize + 1, FRAME.wide() / last as f64, LABEL) as u64;
    for step in (0..=last).step_by(each.max(1) as usize) {
        FRAME.tick_below(&mut svg, x(step, last), &step.to_string());
    }
    FRAME.name_below(&mut svg, "step");
    svg
}

/// The coordinate of `step` on an axis that ends with the step `last`.
fn x(step: u64, last: u64) -> f64 {
    FRAME.left + FRAME.wide() * step as f64 / last as f64
}
