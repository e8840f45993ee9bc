//! A chart with a column for each layer.

use super::frame::Frame;
use crate::report::svg::{AxisScale, Path, Svg};

/// Values by layer, and how to draw them.
pub(crate) struct Columns<'a> {
    pub id: &'a str,
    pub title: &'a str,
    pub layers: &'a [usize],
    pub values: &'a [Option<f64>],
    /// Values that are marked within the columns.
    pub marks: &'a [Option<f64>],
    pub format: fn(Option<f64>) -> String,
    /// Whether values are shares, so that the axis ends at 1.
    pub shares: bool,
}

const FRAME: Frame = Frame { size: [352.0, 176.0], left: 46.0, top: 10.0, bottom: 38.0 };

impl Columns<'_> {
    /// The range of the values, in a sentence.
    fn described(&self) -> String {
        let values = || finite(self.values);
        let Some((least, greatest)) = values().reduce(f64::min).zip(values().reduce(f64::max))
        else {
            return "Not measured.".to_owned();
        };
        let [least, greatest] = [least, greatest].map(|end| (self.format)(Some(end)));
        let count = self.layers.len();
        format!("From {least} to {greatest} over {count} layers; the table has every value.")
    }

    fn scale(&self) -> AxisScale {
        if self.shares {
            return AxisScale::up_to(1.0, FRAME.foot(), FRAME.rise());
        }
        AxisScale::linear(finite(self.values).chain(finite(self.marks)), FRAME.foot(), FRAME.rise())
    }

    fn tick(&self) -> fn(f64) -> String {
        if self.shares { |tick| format!("{:.0} %", 100.0 * tick) } else { short }
    }
}

fn finite(values: &[Option<f64>]) -> impl Iterator<Item = f64> {
    values.iter().flatten().copied().filter(|v| v.is_finite())
}

/// Draws the columns with an axis; absent values have no column.
pub(crate) fn columns(chart: &Columns<'_>) -> Svg {
    let mut svg = Svg::new(chart.id, FRAME.size, chart.title.to_owned(), chart.described());
    let scale = chart.scale();
    FRAME.grid(&mut svg, &scale, chart.tick());
    let places = Places::of(chart.layers.len());
    svg.path("kept", &places.bars(chart.values, &scale));
    svg.path("mark", &places.marks(chart.marks, &scale));
    FRAME.axis(&mut svg, scale.base());
    let every = every(chart.layers.len(), places.pitch, 26.0);
    for (index, layer) in chart.layers.iter().enumerate().step_by(every) {
        FRAME.tick_below(&mut svg, places.center(index), &layer.to_string());
    }
    FRAME.name_below(&mut svg, "layer");
    svg
}

/// The places of adjacent columns.
struct Places {
    /// The distance between the centers of neighbors.
    pitch: f64,
    /// The width of a column.
    width: f64,
}

impl Places {
    fn of(count: usize) -> Self {
        let pitch = FRAME.wide() / count.max(1) as f64;
        Self { pitch, width: (pitch * 0.72).clamp(1.0, 36.0) }
    }

    fn center(&self, index: usize) -> f64 {
        FRAME.left + self.pitch * (index as f64 + 0.5)
    }

    fn bars(&self, values: &[Option<f64>], scale: &AxisScale) -> Path {
        let mut bars = Path::new();
        for (index, value) in values.iter().enumerate() {
            let Some(value) = value.filter(|v| v.is_finite()) else { continue };
            let y = scale.at(value);
            let corner = [self.center(index) - self.width / 2.0, y];
            bars.rect(corner, [self.width, (scale.base() - y).max(0.5)]);
        }
        bars
    }

    fn marks(&self, marks: &[Option<f64>], scale: &AxisScale) -> Path {
        let wide = (self.width * 1.3).min(self.pitch);
        let mut lines = Path::new();
        for (index, mark) in marks.iter().enumerate() {
            let Some(mark) = mark.filter(|v| v.is_finite()) else { continue };
            lines.stroke([self.center(index) - wide / 2.0, scale.at(mark)], [wide, 0.0]);
        }
        lines
    }
}

/// The interval at which `count` labels, each `room` wide, are shown at this pitch: 1, 2 or 5 times
/// a power of ten.
pub(super) fn every(count: usize, pitch: f64, room: f64) -> usize {
    let steps = (0..6).flat_map(|power| [1, 2, 5].map(|m| m * 10usize.pow(power)));
    steps.into_iter().find(|step| *step as f64 * pitch >= room).unwrap_or(count.max(1))
}

/// A tick without trailing zeros.
pub(super) fn short(tick: f64) -> String {
    let text = format!("{tick:.4}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if tick == 0.0 || (1e-3..1e5).contains(&tick.abs()) {
        return text.to_owned();
    }
    // Ticks may be half a power of ten, and 15 times 1e-5 is 1.5000000000000002e-4.
    format!("{tick:.1e}").replace(".0e", "e")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_short() {
        assert_eq!(
            [0.0, 0.05, 0.30000000000000004, 20.0, 2e-4].map(short),
            ["0", "0.05", "0.3", "20", "2e-4"]
        );
    }

    #[test]
    fn labels_have_room() {
        assert_eq!([every(4, 80.0, 26.0), every(60, 5.2, 26.0), every(1, 300.0, 26.0)], [1, 5, 1]);
        assert_eq!(every(3, 0.0, 26.0), 3);
    }
}
