//! A run: passes applied to a checkpoint, each to the result of the one before, with no checkpoint
//! between them.
//!
//! A run is a value that moves through states, each of which consumes the one before:
//!
//! - [`crate::Run`]: passes and places are named, and nothing is read.
//! - [`Opened`]: the checkpoint is open, and its model read.
//! - [`Planned`]: all passes are planned, all text is read, and every name, shape and
//!   place is checked. Nothing was computed. A dry run ends here.
//! - [`decided::Decided`]: what plans left open is filled in, pass after pass: edits of layers are
//!   decided, text is surveyed, and models are trained.
//! - [`crate::Conversion`]: the result is written.

mod check;
mod decided;
mod estimates;
mod hashes;
mod held_out;
mod measured;
mod opened;
mod other_inputs;
mod pass_run;
mod plan_file;
mod planned;
mod proof;
mod record;
mod side_files;
mod tensors;
mod texts;
mod written;

pub(crate) use check::{check_passes, check_together};
pub(crate) use opened::Opened;
pub(crate) use planned::Planned;
