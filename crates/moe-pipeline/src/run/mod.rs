//! A run: passes applied to a checkpoint, each to what the one before makes, with no checkpoint
//! between them.
//!
//! A run is a value that moves through states, each of which consumes the one before:
//!
//! - [`Opened`]: the checkpoint is open, and its model read.
//! - [`Planned`]: all passes are planned, all text is read, and every name, shape and place is
//!   checked. Nothing was computed. A dry run ends here.
//! - [`Decided`]: what plans left open is found out, pass after pass: edits of layers are decided,
//!   text is surveyed, and models are trained.
//! - [`crate::Conversion`]: the result is written.

mod beside;
mod decided;
mod estimates;
mod hashes;
mod measured;
mod opened;
mod pass_run;
mod plan_file;
mod planned;
mod record;
mod side_files;
mod tensors;
mod texts;
mod written;

pub(crate) use beside::check_passes;
pub(crate) use hashes::Hashes;
pub(crate) use opened::Opened;
pub(crate) use planned::{Planned, check_together};
