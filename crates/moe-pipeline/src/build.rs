//! The version and build of the program.

/// The program's version, which many builds share.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A hash of the sources that this was built from (`build.rs`). Results of another build may have
/// other bytes, so they are neither reused nor continued.
pub const BUILD: &str = env!("MOE_BUILD");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_has_an_id() {
        assert!(BUILD.len() == 16 && BUILD.bytes().all(|b| b.is_ascii_hexdigit()), "{BUILD}");
    }
}
