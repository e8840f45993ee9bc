//! Sizes that kernels support, in words.

use std::collections::BTreeSet;

use moe_checkpoint::quantization::Integers;

/// Says that a rank's part of an expert isn't a multiple of `divisor`; None if it is one.
pub(super) fn misfit(rank: usize, divisor: usize, what: &str) -> Option<String> {
    (!rank.is_multiple_of(divisor))
        .then(|| format!("{what} of {divisor} don't divide {rank} neurons"))
}

/// Suggests the `--group-size` of `quantize` that divides `hidden` and all `widths`.
pub(super) fn other_groups(hidden: usize, widths: &BTreeSet<usize>) -> String {
    let dividing = [128, 64, 32].into_iter().find(|group| {
        hidden.is_multiple_of(*group) && widths.iter().all(|width| width.is_multiple_of(*group))
    });
    match dividing {
        Some(group) => format!("quantize with --group-size {group}"),
        None => "no --group-size that it takes divides these matrices".to_owned(),
    }
}

/// The group size as configs give it: a number of columns, or -1 for whole rows.
pub(super) fn group_of(integers: Integers) -> i64 {
    integers.group.map_or(-1, |group| group as i64)
}
