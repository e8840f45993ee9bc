//! The conversion passes, a module each: options, plan, and the transformed layers.
//!
//! A pass does no I/O: it maps typed layers to typed layers whose weights are lazy, and says what it
//! will do before anything is computed.

#![deny(clippy::unwrap_used)]

mod part;
mod pass;
pub mod upcycle;

pub use pass::{Effect, Identity, Kept, LayerRecord, Pass, Plan, Sources, Survey, SurveyText, Surveyor, TextSource};
pub use upcycle::UpcycleOptions;
