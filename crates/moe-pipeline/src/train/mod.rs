//! Training of a planned model before it is written.

mod dir;
mod job;
mod lessened;
mod log;
mod need;
mod order;
mod parts;
mod record;
mod running;
mod settings;
mod speed;
mod state;
mod task;
mod trainer;

pub use dir::training_left;
pub(crate) use dir::{NOTHING_SAVED, TrainingDir};
pub(crate) use job::TrainingJob;
pub(crate) use need::TrainingMemory;
pub use record::{LoadChange, Measurement, StepRecord, TrainingRecord};
pub use settings::Settings;
pub(crate) use task::TrainingTask;
