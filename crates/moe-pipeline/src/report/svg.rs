//! Draws pictures as SVG, and maps values to coordinates.

use std::fmt::{self, Display, Write as _};

use super::escaped::Escaped;
use super::number::GREATEST;

/// A picture with a title and a description.
pub(super) struct Svg {
    id: String,
    width: f64,
    height: f64,
    title: String,
    description: String,
    body: String,
}

/// The alignment of text to its coordinate.
#[derive(Debug, Clone, Copy)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

impl Svg {
    /// An empty picture; `id` must be unique on the page.
    pub fn new(
        id: impl Into<String>,
        [width, height]: [f64; 2],
        title: String,
        description: String,
    ) -> Self {
        Self { id: id.into(), width, height, title, description, body: String::new() }
    }

    pub fn title(&self) -> &str {
        &self.title
    }

    pub fn rect(&mut self, class: &str, [x, y]: [f64; 2], [width, height]: [f64; 2]) {
        let [x, y, width, height] = [x, y, width, height].map(Coordinate);
        let _ = writeln!(
            self.body,
            "<rect class=\"{class}\" x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\"/>"
        );
    }

    pub fn line(&mut self, class: &str, from: [f64; 2], to: [f64; 2]) {
        let [x1, y1, x2, y2] = [from[0], from[1], to[0], to[1]].map(Coordinate);
        let _ = writeln!(self.body, "<path class=\"{class}\" d=\"M{x1} {y1}L{x2} {y2}\"/>");
    }

    /// Adds shapes that share a CSS class.
    pub fn path(&mut self, class: &str, path: &Path) {
        if !path.0.is_empty() {
            let _ = writeln!(self.body, "<path class=\"{class}\" d=\"{}\"/>", path.0);
        }
    }

    pub fn text(&mut self, class: &str, [x, y]: [f64; 2], anchor: Anchor, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "",
            Anchor::Middle => " text-anchor=\"middle\"",
            Anchor::End => " text-anchor=\"end\"",
        };
        let (x, y, text) = (Coordinate(x), Coordinate(y), Escaped(text));
        let _ = writeln!(
            self.body,
            "<text class=\"{class}\" x=\"{x}\" y=\"{y}\"{anchor}>{text}</text>"
        );
    }
}

impl Display for Svg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, body, .. } = self;
        let (width, height) = (Coordinate(self.width), Coordinate(self.height));
        let (title, description) = (Escaped(&self.title), Escaped(&self.description));
        write!(
            f,
            "<svg role=\"img\" aria-labelledby=\"{id}-t {id}-d\" width=\"{width}\" height=\"{height}\" \
             viewBox=\"0 0 {width} {height}\">\n<title id=\"{id}-t\">{title}</title><desc id=\"{id}-d\">{description}</desc>\n\
             {body}</svg>\n"
        )
    }
}

/// Shapes that are drawn alike, as the data of an SVG path.
pub(super) struct Path(String);

impl Path {
    pub const fn new() -> Self {
        Self(String::new())
    }

    /// Adds a filled rectangle.
    pub fn rect(&mut self, [x, y]: [f64; 2], [width, height]: [f64; 2]) {
        let [x, y, width, height, back] = [x, y, width, height, -width].map(Coordinate);
        let _ = write!(self.0, "M{x} {y}h{width}v{height}h{back}z");
    }

    /// Adds a line from `from` by (`dx`, `dy`).
    pub fn stroke(&mut self, from: [f64; 2], [dx, dy]: [f64; 2]) {
        let [x, y, dx, dy] = [from[0], from[1], dx, dy].map(Coordinate);
        let _ = write!(self.0, "M{x} {y}l{dx} {dy}");
    }

    /// Adds a line through `points`.
    pub fn through(&mut self, points: impl IntoIterator<Item = [f64; 2]>) {
        for (index, [x, y]) in points.into_iter().enumerate() {
            let _ = write!(
                self.0,
                "{}{} {}",
                if index == 0 { 'M' } else { 'L' },
                Coordinate(x),
                Coordinate(y)
            );
        }
    }

