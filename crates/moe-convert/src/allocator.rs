//! The program's memory: jemalloc, and an end to tokenizers that take too much of it.

use std::alloc::{GlobalAlloc, Layout};
use std::process::exit;
use std::ptr::null_mut;

use moe_forward::{allocated, freed};
use tikv_jemalloc_sys::mallctl;
use tikv_jemallocator::Jemalloc;

use crate::bar::say;
use crate::interrupt::clear_away;

/// Milliseconds after which a training's unused memory goes back to the system.
const DECAY: isize = 2000;
/// Never: see [`ALLOCATOR_OPTIONS`].
const KEPT: isize = -1;

/// What `run` returns, during which unused memory goes back to the system. Every step of a training has batches of other sizes for its
/// experts, and what is kept for the sizes of all of them grows with the steps: from 120 MB to 530 MB in 400 on the built-in model.
pub fn giving_back<T>(run: impl FnOnce() -> T) -> T {
    decay(DECAY);
    let result = run();
    decay(KEPT);
    result
}

/// Whether jemalloc took it, as it does wherever there is one arena.
fn decay(milliseconds: isize) -> bool {
    let mut took = true;
    for name in [c"arena.0.dirty_decay_ms", c"arena.0.muzzy_decay_ms"] {
        let mut value = milliseconds;
        // SAFETY: the name ends in a zero, and the value has the type that jemalloc documents for it.
        took &=
            0 == unsafe { mallctl(name.as_ptr(), null_mut(), null_mut(), (&raw mut value).cast(), size_of::<isize>()) };
    }
    took
}

struct Allocator;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// Layers come and go with buffers of the same sizes: freed memory is kept, or the system would be asked for fresh pages most
/// of the time of a sweep; and one heap serves all threads, or each would keep what only one of them needs. glibc can be told
/// the same, but leaves holes between buffers wherever something small outlives a layer.
// SAFETY: nothing else has this name, which jemalloc reads before anything is allocated; it ends in a zero as C wants it.
#[unsafe(export_name = "_rjem_malloc_conf")]
static ALLOCATOR_OPTIONS: &[u8; 78] =
    b"narenas:1,oversize_threshold:0,dirty_decay_ms:-1,muzzy_decay_ms:-1,thp:always\0";

// SAFETY: everything is jemalloc's; counting doesn't touch the heap until the program is about to end.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promises are those that jemalloc asks for.
        unsafe { Jemalloc.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: as for `alloc`.
        unsafe { Jemalloc.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        freed(layout.size());
        // SAFETY: as for `alloc`.
        unsafe { Jemalloc.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        freed(layout.size());
        // SAFETY: as for `alloc`.
        unsafe { Jemalloc.realloc(pointer, layout, size) }
    }
}

/// Ends the program where a tokenizer would take more than it may. No call returns between here and the library that could carry an error.
fn count(bytes: usize) {
    let Err(error) = allocated(bytes) else { return };
    say(&format!("error: {error}"));
    clear_away();
    exit(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jemalloc_takes_what_it_is_told() {
        assert!(decay(DECAY) && decay(KEPT));
    }
}
