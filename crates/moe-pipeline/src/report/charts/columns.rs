//! A chart with a column for each layer.

use crate::report::svg::{Anchor, Path, Scale, Svg};

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

const WIDTH: f64 = 352.0;
const HEIGHT: f64 = 176.0;
const LEFT: f64 = 46.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 38.0;

/// Draws the columns with an axis; absent values have no column.
pub(crate) fn columns(chart: &Columns<'_>) -> Svg {
    let present = |values: &[Option<f64>]| -> Vec<f64> {
        values.iter().flatten().copied().filter(|v| v.is_finite()).collect()
    };
    let values = present(chart.values);
    let ends = values.iter().copied().reduce(f64::min).zip(values.iter().copied().reduce(f64::max));
    let described = match ends {
        Some((least, most)) => {
            let (least, most) = ((chart.format)(Some(least)), (chart.format)(Some(most)));
            format!(
                "From {least} to {most} over {} layers; the table has every value.",
                chart.layers.len()
            )
        }
        None => "Not measured.".to_owned(),
    };
    let mut svg = Svg::new(chart.id, [WIDTH, HEIGHT], chart.title.to_owned(), described);
    let (foot, tall) = (HEIGHT - BOTTOM, HEIGHT - BOTTOM - TOP);
    let scale = match chart.shares {
        true => Scale::up_to(1.0, foot, -tall),
        false => Scale::linear(values.into_iter().chain(present(chart.marks)), foot, -tall),
    };
    for tick in scale.ticks() {
        svg.line("grid", [LEFT, scale.at(tick)], [WIDTH, scale.at(tick)]);
        let text = if chart.shares { format!("{:.0} %", 100.0 * tick) } else { short(tick) };
        svg.text("tick", [LEFT - 6.0, scale.at(tick) + 4.0], Anchor::End, &text);
    }
    let pitch = (WIDTH - LEFT) / chart.layers.len().max(1) as f64;
    let width = (pitch * 0.72).clamp(1.0, 36.0);
    let center = |index: usize| LEFT + pitch * (index as f64 + 0.5);
    let mut bars = Path::new();
    let mut marks = Path::new();
    for (index, value) in chart.values.iter().enumerate() {
        let Some(value) = value.filter(|v| v.is_finite()) else { continue };
        let y = scale.at(value);
        bars.rect([center(index) - width / 2.0, y], [width, (scale.base() - y).max(0.5)]);
    }
    for (index, mark) in chart.marks.iter().enumerate() {
        let Some(mark) = mark.filter(|v| v.is_finite()) else { continue };
        let wide = (width * 1.3).min(pitch);
        marks.stroke([center(index) - wide / 2.0, scale.at(mark)], [wide, 0.0]);
    }
    svg.path("kept", &bars);
    svg.path("mark", &marks);
    svg.line("axis", [LEFT, scale.base()], [WIDTH, scale.base()]);
    let every = every(chart.layers.len(), pitch, 26.0);
    for (index, layer) in chart.layers.iter().enumerate().step_by(every) {
        svg.text("tick", [center(index), foot + 15.0], Anchor::Middle, &layer.to_string());
    }
    svg.text("tick", [LEFT + (WIDTH - LEFT) / 2.0, HEIGHT - 5.0], Anchor::Middle, "layer");
    svg
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