    /// Adds a filled triangle that points down to `tip`.
    pub fn triangle(&mut self, tip: [f64; 2], size: f64) {
        let [x, y, up, half, width] = [tip[0], tip[1], -size, size / 2.0, -size].map(Coordinate);
        let _ = write!(self.0, "M{x} {y}l{half} {up}h{width}z");
    }
}

/// A coordinate, rounded to a tenth of a pixel.
struct Coordinate(f64);

impl Display for Coordinate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        assert!(cfg!(not(test)) || self.0.is_finite(), "a place that is no number");
        let tenths = (self.0 * 10.0).round() as i64;
        let sign = if tenths < 0 { "-" } else { "" };
        match (tenths.unsigned_abs() / 10, tenths.unsigned_abs() % 10) {
            (whole, 0) => write!(f, "{sign}{whole}"),
            (whole, tenth) => write!(f, "{sign}{whole}.{tenth}"),
        }
    }
}

/// Maps values to coordinates along an axis.
#[derive(Debug, Clone, Copy)]
pub(super) struct AxisScale {
    from: f64,
    to: f64,
    /// The coordinate of `from`, and the distance from it to that of `to`.
    start: f64,
    length: f64,
    logarithmic: bool,
}

/// A linear axis is useless where the greatest value exceeds this multiple of the median.
const LOGARITHMIC_ABOVE: f64 = 30.0;

impl AxisScale {
    /// From 0 or, if lower, the least value, to the greatest of `values`, rounded up; never empty.
    pub fn linear(values: impl IntoIterator<Item = f64>, start: f64, length: f64) -> Self {
        let (mut from, mut to) = (0f64, 0f64);
        values
            .into_iter()
            .filter(|v| v.abs() <= GREATEST)
            .for_each(|v| (from, to) = (from.min(v), to.max(v)));
        // A step within so little would be 0.
        if to - from < 1e-300 {
            to = from + 1.0;
        }
        let step = step(to - from);
        let (from, to) = ((from / step).floor() * step, (to / step).ceil() * step);
        Self { from, to, start, length, logarithmic: false }
    }

    /// From the least to the greatest of `values`, rounded outwards; never empty.
    pub fn between(values: impl IntoIterator<Item = f64>, start: f64, length: f64) -> Self {
        let (mut from, mut to) = (f64::INFINITY, f64::NEG_INFINITY);
        values
            .into_iter()
            .filter(|v| v.abs() <= GREATEST)
            .for_each(|v| (from, to) = (from.min(v), to.max(v)));
        if from > to {
            (from, to) = (0.0, 1.0);
        }
        let step = step((to - from).max(1e-6 * to.abs().max(1e-6)));
        let (from, to) = ((from / step).floor() * step, (to / step).ceil() * step);
        let to = if to > from { to } else { from + step };
        Self { from, to, start, length, logarithmic: false }
    }

    /// From 0 to `to`.
    pub fn up_to(to: f64, start: f64, length: f64) -> Self {
        Self { from: 0.0, to, start, length, logarithmic: false }
    }

    /// A linear scale, or a logarithmic one where a few values would hide all others.
    pub fn of_positive(values: &[f64], start: f64, length: f64) -> Self {
        let mut positive: Vec<f64> =
            values.iter().copied().filter(|v| *v <= GREATEST && *v > 0.0).collect();
        positive.sort_by(f64::total_cmp);
        let spread = positive.last().zip(positive.get(positive.len() / 2));
        match (spread, positive.first()) {
            (Some((greatest, median)), Some(least)) if *greatest > LOGARITHMIC_ABOVE * median => {
                let power = |v: f64| 10f64.powf(v);
                // The least value needs a height, too.
                let from = power((least.log10() - 0.1).floor());
                Self { from, to: power(greatest.log10().ceil()), start, length, logarithmic: true }
            }
            _ => Self::linear(values.iter().copied(), start, length),
        }
    }

    pub fn logarithmic(&self) -> bool {
        self.logarithmic
    }

