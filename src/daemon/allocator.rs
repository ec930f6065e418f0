//! Where the daemon's memory comes from.
//!
//! Purpose: choose the allocator, and how it keeps and gives back pages. Owner: the binary, which makes it the global one. Invariants:
//! memory that is no longer used goes back to the kernel within seconds, whatever a burst took.
//!
//! jemalloc, for it was measured to be cheaper with a thousand clients and to take less for each open stream (`docs/performance.md`);
//! but on 64-bit x86 alone: it is built for one size of pages, and kernels of other architectures come with several.

#[cfg(target_arch = "x86_64")]
pub use tikv_jemallocator::Jemalloc as Allocator;

/// The C library's.
#[cfg(not(target_arch = "x86_64"))]
pub use std::alloc::System as Allocator;

/// jemalloc looks for its settings under this name. One arena, as one thread does nearly all the work. Pages go back a second after
/// they were used, not after ten, by a thread of jemalloc's own: without it who allocates does that, and a host at rest allocates nothing.
/// `oversize_threshold`: large bodies are memory like any other; by default what is above 8 MiB is given back at once and faulted in anew
/// by the next body, which takes twice as long (and 0, which is to switch that off, has the same done with everything from 16 KiB on).
#[cfg(target_arch = "x86_64")]
#[used]
// SAFETY: nothing else in the program has this name, and jemalloc reads it as what it is: a pointer to text that ends with a zero.
#[unsafe(export_name = "_rjem_malloc_conf")]
static SETTINGS: Option<&'static std::ffi::c_char> = Some(
    // SAFETY: of a constant with a zero at its end.
    unsafe {
        &*c"narenas:1,background_thread:true,dirty_decay_ms:1000,muzzy_decay_ms:0,oversize_threshold:1073741824".as_ptr()
    },
);
