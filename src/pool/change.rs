//! What changes while a pool is at work: its bounds, where it leads, and whether it serves.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::lease::{Pool, State};
use super::server::{Idle, Resting as _, Shard};
use crate::config::PoolLimits;
use crate::net::dial::Dialer;

impl Pool {
    /// Other bounds, and perhaps another server. Servers that lead elsewhere serve to the end of their transactions.
    pub fn is_changed(self: &Arc<Self>, limits: PoolLimits, dialer: Dialer, shard: Shard) {
        self.settings.limits.store(Arc::new(limits));
        let leads_elsewhere = !self.settings.dialer.load().leads_as(&dialer);
        self.settings.dialer.store(Arc::new(dialer));
        let idle = {
            let mut state = self.lock();
            state.is_retired = false;
            let open = state.idle.len();
            if leads_elsewhere {
                // What was wrong with the former one says nothing of this one.
                (state.reconnects, state.trouble) = (Some(Instant::now()), None);
            }
            // More than there may be, or all of them.
            let surplus =
                if leads_elsewhere { open } else { state.open.saturating_sub(limits.size).min(open) };
            let surplus = state.idle.drain(..surplus).collect();
            // Who waits may have what lies there, if it may hold more than before.
            state.waiting.bound(limits.per_organization);
            if !state.is_paused {
                let idle = std::mem::take(&mut state.idle);
                let left =
                    idle.into_iter().filter_map(|server| state.waiting.hand(server, self.charges(), None));
                let left = left.collect();
                state.idle = left;
            }
            surplus
        };
        close(idle);
        self.open_for_waiting(&mut self.lock(), shard);
    }

    /// Nobody new comes: nothing is kept ready.
    pub fn retire(&self) {
        let limits = PoolLimits { min_idle: 0, ..self.limits() };
        self.settings.limits.store(Arc::new(limits));
        self.lock().is_retired = true;
    }

    /// No transaction begins until [`Pool::resume`], whoever waits; those that run go on. Idle servers are closed.
    pub fn pause(&self) {
        let idle = {
            let mut state = self.lock();
            state.is_paused = true;
            std::mem::take(&mut state.idle)
        };
        close(idle);
    }

    /// Whether none begins.
    pub fn is_paused(&self) -> bool {
        self.lock().is_paused
    }

    /// Transactions begin again.
    pub fn resume(self: &Arc<Self>, shard: Shard) {
        let mut state = self.lock();
        (state.is_paused, state.resumed) = (false, Some(Instant::now()));
        self.open_for_waiting(&mut state, shard);
    }

    /// How much longer one waits who has waited for `wait_timeout`: a pause is not to be told as one that took too long, nor
    /// that it could not be served as soon as the pause was over.
    pub(super) fn has_paused(&self) -> Option<Duration> {
        let state = self.lock();
        if state.is_paused {
            return Some(PAUSED);
        }
        let left = self.limits().wait_timeout.checked_sub(state.resumed?.elapsed())?;
        (!left.is_zero()).then_some(left)
    }

    /// Whether a server is not to serve again.
    pub(super) fn is_done_with(&self, state: &State, server: &Idle) -> bool {
        let leads_elsewhere = state.reconnects.is_some_and(|since| server.opened() < since);
        let is_surplus = state.open > self.limits().size;
        Instant::now() >= server.retires() || leads_elsewhere || is_surplus || state.is_paused
    }
}

/// Outside the lock: closing gives the places back, which takes it.
fn close(idle: Vec<Idle>) {
    idle.into_iter().for_each(Idle::close);
}

/// While a pool is paused, who waits is not told that it has waited too long; this often it is looked whether it still is.
const PAUSED: Duration = Duration::from_millis(200);
