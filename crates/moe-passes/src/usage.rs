//! Errors about options that can't work. Each names its options, so that a recipe finds their line.

use moe_model::{Error, Kind, Result};

/// The error that `options` can't work. The first is its subject; options that another model or
/// text would need may follow.
pub(crate) fn usage(options: &[&str], what: impl Into<String>, remedy: impl Into<String>) -> Error {
    Error::new(Kind::Usage, what).options(options).remedy(remedy)
}

/// The error that `options` have no effect with the others, so that a recipe can leave out a key
/// that it sets for several steps.
pub(crate) fn idle(options: &[&str], what: impl Into<String>, remedy: impl Into<String>) -> Error {
    Error::new(Kind::Usage, what).idle(options).remedy(remedy)
}

/// Refuses the first of `options` that was given, which nothing reads if the others are given. The
/// message is its name and `what`; `or` is the remedy, apart from leaving it out.
///
/// # Errors
/// [`Kind::Usage`]. It names the option as idle, so that a recipe can leave out a key that it sets
/// for several steps.
pub fn refuse_unused<const N: usize>(
    options: [(&str, bool); N],
    what: &str,
    or: &str,
) -> Result<()> {
    match options.into_iter().find(|(_, is_given)| *is_given) {
        Some((option, _)) => {
            let remedy = format!("leave {option} out, or {or}");
            Err(idle(&[option], format!("{option} {what}"), remedy))
        }
        None => Ok(()),
    }
}