    /// The coordinate of `value`; values outside are moved to the nearer end.
    pub fn at(&self, value: f64) -> f64 {
        let share = if self.logarithmic {
            (value.max(f64::MIN_POSITIVE) / self.from).log10() / (self.to / self.from).log10()
        } else {
            (value - self.from) / (self.to - self.from)
        };
        let share = if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.0 };
        self.start + share * self.length
    }

    /// The coordinate at which bars begin.
    pub fn base(&self) -> f64 {
        self.at(if self.logarithmic { self.from } else { 0.0 })
    }

    /// Both end values, and 0 where it lies between them.
    pub fn ends(&self) -> Vec<f64> {
        let mut ends = vec![self.from, self.to];
        if self.from < 0.0 && self.to > 0.0 {
            ends.insert(1, 0.0);
        }
        ends
    }

    /// Round values from end to end, at most eight.
    pub fn ticks(&self) -> Vec<f64> {
        let step = step(self.to - self.from);
        let count = ((self.to - self.from) / step).round() as usize;
        (0..=count.min(7)).map(|i| self.from + i as f64 * step).collect()
    }
}

/// 1, 2 or 5 times a power of ten, so that at most six steps make up `length`.
fn step(length: f64) -> f64 {
    let rough = length / 6.0;
    let power = 10f64.powf(rough.log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|m| m * power)
        .find(|s| *s >= rough * 0.999_999)
        .unwrap_or(10.0 * power)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_of_nothing_are_finite() {
        for values in
            [vec![], vec![0.0; 4], vec![f64::NAN, f64::INFINITY], vec![-1e-300], vec![1e300, 1.0]]
        {
            for scale in [
                AxisScale::linear(values.clone(), 10.0, 100.0),
                AxisScale::of_positive(&values, 10.0, 100.0),
            ] {
                for value in values.iter().copied().chain([0.0, f64::NAN, f64::NEG_INFINITY]) {
                    assert!(
                        (10.0..=110.0).contains(&scale.at(value)),
                        "{value} of {values:?}: {scale:?}"
                    );
                }
                assert!((10.0..=110.0).contains(&scale.base()));
                assert!(scale.ticks().len() <= 8 && scale.ticks().iter().all(|t| t.is_finite()));
            }
        }
    }

    #[test]
    fn scales_between_values_need_no_zero() {
        let scale = AxisScale::between([2.31, 2.78], 0.0, 1.0);
        assert!(scale.ends()[0] > 2.2 && scale.ends()[1] < 2.9, "{:?}", scale.ends());
        for values in [vec![], vec![3.0; 4], vec![f64::NAN], vec![0.0]] {
            let scale = AxisScale::between(values, 0.0, 1.0);
            assert!(scale.ticks().len() <= 8 && (0.0..=1.0).contains(&scale.at(3.0)));
        }
    }

    #[test]
    fn ends_are_round() {
        let scale = AxisScale::linear([0.37, -0.02], 0.0, 1.0);
        assert_eq!(scale.ends(), [-0.1, 0.0, 0.4]);
        assert_eq!(AxisScale::linear([7.3], 0.0, 80.0).ticks(), [0.0, 2.0, 4.0, 6.0, 8.0]);
        assert_eq!(AxisScale::linear([7.3], 0.0, 80.0).at(2.0), 20.0);
        // On a page, y decreases upwards.
        assert_eq!(AxisScale::up_to(1.0, 100.0, -80.0).at(0.5), 60.0);
    }

    #[test]
    fn giants_make_an_axis_logarithmic() {
        let mut values = vec![1.0; 20];
        assert!(!AxisScale::of_positive(&values, 0.0, 1.0).logarithmic());
        values[3] = 1000.0;
        let scale = AxisScale::of_positive(&values, 0.0, 1.0);
        assert!(
            scale.logarithmic()
                && scale.at(1.0) > 0.2
                && scale.at(0.0) == 0.0
                && scale.at(1000.0) == 1.0
        );
    }

    #[test]
    fn places_are_short() {
        let places = [1.0, -1.25, 0.04, -0.04, 12.35].map(|x| Coordinate(x).to_string());
        assert_eq!(places, ["1", "-1.3", "0", "0", "12.4"]);
    }
}
