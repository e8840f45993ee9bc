//! Pointers of Git LFS, which lie where a checkout has left a file out.

use moe_checkpoint::{SideFile, json, read_whole};

/// A pointer of Git LFS is no longer.
const MAX_POINTER_BYTES: u64 = 1024;

/// Whether `file` is one, and not what it stands for.
pub(super) fn is_pointer(file: &SideFile) -> bool {
    file.bytes <= MAX_POINTER_BYTES
        && read_whole(&file.path, MAX_POINTER_BYTES)
            .is_ok_and(|text| text.starts_with(json::LFS_POINTER))
}
