//! What a client sent runs on another server, because nothing of it ran on this one.

use super::Turn;
use crate::pool::switch::Switch;

impl Turn<'_> {
    /// The server could not be taken over: whether the client's batch, all of which PostgreSQL has skipped, is there again
    /// as if it had not been sent.
    pub(super) fn takes_back(&mut self) -> bool {
        let Some(first) = self.first.take() else { return false };
        let is_skipped = self.server.ledger().skip_switched(&mut self.heard.skipped);
        if !is_skipped || !self.client.incoming.put_back(&first) {
            return false;
        }
        self.undo_skipped();
        self.client.runs_again = true;
        true
    }

    /// A BEGIN that nothing followed is harmless wherever it ran, so it may run again.
    pub(super) fn takes_begin_back(&mut self) -> bool {
        self.server.ledger().switch() == Switch::Followed && self.takes_back()
    }
}
