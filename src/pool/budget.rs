//! What all clients together may have the proxy keep beyond their buffers: texts of prepared statements, and long messages
//! that are collected before they are read. Of the process, like the memory it bounds.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Shorter texts are not counted where each client keeps but one: they are less than its buffers.
pub const UNCOUNTED: usize = 1024;

static LIMIT: AtomicUsize = AtomicUsize::new(usize::MAX);
static KEPT: AtomicUsize = AtomicUsize::new(0);

/// Bytes that are counted until this is dropped.
#[derive(Debug)]
pub struct Kept(usize);

/// Sets the limit, in bytes.
pub fn limit_to(bytes: usize) {
    LIMIT.store(bytes, Ordering::Relaxed);
}

/// How many bytes are kept.
pub fn kept() -> usize {
    KEPT.load(Ordering::Relaxed)
}

/// Counts bytes that are about to be kept; `None` if that would be too many.
pub fn keep(bytes: usize) -> Option<Kept> {
    let limit = LIMIT.load(Ordering::Relaxed);
    let fits = |kept: usize| kept.checked_add(bytes).filter(|sum| *sum <= limit);
    KEPT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).ok().map(|_| Kept(bytes))
}

/// Counts bytes that are kept whatever the limit.
pub fn keep_anyway(bytes: usize) -> Kept {
    KEPT.fetch_add(bytes, Ordering::Relaxed);
    Kept(bytes)
}

impl Drop for Kept {
    fn drop(&mut self) {
        KEPT.fetch_sub(self.0, Ordering::Relaxed);
    }
}
