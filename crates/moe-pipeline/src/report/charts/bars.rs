//! Horizontal bars: a result, and its baseline below it.

use crate::report::svg::{Anchor, AxisScale, Svg};

/// The bars of one label: the value of the result, and that of its baseline.
pub(crate) struct Bar {
    pub label: String,
    pub values: [Option<f64>; 2],
}

const WIDTH: f64 = 352.0;
const LABEL: f64 = 96.0;
/// Width for the figures at the end of the bars.
const FIGURE: f64 = 62.0;
const ROW: f64 = 42.0;
const THICK: f64 = 14.0;
/// Number of letters that fit before the bars.
const LETTERS: usize = 13;

/// Pairs of bars.
pub(crate) struct Bars<'a> {
    pub id: &'a str,
    pub title: &'a str,
    pub rows: &'a [Bar],
    /// The name of the baseline.
    pub baseline: &'a str,
    pub format: fn(Option<f64>) -> String,
}

impl Bars<'_> {
    /// All values in words.
    fn described(&self) -> String {
        let format = self.format;
        let rows = self.rows.iter().map(|Bar { label, values }| match *values {
            [result, None] => format!("{label} {}", format(result)),
            [result, beside] => {
                format!("{label} {}, {} {}", format(result), self.baseline, format(beside))
            }
        });
        rows.collect::<Vec<_>>().join("; ")
    }

    /// Draws the bar whose upper edge is at `y`.
    fn bar(&self, svg: &mut Svg, scale: &AxisScale, (class, value): (&str, f64), y: f64) {
        let (from, to) = (scale.base().min(scale.at(value)), scale.base().max(scale.at(value)));
        svg.rect(class, [from, y], [(to - from).max(1.0), THICK]);
        let figure = (self.format)(Some(value));
        svg.text("figure", [to + 5.0, y + THICK - 3.0], Anchor::Start, &figure);
    }
}

/// Draws a pair of bars for each label; the second is that of the baseline. Absent values have no
/// bar.
pub(crate) fn bars(chart: &Bars<'_>) -> Svg {
    let height = ROW * chart.rows.len() as f64 + 8.0;
    let mut svg = Svg::new(chart.id, [WIDTH, height], chart.title.to_owned(), chart.described());
    let values = chart.rows.iter().flat_map(|row| row.values).flatten();
    let scale = AxisScale::linear(values, LABEL, WIDTH - LABEL - FIGURE);
    for (index, row) in chart.rows.iter().enumerate() {
        let top = ROW * index as f64 + 6.0;
        svg.text("label", [LABEL - 8.0, top + THICK + 4.0], Anchor::End, &shortened(&row.label));
        for (place, (class, value)) in ["kept", "control"].into_iter().zip(row.values).enumerate() {
            let Some(value) = value.filter(|v| v.is_finite()) else { continue };
            let y = top + (THICK + 2.0) * place as f64;
            chart.bar(&mut svg, &scale, (class, value), y);
        }
    }
    svg.line("axis", [scale.base(), 2.0], [scale.base(), height - 2.0]);
    svg
}

fn shortened(label: &str) -> String {
    match label.char_indices().nth(LETTERS) {
        Some((at, _)) if label.chars().count() > LETTERS => format!("{}…", &label[..at]),
        _ => label.to_owned(),
    }
}
