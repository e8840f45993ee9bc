//! An allocator that refuses what no small file may ask for. libFuzzer's own limits need a
//! sanitizer, or are looked at once a second.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// The most bytes that may be in use, unless a target asks for more: inputs have 64 KiB at most.
static MAX_BYTES: AtomicUsize = AtomicUsize::new(256 << 20);

/// Lets a target use `bytes`, where the program itself allows for more than inputs need.
pub fn allow(bytes: usize) {
    MAX_BYTES.store(bytes, Relaxed);
}

struct Bounded;

static IN_USE: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Bounded = Bounded;

// SAFETY: everything is the system allocator's; what is refused is null, as it must be.
unsafe impl GlobalAlloc for Bounded {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !claim(layout.size()) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's promises are those that the system allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if !claim(layout.size()) {
            return std::ptr::null_mut();
        }
        // SAFETY: as for `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as for `alloc`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !claim(size) {
            return std::ptr::null_mut();
        }
        IN_USE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as for `alloc`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// Counts `bytes` in, if there is room for them.
fn claim(bytes: usize) -> bool {
    let fits = IN_USE.fetch_add(bytes, Relaxed).saturating_add(bytes) <= MAX_BYTES.load(Relaxed);
    if !fits {
        IN_USE.fetch_sub(bytes, Relaxed);
    }
    fits
}
