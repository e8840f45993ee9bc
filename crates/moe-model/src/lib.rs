//! The typed model: layers, attention, feed-forward blocks, routers, experts and lazy weights.
//!
//! Tensor names and config keys exist only at the borders: a file `families/<model_type>.toml`
//! describes a family, [`Model::open`] reads a checkpoint through it and [`Model::declare`] turns a
//! model back into names and a config. In between, a model is a list of typed layers whose weights
//! are references into files.

#![deny(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, clippy::dbg_macro)]

mod assembly;
mod attention;
mod base_config;
mod codec;
mod declare;
mod decoder_layer;
mod engines;
mod family;
mod layer;
mod linear;
mod mixture;
mod mtp;
mod mtp_layer;
mod quantized;
mod read;
mod refused;
mod rope;
mod shape;
mod strict;
mod weight;
mod window;

pub use assembly::{Model, OutputHead, Parameters};
pub use base_config::{AUTO_MAP_KEY, is_of_model};
pub use codec::Config;
pub use codec::names::is_computed;
pub use declare::Declaration;
pub use engines::{Answer, Verdict};
pub use family::{
    Caveat, CaveatWhen, Family, Flag, Layout, QkNormKind, TokenizerRule, WindowRule, families,
    family,
};
pub use layer::{
    Attention, Expert, Ffn, GroupedAttention, LatentAttention, Layer, Linear, Moe, QkNorm,
    QueryLatent, Router, RouterPrecision, SharedExpert,
};
pub use moe_checkpoint::{Error, Kind, Quantization, Result};
pub use moe_math::routing::{GroupScore, Groups, Scoring};
pub use mtp_layer::MtpLayer;
pub use read::loaded_name;
pub use rope::{Rope, RopeScaling};
pub use strict::{JsonType, Strict};
pub use weight::{Encoding, PackedIntegers, Packing, Weight, WeightSource};
