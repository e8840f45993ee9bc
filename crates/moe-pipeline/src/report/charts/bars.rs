//! Horizontal bars: a result, and its baseline below it.

use crate::report::svg::{Anchor, Scale, Svg};

/// The bars of one label: the value of the result, and that of its baseline.
pub(crate) struct Bar {
    pub label: String,
    pub values: [Option<f64>; 2],
}

const WIDTH: f64 = 352.0;
const LABEL: f64 = 96.0;
/// Width for the figures behind the bars.
const FIGURE: f64 = 62.0;
const ROW: f64 = 42.0;
const THICK: f64 = 14.0;
/// Number of letters that fit before the bars.
const LETTERS: usize = 13;

/// A pair of bars for each label; the second is that of the baseline, which is called `control`.
/// Absent values have no bar.
pub(crate) fn bars(
    id: &str,
    title: &str,
    rows: &[Bar],
    control: &str,
    format: fn(Option<f64>) -> String,
) -> Svg {
    let height = ROW * rows.len() as f64 + 8.0;
    let described = rows.iter().map(|row| match row.values {
        [result, None] => format!("{} {}", row.label, format(result)),
        [result, beside] => {
            format!("{} {}, {control} {}", row.label, format(result), format(beside))
        }
    });
    let mut svg =
        Svg::new(id, [WIDTH, height], title.to_owned(), described.collect::<Vec<_>>().join("; "));
    let values = rows.iter().flat_map(|row| row.values).flatten();
    let scale = Scale::linear(values, LABEL, WIDTH - LABEL - FIGURE);
    for (index, row) in rows.iter().enumerate() {
        let top = ROW * index as f64 + 6.0;
        svg.text("label", [LABEL - 8.0, top + THICK + 4.0], Anchor::End, &shortened(&row.label));
        for (place, (class, value)) in ["kept", "control"].into_iter().zip(row.values).enumerate() {
            let Some(value) = value.filter(|v| v.is_finite()) else { continue };
            let y = top + (THICK + 2.0) * place as f64;
            let (from, to) = (scale.base().min(scale.at(value)), scale.base().max(scale.at(value)));
            svg.rect(class, [from, y], [(to - from).max(1.0), THICK]);
            svg.text("figure", [to + 5.0, y + THICK - 3.0], Anchor::Start, &format(Some(value)));
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
