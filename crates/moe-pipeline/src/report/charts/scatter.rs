//! Points by two values.

use super::columns::short;
use super::frame::Frame;
use crate::report::svg::{Anchor, AxisScale, Path, Svg};

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

const FRAME: Frame = Frame { size: [352.0, 212.0], left: 46.0, top: 22.0, bottom: 38.0 };
const SIDE: f64 = 3.0;

/// Draws the points; NaN and infinite values are left out.
pub(crate) fn scatter(chart: &Scatter<'_>) -> Svg {
    let points: Vec<_> =
        chart.points.iter().copied().filter(|(_, value, _)| value.is_finite()).collect();
    let description = format!("{} points; the table has every number.", points.len());
    let mut svg = Svg::new(chart.id, FRAME.size, chart.title.to_owned(), description);
    let values = points.iter().map(|(_, value, _)| *value);
    let scale = AxisScale::linear(values, FRAME.foot(), FRAME.rise());
    FRAME.grid(&mut svg, &scale, short);
    let counts = Counts::up_to(points.iter().map(|(count, ..)| *count).max().unwrap_or(1));
    counts.draw(&mut svg);
    let [mut others, mut standing_out] = [const { Path::new() }; 2];
    for (count, value, stands_out) in points {
        let path = if stands_out { &mut standing_out } else { &mut others };
        path.rect([counts.at(count) - SIDE / 2.0, scale.at(value) - SIDE / 2.0], [SIDE, SIDE]);
    }
    svg.path("kept", &others);
    svg.path("control", &standing_out);
    FRAME.axis(&mut svg, scale.base());
    FRAME.name_below(&mut svg, chart.axes[0]);
    svg.text("tick", [2.0, 12.0], Anchor::Start, chart.axes[1]);
    svg
}

/// The logarithmic axis of counts, on which 0 has a place before that of 1.
struct Counts {
    decades: f64,
    pitch: f64,
}

impl Counts {
    fn up_to(greatest: u64) -> Self {
        let decades = (greatest.max(1) as f64).log10().ceil().max(1.0) + 1.0;
        Self { decades, pitch: (FRAME.wide() - SIDE) / decades }
    }

    fn at(&self, count: u64) -> f64 {
        let place = if count == 0 { 0.0 } else { 1.0 + (count as f64).log10() };
        FRAME.left + self.pitch * place
    }

    /// Writes 0 and the powers of ten below the axis.
    fn draw(&self, svg: &mut Svg) {
        let last = self.decades as u32;
        for decade in 0..=last {
            let text = if decade == 0 { "0".to_owned() } else { 10u64.pow(decade - 1).to_string() };
            let anchor = if decade == last { Anchor::End } else { Anchor::Middle };
            let place = [FRAME.left + self.pitch * f64::from(decade), FRAME.foot() + 15.0];
            svg.text("tick", place, anchor, &text);
        }
    }
}
