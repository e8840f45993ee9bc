//! The reasons why a command line isn't run.

use moe_checkpoint::Error;

/// The reason why a command line isn't run.
pub enum Refusal {
    /// An error of clap, or the help or version that was asked for.
    Clap(Box<clap::Error>),
    /// An error of this program.
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
