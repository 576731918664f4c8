//! Who holds a server: charged for it until it is given back, or gone.

use std::sync::Weak;
use std::time::Instant;

use super::lease::Pool;
use super::queue::Flow;

/// A server's time, on somebody's account. Dropped with the server wherever that ends.
pub struct Holder {
    pool: Weak<Pool>,
    /// Whose account.
    flow: Flow,
    since: Instant,
}

impl Holder {
    /// It was taken from the pool at `since`, for this account.
    pub(super) fn new(pool: Weak<Pool>, flow: Flow, since: Instant) -> Self {
        Self { pool, flow, since }
    }

    /// For who settles the account itself, under the pool's lock.
    pub(super) fn settled(mut self) -> (Flow, Instant) {
        self.pool = Weak::new();
        (self.flow, self.since)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.upgrade() {
            pool.lock().waiting.gives_back(self.flow, self.since, Instant::now());
        }
    }
}
