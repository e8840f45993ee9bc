//! candle's errors, with the part of the model that they happened in.

use moe_checkpoint::{Error, Kind};

/// Adds to a numeric failure where it happened.
pub(crate) trait Context<T> {
    /// The error says `what` could not be computed.
    fn context(self, what: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T> Context<T> for candle_core::Result<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|error| failed(error, what))
    }
}

/// `what` could not be computed.
pub(crate) fn failed(error: candle_core::Error, what: impl FnOnce() -> String) -> Error {
    Error::new(Kind::Numeric, format!("cannot compute {}", what())).source(error)
}
