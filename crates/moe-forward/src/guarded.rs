//! Calls code that panics where it should return an error, as tokenizers 0.23 does on files that
//! contradict themselves.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Returns whether a panic of this thread will be converted to an error, so that a panic hook
/// needn't report it.
pub fn panic_is_caught() -> bool {
    GUARDED.get()
}

/// Calls `call`, and converts a panic to an error with its message.
pub(crate) fn guarded<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> tokenizers::Result<T> {
    GUARDED.set(true);
    let result = catch_unwind(AssertUnwindSafe(call));
    GUARDED.set(false);
    result.unwrap_or_else(|panic| {
        let said = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or(panic.downcast_ref::<&str>().copied());
        Err(said.unwrap_or("it panicked").into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error() {
        assert!(guarded(|| Ok(panic_is_caught())).unwrap());
        let error = guarded(|| -> tokenizers::Result<()> { panic!("token {}", 7) }).unwrap_err();
        assert_eq!(error.to_string(), "token 7");
        assert!(!panic_is_caught());
    }
}
