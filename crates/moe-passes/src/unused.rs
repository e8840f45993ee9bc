//! Options that were given though nothing reads them beside the others.

use moe_model::{Error, Kind, Result};

/// Refuses the first of `options` that was given. The message is its name and `what`; `or` is the
/// remedy beside leaving it out.
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
        Some((option, _)) => Err(Error::new(Kind::Usage, format!("{option} {what}"))
            .remedy(format!("leave {option} out, or {or}"))
            .idle(&[option])),
        None => Ok(()),
    }
}
