//! What all clients together may have the proxy keep beyond their buffers: texts of prepared statements, and long messages
//! that are collected before they are read. Of the process, like the memory it bounds.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Shorter texts are not counted where each client keeps but one: they are less than its buffers.
pub const UNCOUNTED: usize = 1024;

/// What grows and shrinks little by little is counted in steps of this size.
const STEP: usize = 4 * UNCOUNTED;

static LIMIT: AtomicUsize = AtomicUsize::new(usize::MAX);
static KEPT: AtomicUsize = AtomicUsize::new(0);

/// Bytes that are counted until this is dropped.
#[derive(Debug, Default)]
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
    counts(bytes).then(|| Kept(bytes))
}

fn counts(bytes: usize) -> bool {
    let limit = LIMIT.load(Ordering::Relaxed);
    let fits = |kept: usize| kept.checked_add(bytes).filter(|sum| *sum <= limit);
    KEPT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok()
}

/// Counts bytes that are kept whatever the limit.
pub fn keep_anyway(bytes: usize) -> Kept {
    KEPT.fetch_add(bytes, Ordering::Relaxed);
    Kept(bytes)
}

impl Kept {
    /// So many bytes are kept in its stead from now on, or are about to be; false, and all as it was, if that would be too many.
    pub fn becomes(&mut self, bytes: usize) -> bool {
        let wanted = steps(bytes);
        if wanted > self.0 && !counts(wanted - self.0) {
            return false;
        }
        if wanted < self.0 {
            KEPT.fetch_sub(self.0 - wanted, Ordering::Relaxed);
        }
        self.0 = wanted;
        true
    }

    /// The same whatever the limit.
    pub fn becomes_anyway(&mut self, bytes: usize) {
        let more = steps(bytes).saturating_sub(self.0);
        KEPT.fetch_add(more, Ordering::Relaxed);
        self.0 += more;
        self.becomes(bytes);
    }
}

/// What is counted of what grows.
fn steps(bytes: usize) -> usize {
    if bytes <= UNCOUNTED { 0 } else { bytes.next_multiple_of(STEP) }
}

impl Drop for Kept {
    fn drop(&mut self) {
        KEPT.fetch_sub(self.0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_grows_is_counted_in_steps() {
        assert_eq!([0, UNCOUNTED, UNCOUNTED + 1, STEP, STEP + 1].map(steps), [0, 0, STEP, STEP, 2 * STEP]);
        let mut kept = Kept::default();
        assert!(kept.becomes(STEP + 1) && kept.0 == 2 * STEP);
        assert!(kept.becomes(1) && kept.0 == 0);
        kept.becomes_anyway(STEP);
        assert_eq!(kept.0, STEP);
    }
}
