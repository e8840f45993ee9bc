//! The charts of the report.

mod bars;
mod columns;
mod curve;
mod frame;
mod heatmap;
mod lines;
mod scatter;

pub(super) use bars::{Bar, Bars, bars};
pub(super) use columns::{Columns, columns};
pub(super) use curve::curve;
pub(super) use heatmap::{LEVELS, heatmap};
pub(super) use lines::{Line, LineChart, lines};
pub(super) use scatter::{Scatter, scatter};
