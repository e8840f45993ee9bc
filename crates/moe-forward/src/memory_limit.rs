//! Limits the memory of a checkpoint's tokenizer or chat template. Normalizers can make gigabytes
//! of a few bytes, and the library that runs them neither reports how much they take nor can be
//! stopped. Templates count what they hold, but not what a step takes in between.

use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};

use moe_checkpoint::{Error, Kind};

const UNLIMITED: usize = usize::MAX;

thread_local! {
    static LEFT: Cell<usize> = const { Cell::new(UNLIMITED) };
    static ALLOWED: Cell<usize> = const { Cell::new(UNLIMITED) };
    static RUNNING: RefCell<(CheckpointCode, PathBuf)> = const { RefCell::new((CheckpointCode::Tokenizer, PathBuf::new())) };
}

/// The code whose memory is limited.
#[derive(Debug, Clone, Copy)]
pub(crate) enum CheckpointCode {
    Tokenizer,
    Template,
}

impl CheckpointCode {
    fn too_large(self) -> Error {
        let allowed = ALLOWED.get() >> 20;
        let (what, remedy) = match self {
            Self::Tokenizer => (
                format!("this tokenizer takes more than {allowed} MiB for a text"),
                "download tokenizer.json again, or give token ids: JSONL lines with \"input_ids\"",
            ),
            Self::Template => (
                format!("this chat template takes more than {allowed} MiB for a conversation"),
                "mend the template, or give \"text\" instead of \"messages\"",
            ),
        };
        Error::new(Kind::Unsupported, what).remedy(remedy)
    }
}

/// Calls `call`, which runs the `subject` in `file`. It may hold `bytes` bytes at a time, as
/// counted by [`allocated`].
pub(crate) fn limited<T>(
    subject: CheckpointCode,
    file: &Path,
    bytes: usize,
    call: impl FnOnce() -> T,
) -> T {
    RUNNING.set((subject, file.to_owned()));
    ALLOWED.set(bytes);
    LEFT.set(bytes);
    let result = call();
    LEFT.set(UNLIMITED);
    result
}

/// Counts `bytes` that this thread allocates. The program's allocator calls it, since only the
/// allocator sees all memory. An error means that a tokenizer or a template has exceeded its limit;
/// it is returned once. Neither can be stopped then, so the program must end.
///
/// # Errors
/// [`Kind::Unsupported`], naming the file of the tokenizer or template.
pub fn allocated(bytes: usize) -> Result<(), Error> {
    let left = LEFT.get();
    if left == UNLIMITED {
        return Ok(());
    }
    if let Some(left) = left.checked_sub(bytes) {
        LEFT.set(left);
        return Ok(());
    }
    LEFT.set(UNLIMITED);
    Err(RUNNING.with_borrow(|(subject, file)| subject.too_large().file(file)))
}

/// Counts `bytes` that this thread frees.
pub fn freed(bytes: usize) {
    let left = LEFT.get();
    if left != UNLIMITED {
        LEFT.set(left.saturating_add(bytes).min(ALLOWED.get()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_held_at_once_is_limited() {
        const BYTES: usize = 512 << 20;
        allocated(2 * BYTES).unwrap();
        let error =
            limited(CheckpointCode::Tokenizer, Path::new("m/tokenizer.json"), BYTES, || {
                for _ in 0..3 {
                    allocated(BYTES).unwrap();
                    freed(BYTES);
                }
                allocated(BYTES - 1).unwrap();
                let error = allocated(2).unwrap_err();
                // What the error message takes isn't counted.
                allocated(BYTES).unwrap();
                error
            });
        assert!(
            error.to_string().contains("512 MiB") && error.to_string().contains("tokenizer.json"),
            "{error}"
        );
        allocated(2 * BYTES).unwrap();
        let error = limited(CheckpointCode::Template, Path::new("m/t.jinja"), 5, || {
            allocated(6).unwrap_err()
        })
        .to_string();
        assert!(
            error.contains("chat template")
                && error.contains("t.jinja")
                && error.contains("remedy"),
            "{error}"
        );
    }
}
