//! Tokens routed to each expert of each layer.

use super::columns::every;
use crate::report::layer::{Fate, ReportedLayer};
use crate::report::svg::{Anchor, Path, Svg};

/// For each level its CSS class, its upper end in units of the layer's mean load, and its name.
pub(crate) const LEVELS: [(&str, f64, &str); 7] = [
    ("load-1", 0.25, "below ¼ of the layer's mean"),
    ("load-2", 0.5, "below ½"),
    ("load-3", 1.0, "below the mean"),
    ("load-4", 1.5, "below 1½ times"),
    ("load-5", 2.0, "below 2 times"),
    ("load-6", 3.0, "up to 3 times"),
    ("load-7", f64::INFINITY, "above 3 times"),
];

const LEFT: f64 = 44.0;
const TOP: f64 = 6.0;
const BOTTOM: f64 = 38.0;
/// The width that the cells of a row share, within limits for each cell.
const WIDTH: f64 = 900.0;

/// The sizes of cells, and their number in a row.
struct Cells {
    experts: usize,
    wide: f64,
    high: f64,
    /// The gap between neighbors in a row.
    gap: f64,
}

impl Cells {
    fn of(layers: &[ReportedLayer]) -> Self {
        let counts = layers.iter().map(|layer| layer.trust.load.counts.len());
        let experts = counts.max().unwrap_or(0).max(1);
        let wide = (WIDTH / experts as f64).clamp(4.0, 40.0);
        let high = match layers.len() {
            0..=12 => 28.0,
            13..=30 => 18.0,
            _ => 12.0,
        };
        Self { experts, wide, high, gap: if wide >= 8.0 { 1.0 } else { 0.4 } }
    }

    /// The place and size of a cell; cells of removed experts are lower.
    fn cell(&self, row: usize, expert: usize, stays: bool) -> [[f64; 2]; 2] {
        let (x, y) = (LEFT + self.wide * expert as f64, TOP + self.high * row as f64);
        let share = if stays { 1.0 } else { 0.45 };
        let [width, height] = [self.wide - self.gap, (self.high - 2.0) * share];
        [[x, y + self.high - 1.0 - height], [width, height]]
    }

    /// The y at which the rows of `layers` end.
    fn foot(&self, layers: &[ReportedLayer]) -> f64 {
        TOP + self.high * layers.len() as f64
    }

    /// Writes the numbers of layers and experts to the left of the cells and below them.
    fn number(&self, svg: &mut Svg, layers: &[ReportedLayer]) {
        let Self { experts, wide, high, .. } = *self;
        let foot = self.foot(layers);
        for (row, layer) in layers.iter().enumerate().step_by(every(layers.len(), high, 14.0)) {
            let y = TOP + high * (row as f64 + 0.5) + 4.0;
            svg.text("tick", [LEFT - 6.0, y], Anchor::End, &layer.index.to_string());
        }
        for expert in (0..experts).step_by(every(experts, wide, 30.0)) {
            let place = [LEFT + wide * (expert as f64 + 0.5), foot + 15.0];
            svg.text("tick", place, Anchor::Middle, &expert.to_string());
        }
        let middle = LEFT + wide * experts as f64 / 2.0;
        svg.text("tick", [middle, foot + 32.0], Anchor::Middle, "expert");
        svg.text("tick", [2.0, foot + 15.0], Anchor::Start, "layer");
    }
}

/// A row for each layer and a cell for each expert; cells of removed experts are half as high.
pub(crate) fn heatmap(layers: &[ReportedLayer]) -> Svg {
    let cells = Cells::of(layers);
    let experts = cells.experts;
    let size = [LEFT + cells.wide * experts as f64 + 8.0, cells.foot(layers) + BOTTOM];
    let description = format!(
        "{} layers from top to bottom, {experts} experts from left to right; darker or brighter cells got more tokens, low \
         cells are experts that go. The tables have every number.",
        layers.len()
    );
    let mut svg = Svg::new("load", size, "Tokens routed to each expert".to_owned(), description);
    let mut levels = [const { Path::new() }; LEVELS.len()];
    let mut dead = Path::new();
    for (row, layer) in layers.iter().enumerate() {
        for (expert, count) in layer.trust.load.counts.iter().enumerate() {
            let stays = layer.fates.get(expert) == Some(&Fate::Kept);
            let [corner, size] = cells.cell(row, expert, stays);
            let level = level(*count, layer.mean_load());
            level.map_or(&mut dead, |level| &mut levels[level]).rect(corner, size);
        }
    }
    LEVELS.iter().zip(&levels).for_each(|((class, _, _), path)| svg.path(class, path));
    svg.path("dead", &dead);
    cells.number(&mut svg, layers);
    svg
}

/// The level of `count` in [`LEVELS`]; None where no token came.
fn level(count: u64, mean: f64) -> Option<usize> {
    if count == 0 {
        return None;
    }
    let times = count as f64 / mean;
    LEVELS.iter().position(|(class, end, _)| times < *end || (*class == "load-6" && times <= *end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_end_as_they_are_called() {
        let levels = [0, 1, 2, 4, 8, 12, 16, 24, 25].map(|count| level(count, 8.0));
        assert_eq!(
            levels,
            [None, Some(0), Some(1), Some(2), Some(3), Some(4), Some(5), Some(5), Some(6)]
        );
    }
}
