//! Training: the forward pass of inference, differentiated layer by layer.
//!
//! Only the inputs of layers are kept. In the backward pass, a layer runs once more, tracked, which
//! gives the gradients of its weights and of its input. So the memory for this is one layer's,
//! whatever the depth. If there is room, graphs are kept instead.

mod gradients;
mod objective;
mod parameters;
mod routers;
mod teacher;

pub use gradients::{BatchWeight, Goal, Losses, Trainee};
pub use objective::{BalanceOver, Objective};
pub use parameters::{Gradients, Parameter, Parameters, TrainedPart};
pub use routers::{LayerCounts, add_counts};
pub use teacher::{Reference, Targets, TeacherKind};
