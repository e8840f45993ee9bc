//! Why a command line can't be run.

use moe_checkpoint::Error;

/// Why a command line can't be run.
pub enum Refusal {
    /// By clap, or help and versions that were asked for.
    Clap(Box<clap::Error>),
    /// By this program.
    Own(Error),
}

impl From<clap::Error> for Refusal {
    fn from(error: clap::Error) -> Self {
        Self::Clap(Box::new(error))
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Own(error)
    }
}
