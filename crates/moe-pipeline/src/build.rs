//! Which build of the program this is.

/// The program's version, which many builds have.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A hash of the sources that this was built from (`build.rs`): results of another build may have
/// other bytes, so that they are neither reused nor gone on from.
pub const BUILD: &str = env!("MOE_BUILD");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_has_an_id() {
        assert!(BUILD.len() == 16 && BUILD.bytes().all(|b| b.is_ascii_hexdigit()), "{BUILD}");
    }
}
