//! The sections of the page, one in each file.

pub(super) mod cost;
pub(super) mod distilled;
pub(super) mod error;
pub(super) mod experts;
pub(super) mod load;
pub(super) mod provenance;
pub(super) mod quantized;
pub(super) mod saliency;
pub(super) mod stability;
pub(super) mod summary;
mod tiles;
pub(super) mod training;
mod words;
