//! Random numbers of a layer.

/// The first of layer `layer`'s random streams, which is its router's; its experts have those behind
/// it.
pub(super) fn stream(layer: usize) -> u64 {
    (layer as u64) << 32
}
