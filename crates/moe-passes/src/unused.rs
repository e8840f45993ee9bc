//! Options that were given, and that nothing reads beside the others.

use moe_model::{Error, Kind, Result};

/// Refuses the first of `options` that was given: `what` follows its name, and `or` is what else
/// can be done than leaving it out.
///
/// # Errors
/// [`Kind::Usage`], as one of which recipes take a key out that is for several steps.
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
