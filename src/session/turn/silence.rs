//! A server that is held while its client is silent, whose turn it is to speak: what `idle_in_transaction_time` limits.

use std::task::{Context, Poll};

use super::Turn;
use crate::pool::ledger::Speaks;
use crate::wire::report::{Report, Sqlstate};
use crate::wire::speak;

impl Turn<'_> {
    /// Ready when the transaction has taken too long, or its client has been silent for too long: what that is told.
    pub(super) fn poll_limits(&mut self, cx: &mut Context<'_>) -> Poll<Report> {
        self.notes_silence();
        self.limits.as_mut().map_or(Poll::Pending, |limits| limits.poll(cx))
    }

    /// Whether it is the client's turn to speak.
    fn notes_silence(&mut self) {
        if self.limits.is_none() {
            return;
        }
        let requests = &self.client.requests;
        let (is_streaming, is_collecting) = (requests.body.is_some(), requests.collecting.is_some());
        // What PostgreSQL has no room for is still on its way.
        let is_sent = self.server.outgoing().is_empty();
        let ledger = self.server.ledger();
        let speaks = if is_sent { ledger.speaks_next(!is_streaming) } else { Speaks::Server };
        // Who says something small (a Flush) in a transaction is as idle as before.
        let goes_on = is_streaming || is_collecting || ledger.is_in_copy() || speaks == Speaks::ServerIfAsked;
        if let Some(limits) = &mut self.limits {
            let is_idle = match speaks {
                Speaks::Server => false,
                Speaks::ServerIfAsked => !limits.has_asked,
                Speaks::Client => true,
            };
            limits.is_idle(is_idle, goes_on);
        }
    }

    /// The client has been silent for too long behind what PostgreSQL answers only when it is asked to: whether that works or
    /// waits is not known, so it is asked first, once.
    pub(super) fn asks_for_answers(&mut self, report: &Report) -> bool {
        let is_whole = self.client.requests.body.is_none();
        let is_asked = report.code == Sqlstate::IDLE_IN_TRANSACTION
            && self.server.ledger().speaks_next(is_whole) == Speaks::ServerIfAsked;
        match &mut self.limits {
            Some(limits) if is_asked && !limits.has_asked => {
                limits.has_asked = true;
                speak::flush(self.server.outgoing());
                true
            }
            _ => false,
        }
    }
}
