//! Promises and numbers in words.

use moe_passes::Identity;

/// The promise that `identity` makes, in words.
pub fn identity(identity: &Identity) -> String {
    match identity {
        Identity::Exact => "the same as the source's, exactly".to_owned(),
        Identity::Approximate { reason } => format!("the source's, approximately: {reason}"),
        Identity::Changed { reason } => format!("changed: {reason}"),
    }
}

/// A number of parameters with its unit.
pub(super) fn millions(count: usize) -> String {
    match count {
        0..1_000_000 => format!("{:.1} K", count as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} M", count as f64 / 1e6),
        _ => format!("{:.2} B", count as f64 / 1e9),
    }
}
