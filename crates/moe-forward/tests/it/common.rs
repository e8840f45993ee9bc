//! What these tests share.

use std::path::{Path, PathBuf};

/// The file or folder `path` of the repository's goldens.
pub fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden").join(path)
}
