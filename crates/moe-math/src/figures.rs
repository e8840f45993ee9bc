//! Checks of figures that were read from a file. The error is a sentence that begins with the key.

/// What is wrong with figures, if anything.
pub type Checked = Result<(), String>;

/// Shares are quotients of sums, which rounding may take a little beyond 0 and 1.
const SLACK: f64 = 1e-6;

/// Refuses a `share` outside of 0 to 1. Infinity stands for a value that is unknown.
///
/// # Errors
/// What is wrong.
pub fn check_share(key: &str, share: f64) -> Checked {
    if (-SLACK..=1.0 + SLACK).contains(&share) || share == f64::INFINITY {
        return Ok(());
    }
    Err(format!("{key} is {share:?}, where a share between 0 and 1 is expected"))
}

/// Refuses a list of `length` where there are `count` of what it lists.
///
/// # Errors
/// What is wrong.
pub fn check_length(key: &str, length: usize, count: usize) -> Checked {
    if length == count {
        return Ok(());
    }
    Err(format!("{key} has {length} values, where there are {count} experts"))
}

/// Refuses an index of an expert that isn't below `count`.
///
/// # Errors
/// What is wrong.
pub fn check_experts(key: &str, indices: &[usize], count: usize) -> Checked {
    match indices.iter().find(|index| **index >= count) {
        None => Ok(()),
        Some(index) => Err(format!("{key} names expert {index}, where there are {count}")),
    }
}

/// Refuses a part that is greater than the `whole`, which has the key `of`.
///
/// # Errors
/// What is wrong.
pub fn check_part([key, of]: [&str; 2], part: u64, whole: u64) -> Checked {
    if part <= whole {
        return Ok(());
    }
    Err(format!("{key} is {part}, which is more than {of}, {whole}"))
}

/// What was `checked`, as a part of the object at `key`.
///
/// # Errors
/// What is wrong.
pub fn within(key: impl std::fmt::Display, checked: Checked) -> Checked {
    checked.map_err(|said| format!("{key}.{said}"))
}
