//! Sizes that kernels take.

use std::collections::BTreeSet;

use moe_checkpoint::quantization::Integers;

/// What a rank's part of an expert must be a multiple of, and is not.
pub(super) fn misfit(rank: usize, divisor: usize, what: &str) -> Option<String> {
    (!rank.is_multiple_of(divisor))
        .then(|| format!("{what} of {divisor} don't divide {rank} neurons"))
}

/// What `quantize` can be told for groups that divide `hidden`.
pub(super) fn other_groups(hidden: usize, widths: &BTreeSet<usize>) -> String {
    let fits = |group: &&usize| {
        hidden.is_multiple_of(**group) && widths.iter().all(|w| w.is_multiple_of(**group))
    };
    match [128, 64, 32].iter().find(fits) {
        Some(group) => format!("quantize with --group-size {group}"),
        None => "no --group-size that it takes divides these matrices".to_owned(),
    }
}

/// Groups of columns, as a config says them.
pub(super) fn group_of(integers: Integers) -> i64 {
    integers.group.map_or(-1, |group| group as i64)
}
