//! Random streams of a layer.

/// The first random stream of layer `layer`, which its router uses; its experts use the streams
/// after it.
pub(super) fn stream(layer: usize) -> u64 {
    (layer as u64) << 32
}
