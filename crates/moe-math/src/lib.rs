//! Pure numerics: devices, encodings, seeded sampling, routing, clustering, assignment,
//! quantization, and metrics on candle tensors.
//!
//! Nothing here knows the name of a tensor or a file. Device and dtype are always parameters.

#![deny(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, clippy::dbg_macro)]

pub mod adamw;
pub mod alignment;
pub mod assignment;
pub mod combine;
pub mod deferred_readback;
pub mod determinantal;
pub mod device;
pub mod encoding;
pub mod figures;
pub mod fingerprint;
pub mod fp8;
pub mod graph;
pub mod kernels;
pub mod kmeans;
pub mod knapsack;
pub mod least_squares;
pub mod likelihood;
pub mod linkage;
pub mod load;
pub mod losses;
pub mod meter;
pub mod observed;
pub mod ops;
pub mod orthogonal;
mod points;
pub mod principal;
pub mod product;
pub mod quantize;
pub mod rank;
mod reduce;
pub mod ridge;
pub mod routing;
pub mod saliency;
pub mod sampling;
pub mod statistics;
mod swiglu;
mod symmetric;
pub mod temperature;

pub use device::{
    Compute, DeviceChoice, DeviceError, FoundDevice, RouterDtype, find_device, open_device,
};
pub use swiglu::swiglu;
