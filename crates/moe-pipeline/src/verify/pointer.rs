//! Git LFS pointers, which a checkout leaves in place of large files.

use moe_checkpoint::{SideFile, json, read_whole};

/// Maximum size of a Git LFS pointer.
const MAX_POINTER_BYTES: u64 = 1024;

/// Whether `file` is a pointer instead of the file that it stands for.
pub(super) fn is_pointer(file: &SideFile) -> bool {
    file.bytes <= MAX_POINTER_BYTES
        && read_whole(&file.path, MAX_POINTER_BYTES)
            .is_ok_and(|text| text.starts_with(json::LFS_POINTER))
}
