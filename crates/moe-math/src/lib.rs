//! Pure numerics: devices, encodings, seeded sampling, routing, and metrics on candle tensors.
//!
//! Nothing here knows a tensor's name or a file. Device and dtype are parameters everywhere.

#![deny(clippy::unwrap_used)]

pub mod device;
pub mod encoding;
pub mod likelihood;
pub mod load;
pub mod product;
pub mod routing;
pub mod sampling;

pub use device::{Compute, DeviceChoice, DeviceError, open_device};
