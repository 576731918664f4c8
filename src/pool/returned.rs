//! What becomes of a server when its client's transaction is over.

use std::sync::{Arc, MutexGuard};
use std::time::Instant;

use super::lease::{Pool, State};
use super::ledger::TransactionOver;
use super::server::{BoundServer, Idle, Resting as _, UsedServer};
use super::shelf;

impl Pool {
    /// Gives a server back at the end of a transaction: to who waits, or to the shelf.
    pub fn release(self: &Arc<Self>, server: BoundServer, over: TransactionOver) {
        if let Some(used) = server.release(over) {
            self.put_back(Idle::Used(used));
        }
    }

    /// A server is of no use to its client any more: nobody is charged for the time that its end takes.
    pub fn ends_charge(&self, server: &mut BoundServer) {
        if let Some(holder) = server.let_go() {
            self.lock().waiting.gives_back(holder, Instant::now());
        }
    }

    pub(super) fn put_back(self: &Arc<Self>, server: Idle) {
        let mut state = self.lock();
        if self.is_done_with(&state, &server) {
            drop(state); // closing gives the place back
            return server.close(); // another is opened if somebody waits
        }
        let mut server = match server {
            // Also where somebody waits: how long a cleaning takes is for the last client to choose, and who waits may get
            // another server sooner.
            Idle::Used(used) if used.is_dirty() => {
                drop(state);
                return self.clean_in_background(used);
            }
            server => server,
        };
        let holder = server.let_go();
        if let Some(holder) = holder {
            state.waiting.gives_back(holder, Instant::now());
        }
        let last = holder.map(|holder| holder.flow);
        let Some(server) = state.waiting.hand(server, self.charges(), last) else { return };
        state.idle.push(server);
        self.keep_one_clean(state);
    }

    /// Cleans the server that was used least recently when clean ones were missed lately and none is left, so that
    /// the next client with other terms need not wait for it. Where all clients share their terms, none is missed.
    fn keep_one_clean(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        if state.clean_wanted == 0 {
            return;
        }
        let is_clean = state.idle.iter().map(|idle| matches!(idle, Idle::Clean(..)));
        let Some(index) = shelf::to_clean(is_clean) else { return };
        state.clean_wanted -= 1;
        if let Idle::Used(used) = state.idle.remove(index) {
            drop(state);
            self.clean_in_background(used);
        }
    }

    fn clean_in_background(self: &Arc<Self>, used: UsedServer) {
        let pool = self.clone();
        tokio::spawn(async move {
            match used.clean().await {
                Ok(clean) => pool.put_back(Idle::Clean(clean, Instant::now())),
                Err(unclean) => {
                    tracing::warn!(pool = pool.name(), reason = %unclean, "a server could not be cleaned and was closed");
                }
            }
        });
    }
}
