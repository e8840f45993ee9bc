//! How names of tensors and keys of the config are read and written.
//!
//! A module for each topic (`attention`, `mixture`, `mtp`, `rope`, `window`, `quantized`) stands
//! above this and says both ways what its names and keys mean: it takes tensors from a [`Reader`]
//! and values from a [`Config`], and gives names to a [`Namer`] and keys to a config.

mod config;
mod express;
mod namer;
pub(crate) mod names;
mod reader;

pub use self::config::Config;
pub(crate) use self::express::{cannot, declare_bias, declare_flag, uniform};
pub(crate) use self::namer::Namer;
pub(crate) use self::reader::Reader;
