//! Reads and writes tensor names and config keys.
//!
//! Each topic has a module of its own (`attention`, `mixture`, `mtp`, `rope`, `window`,
//! `quantized`) that uses this one in both directions: it takes tensors from a [`TensorReader`] and
//! values from a [`Config`] to read, and adds names to a [`Namer`] and keys to a config to write.

mod config;
mod express;
mod namer;
pub(crate) mod names;
mod reader;

pub use self::config::Config;
pub(crate) use self::express::{cannot, declare_bias, declare_flag, uniform};
pub(crate) use self::namer::Namer;
pub(crate) use self::reader::TensorReader;
