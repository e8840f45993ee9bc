//! The program's allocator: jemalloc, with counting. It gives unused memory back where there is too
//! much, and ends the program where a tokenizer takes too much.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::fs::File;
use std::io::Read;
use std::process::exit;
use std::ptr::null_mut;
use std::sync::OnceLock;

use moe_forward::{allocated, freed};
use moe_pipeline::{
    ByteSize, count_allocated, count_freed, has_budget, live_bytes, resident_limit, untouched_bytes,
};
use tikv_jemalloc_sys::mallctl;
use tikv_jemallocator::Jemalloc;

use crate::bar::say;
use crate::interrupt::clear_away;

/// Milliseconds after which unused memory goes back to the system during a training.
const DECAY: isize = 2000;
/// Unused memory is never given back: see [`ALLOCATOR_OPTIONS`].
const KEPT: isize = -1;

/// Runs `run`, during which unused memory goes back to the system. In every step of a training the
/// batches of experts have other sizes. Without this, the memory kept for all these sizes grows
/// with the steps: from 120 MB to 530 MB in 400 steps on the built-in model.
pub fn giving_back<T>(run: impl FnOnce() -> T) -> T {
    decay(DECAY);
    let result = run();
    decay(KEPT);
    result
}

/// Zeroed memory of at least this size is written to under a budget.
const WRITTEN_BYTES: usize = 64 << 10;

/// The remedy for the running command that makes it hold less.
static REMEDY: OnceLock<&str> = OnceLock::new();

/// Stores `remedy` in advance, since nothing can be allocated when memory runs out.
pub fn remember_remedy(remedy: &'static str) {
    _ = REMEDY.set(remedy);
}

/// Sets the decay time, and returns whether jemalloc accepted it, as it does wherever there is one
/// arena.
fn decay(milliseconds: isize) -> bool {
    let mut took = true;
    for name in [c"arena.0.dirty_decay_ms", c"arena.0.muzzy_decay_ms"] {
        let mut value = milliseconds;
        // SAFETY: the name ends in a zero, and the value has the type that jemalloc documents for
        // it.
        took &= 0
            == unsafe {
                mallctl(
                    name.as_ptr(),
                    null_mut(),
                    null_mut(),
                    (&raw mut value).cast(),
                    size_of::<isize>(),
                )
            };
    }
    took
}

/// Gives all unused memory back to the system. Buffers of many sizes, such as those of experts with
/// more or fewer tokens, don't fill the holes that others left: without this a sweep held twice
/// what it asked for, and more with every layer.
pub fn purge() {
    // SAFETY: the name ends in a zero, stands for all arenas, and takes and gives no value.
    unsafe { mallctl(c"arena.4096.purge".as_ptr(), null_mut(), null_mut(), null_mut(), 0) };
}

/// Resident memory of this process, read without touching the heap; 0 where the system doesn't
/// tell.
fn resident_bytes() -> u64 {
    let mut text = [0; 4096];
    let read = File::open("/proc/self/status").and_then(|mut file| file.read(&mut text));
    let status = read.ok().and_then(|read| str::from_utf8(&text[..read]).ok()).unwrap_or("");
    let held = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse().ok());
    held.map_or(0, |kib: u64| kib * 1024)
}

struct Allocator;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// Layers come and go with buffers of the same sizes. Freed memory is kept: otherwise the system
/// would be asked for fresh pages during most of a sweep. One heap serves all threads: otherwise
/// each would keep memory that only one of them needs. glibc has the same settings, but leaves
/// holes between buffers wherever something small outlives a layer.
// SAFETY: nothing else has this name, which jemalloc reads before anything is allocated; it ends in
// a zero as C wants it.
#[unsafe(export_name = "_rjem_malloc_conf")]
static ALLOCATOR_OPTIONS: &[u8; 78] =
    b"narenas:1,oversize_threshold:0,dirty_decay_ms:-1,muzzy_decay_ms:-1,thp:always\0";

// SAFETY: all calls go to jemalloc; counting doesn't touch the heap until the program is about to
// end.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        taken(layout.size());
        // SAFETY: the caller's promises are those that jemalloc asks for.
        given(layout.size(), || unsafe { Jemalloc.alloc(layout) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        taken(layout.size());
        if has_budget() && layout.size() >= WRITTEN_BYTES {
            // Fresh zero pages would become resident later, when nothing checks the budget.
            // SAFETY: as for `alloc`.
            let pointer = given(layout.size(), || unsafe { Jemalloc.alloc(layout) });
            // SAFETY: this many bytes were allocated there.
            unsafe { pointer.write_bytes(0, layout.size()) };
            return pointer;
        }
        // SAFETY: as for `alloc`.
        given(layout.size(), || unsafe { Jemalloc.alloc_zeroed(layout) })
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        given_back(layout.size());
        // SAFETY: as for `alloc`.
        unsafe { Jemalloc.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        taken(size);
        given_back(layout.size());
        // SAFETY: as for `alloc`.
        given(size, || unsafe { Jemalloc.realloc(pointer, layout, size) })
    }
}

fn given_back(bytes: usize) {
    count_freed(bytes);
    freed(bytes);
}

/// The result of `allocate` for `bytes`. If it fails, it is called again after unused memory was
/// given back: an address space may be limited (`ulimit -v`) and full of it.
fn given(bytes: usize, allocate: impl Fn() -> *mut u8) -> *mut u8 {
    let pointer = allocate();
    if !pointer.is_null() {
        return pointer;
    }
    purge();
    let pointer = allocate();
    if pointer.is_null() {
        out_of_memory(bytes);
    }
    pointer
}

/// The message where no memory can be allocated, not even for a longer message.
const NOTHING_FITS: &[u8] =
    b"error: out of memory: the system gives none\n  remedy: allow more address space (ulimit -v)\n";

/// Ends the program. There is no other way to say why: allocations are everywhere, and most callers
/// abort where one fails.
#[cold]
fn out_of_memory(bytes: usize) -> ! {
    thread_local! {
        static ENDING: Cell<bool> = const { Cell::new(false) };
    }
    if ENDING.replace(true) {
        // Not even a message with numbers fits.
        // SAFETY: the pointer and the length are those of a constant.
        unsafe {
            libc::write(libc::STDERR_FILENO, NOTHING_FITS.as_ptr().cast(), NOTHING_FITS.len())
        };
        signal_hook::low_level::exit(1);
    }
    let held = live_bytes()
        .map_or(String::new(), |held| format!(", with {} held already", ByteSize(held)));
    let remedy = REMEDY.get().unwrap_or(&"lower --threads");
    let what =
        format!("error: out of memory: the system doesn't give {}{held}", ByteSize(bytes as u64));
    clear_away();
    say(&format!("{what}\n  remedy: {remedy}; or allow it more (ulimit -v)"));
    exit(1);
}

/// Ends the program where a tokenizer would take more than its limit. No call between here and the
/// library returns an error.
fn taken(bytes: usize) {
    // Threads that ask at the same time must not each find room for themselves.
    if count_allocated(bytes) && resident_bytes() + untouched_bytes() > resident_limit() {
        purge();
    }
    let Err(error) = allocated(bytes) else { return };
    clear_away();
    say(&format!("error: {error}"));
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
