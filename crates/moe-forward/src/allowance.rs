//! What a checkpoint's tokenizer may take of memory. Its normalizers can make gigabytes of a few bytes, and nothing in the library
//! that runs them says how much, or can be told to stop.

use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};

use moe_checkpoint::{Error, Kind};

const UNLIMITED: usize = usize::MAX;

thread_local! {
    static LEFT: Cell<usize> = const { Cell::new(UNLIMITED) };
    static ALLOWED: Cell<usize> = const { Cell::new(UNLIMITED) };
    static TOKENIZER: RefCell<PathBuf> = const { RefCell::new(PathBuf::new()) };
}

/// What `call` returns, which runs the tokenizer of `file` and may hold `bytes` at once: [`allocated`] counts.
pub(crate) fn limited<T>(file: &Path, bytes: usize, call: impl FnOnce() -> T) -> T {
    TOKENIZER.with_borrow_mut(|tokenizer| file.clone_into(tokenizer));
    ALLOWED.set(bytes);
    LEFT.set(bytes);
    let result = call();
    LEFT.set(UNLIMITED);
    result
}

/// Counts memory that this thread takes, for the program's allocator to call: nobody else sees all of it. An error, which is given once,
/// means that a tokenizer has taken all that it may. It can't be stopped then, so that the program must end.
///
/// # Errors
/// [`Kind::Unsupported`], naming the tokenizer's file.
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
    let what = format!("this tokenizer takes more than {} MiB for a text", ALLOWED.get() >> 20);
    let error = Error::new(Kind::Unsupported, what)
        .remedy("download tokenizer.json again, or give token ids: JSONL lines with \"input_ids\"");
    Err(TOKENIZER.with_borrow(|tokenizer| error.file(tokenizer)))
}

/// Counts memory that this thread gives back.
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
    fn only_a_tokenizer_is_limited_and_by_what_it_holds_at_once() {
        const BYTES: usize = 512 << 20;
        allocated(2 * BYTES).unwrap();
        let error = limited(Path::new("m/tokenizer.json"), BYTES, || {
            for _ in 0..3 {
                allocated(BYTES).unwrap();
                freed(BYTES);
            }
            allocated(BYTES - 1).unwrap();
            let error = allocated(2).unwrap_err();
            // What saying it takes isn't counted.
            allocated(BYTES).unwrap();
            error
        });
        assert!(error.to_string().contains("512 MiB") && error.to_string().contains("tokenizer.json"), "{error}");
        allocated(2 * BYTES).unwrap();
    }
}
