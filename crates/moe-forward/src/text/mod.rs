//! Text as a source of tokens. Files may have any size: they are read by position and never held
//! whole.
//!
//! [`TextFile`] is an opened file of any kind. Each kind (prose, JSON Lines, a JSON array, gzip) is
//! a row and a file of `kinds`, which recognizes it by its content. Its `Documents` divide a text
//! into documents; no reader asks for the kind. There are two ways to read a text:
//!
//! - **From its beginning** ([`Stream`]): documents in order, up to the wanted number of tokens.
//!   This is how text is read without a seed, and small text always.
//! - **At places** ([`Places`]): to sample a large text, it is divided into cells, and cells are
//!   drawn by the seed until they have given enough tokens. So neither time nor memory grows with
//!   the file.
//!
//! Both ways tokenize a long document in overlapping pieces (`pieces`), which are joined where both
//! sides give the same tokens.

mod bytes;
mod command;
mod documents;
mod encoder;
mod escaped;
mod kind;
mod kinds;
mod open;
mod pieces;
mod places;
mod reader;
mod record;
mod refused;
mod room;
mod scan;
mod source;
mod stream;
mod surrogates;
mod windows;
mod wrong;

pub(crate) use encoder::Encoder;
pub(crate) use places::Places;
pub(crate) use room::LabelRoom;
pub use room::{HELD_BYTES_A_TOKEN, Room};
pub(crate) use source::TextFile;
pub(crate) use stream::Stream;
pub(crate) use windows::Windows;
