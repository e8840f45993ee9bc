//! Reads mixtures of experts from named tensors and config keys, and declares them again.

mod declare;
mod groups;
mod name;
mod read;
mod sparsity;

pub(crate) use self::declare::declare;
pub(crate) use self::name::name;
pub(crate) use self::read::read;
pub(crate) use self::sparsity::is_sparse;
