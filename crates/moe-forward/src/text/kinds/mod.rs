//! The kinds of text files, with one row and one file for each.

mod array;
mod gzip;
mod lines;
mod not_text;
mod prose;
mod scratch;

use super::kind::TextFormat;

/// All kinds, in the order in which a file is tried; the last accepts whatever it doesn't refuse.
pub(super) const KINDS: [&dyn TextFormat; 5] =
    [&gzip::Gzip, &not_text::NotText, &array::Array, &lines::Lines, &prose::Prose];
