//! Text as a source of tokens: files of any size, read by position and never whole.
//!
//! [`TextFile`] is what a file of any kind is opened as: each kind (prose, JSON Lines, a JSON array,
//! gzip) is a row and a file of `kinds`, which recognizes it by its content. How a text is divided
//! into documents is its own `Documents`; nothing that reads it asks for its kind. There are two
//! ways to read it:
//! - **From its beginning** ([`Stream`]): documents in their order, up to as many tokens as are
//!   wanted. This is how text is read that no seed chooses from, and small text always.
//! - **At places** ([`Places`]): a large text of which a sample is wanted is divided into cells,
//!   and cells are drawn by the seed until they gave enough tokens, so that neither time nor memory
//!   grows with the file.
//!
//! Either way a long document is tokenized in pieces (`pieces`) that overlap, cut where both sides
//! give the same tokens.

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
