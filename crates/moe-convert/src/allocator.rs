//! The program's memory: jemalloc, and an end to templates that take too much of it.

use std::alloc::{GlobalAlloc, Layout};
use std::process::exit;

use moe_checkpoint::remove_unfinished;
use moe_forward::{allocated, freed};
use tikv_jemallocator::Jemalloc;

use crate::bar::say;

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

/// Ends the program where a template would take more than it may. No call returns between here and minijinja that could carry an error.
fn count(bytes: usize) {
    let Err(error) = allocated(bytes) else { return };
    say(&format!("error: {error}"));
    if let Err(error) = remove_unfinished() {
        say(&format!("error: {error}"));
    }
    exit(1);
}
