//! Tables, and formats of numbers in their cells.

use std::fmt::Write as _;

use comfy_table::{CellAlignment, Table, presets};
use moe_checkpoint::shown;

/// A table with a header. All columns but the first are right-aligned. Cells are escaped, so that
/// their text stays in them.
pub(super) fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    let header = header.iter().map(|name| shown(name, ""));
    let rows = rows
        .into_iter()
        .map(|row| row.iter().map(|cell| shown(cell, "").into_owned()).collect::<Vec<_>>());
    table.load_preset(presets::NOTHING).set_header(header).add_rows(rows);
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((if index == 0 { 2 } else { 1 }, 1));
        if index > 0 {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    lines(&table)
}

/// Lines of a name and its value.
pub(super) fn facts(rows: impl IntoIterator<Item = (&'static str, String)>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).add_rows(
        rows.into_iter().map(|(name, value)| vec![name.to_owned(), shown(&value, "").into_owned()]),
    );
    if let Some(column) = table.column_mut(0) {
        column.set_padding((2, 1));
    }
    lines(&table)
}

fn lines(table: &Table) -> String {
    table.lines().fold(String::new(), |mut text, line| {
        let _ = writeln!(text, "{}", line.trim_end());
        text
    })
}

pub(super) fn or_dash(value: Option<String>) -> String {
    value.unwrap_or_else(|| "–".to_owned())
}

/// 1,234,567 as `1.23 M`.
pub(super) fn count(n: usize) -> String {
    match n {
        0..10_000 => n.to_string(),
        10_000..1_000_000 => format!("{:.1} K", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.2} M", n as f64 / 1e6),
        _ => format!("{:.2} B", n as f64 / 1e9),
    }
}
