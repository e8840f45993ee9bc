//! Training: the forward pass of inference, differentiated layer by layer.
//!
//! Only what enters each layer is kept. Going back, a layer runs once more, tracked, and gives the
//! gradients of its weights and of its input; so the memory for this is one layer's, whatever the
//! depth. Where there is room, graphs are kept instead.

mod gradients;
mod objective;
mod parameters;
mod routers;
mod teacher;

pub use gradients::{Goal, Losses, Scale, Trainee};
pub use objective::{BalanceOver, Objective};
pub use parameters::{Gradients, Parameter, Parameters, TrainedPart};
pub use routers::{LayerCounts, add_counts};
pub use teacher::{Reference, Targets, TeacherKind};
