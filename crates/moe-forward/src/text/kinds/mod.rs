//! The kinds of files that text comes in: a row and a file for each.

mod array;
mod gzip;
mod lines;
mod not_text;
mod prose;
mod scratch;

use super::kind::FileKind;

/// The kinds in the order in which a file is shown to them; the last takes what it doesn't refuse.
pub(super) const KINDS: [&dyn FileKind; 5] =
    [&gzip::Gzip, &not_text::NotText, &array::Array, &lines::Lines, &prose::Prose];
