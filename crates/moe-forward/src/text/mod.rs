//! Text as a source of tokens: files of any size, read by position and never whole.
//!
//! [`TextFile`] says what a file holds (prose or records of JSON), going by its content. From there
//! on there are two ways:
//! - **From its beginning** ([`Stream`]): documents in their order, up to as many tokens as are
//!   wanted. This is how text is read that no seed chooses from, and small text always.
//! - **At places** ([`Places`]): a large text of which a sample is wanted is divided into cells,
//!   and cells are drawn by the seed until they gave enough tokens, so that neither time nor memory
//!   grows with the file.
//!
//! Either way a long document is tokenized in pieces (`pieces`) that overlap, cut where both sides
//! give the same tokens.

mod bytes;
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
