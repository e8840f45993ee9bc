//! What a checkpoint's own programs may take of memory. minijinja counts instructions, but a text that is doubled by each of them has
//! filled any machine after forty.

use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};

use moe_checkpoint::{Error, Kind};

/// A conversation takes a few times its own size.
const BYTES: usize = 512 << 20;
const UNLIMITED: usize = usize::MAX;

thread_local! {
    static LEFT: Cell<usize> = const { Cell::new(UNLIMITED) };
    static TEMPLATE: RefCell<PathBuf> = const { RefCell::new(PathBuf::new()) };
}

/// What `render` returns, a template of `file`, which may take as much as is allowed: [`allocated`] counts.
pub(crate) fn limited<T>(file: &Path, render: impl FnOnce() -> T) -> T {
    TEMPLATE.with_borrow_mut(|template| file.clone_into(template));
    LEFT.set(BYTES);
    let result = render();
    LEFT.set(UNLIMITED);
    result
}

/// Counts memory that this thread takes, for the program's allocator to call: nobody else sees all of it. An error, which is given once,
/// means that a template has taken all that it may. It can't be stopped then, so that the program must end.
///
/// # Errors
/// [`Kind::Unsupported`], naming the template.
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
    let what = format!("the chat template takes more than {} MiB for a conversation", BYTES >> 20);
    let error = Error::new(Kind::Unsupported, what).remedy("give \"text\" instead of \"messages\"");
    Err(TEMPLATE.with_borrow(|template| error.file(template)))
}

/// Counts memory that this thread gives back.
pub fn freed(bytes: usize) {
    let left = LEFT.get();
    if left != UNLIMITED {
        LEFT.set(left.saturating_add(bytes).min(BYTES));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_template_is_limited_and_by_what_it_holds_at_once() {
        allocated(2 * BYTES).unwrap();
        let error = limited(Path::new("m/chat_template.jinja"), || {
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
        assert!(error.to_string().contains("512 MiB") && error.to_string().contains("chat_template.jinja"), "{error}");
        allocated(2 * BYTES).unwrap();
    }
}
