//! Adds the part of the model in which they happened to candle's errors.

use moe_checkpoint::{Error, Kind};
use moe_model::Weight;

/// Adds to a numeric failure what was being computed.
pub(crate) trait Context<T> {
    /// Converts an error to one that says that `what` could not be computed.
    fn context(self, what: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T> Context<T> for candle_core::Result<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|error| failed(error, what))
    }
}

/// Returns the error that `what` could not be computed.
pub(crate) fn failed(error: candle_core::Error, what: impl FnOnce() -> String) -> Error {
    Error::new(Kind::Numeric, format!("cannot compute {}", what())).source(error)
}

/// Returns the name of `weight` for [`Context::context`].
pub(crate) fn tensor_label(weight: &Weight) -> String {
    format!("the tensor {}", weight.name())
}
