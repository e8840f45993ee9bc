//! The frame that values are drawn in: ticks on the left, an axis below.

use crate::report::svg::{Anchor, AxisScale, Svg};

/// The size of a picture, and its margins.
pub(super) struct Frame {
    pub size: [f64; 2],
    pub left: f64,
    pub top: f64,
    pub bottom: f64,
}

impl Frame {
    pub const fn width(&self) -> f64 {
        self.size[0]
    }

    pub const fn height(&self) -> f64 {
        self.size[1]
    }

    /// The width that values are drawn in.
    pub const fn wide(&self) -> f64 {
        self.width() - self.left
    }

    /// The y at which values begin.
    pub const fn foot(&self) -> f64 {
        self.height() - self.bottom
    }

    /// The distance in y from the least value to the greatest; it is negative, since y decreases
    /// upwards.
    pub const fn rise(&self) -> f64 {
        self.top - self.foot()
    }

    /// Draws a horizontal line for each tick of `scale`, labeled on the left.
    pub fn grid(&self, svg: &mut Svg, scale: &AxisScale, label: fn(f64) -> String) {
        for value in scale.ticks() {
            let y = scale.at(value);
            svg.line("grid", [self.left, y], [self.width(), y]);
            svg.text("tick", [self.left - 6.0, y + 4.0], Anchor::End, &label(value));
        }
    }

    /// Draws the horizontal axis at `y`.
    pub fn axis(&self, svg: &mut Svg, y: f64) {
        svg.line("axis", [self.left, y], [self.width(), y]);
    }

    /// Writes a tick of the horizontal axis.
    pub fn tick_below(&self, svg: &mut Svg, x: f64, text: &str) {
        svg.text("tick", [x, self.foot() + 15.0], Anchor::Middle, text);
    }

    /// Writes the name of the horizontal axis.
    pub fn name_below(&self, svg: &mut Svg, name: &str) {
        let place = [self.left + self.wide() / 2.0, self.height() - 5.0];
        svg.text("tick", place, Anchor::Middle, name);
    }
}
