//! Clients that wait for a server: first come, first served.

use std::collections::VecDeque;

use tokio::sync::oneshot;

use super::server::Idle;
use crate::wire::report::Report;

/// Why a client got no server.
#[derive(Debug)]
pub enum Unserved {
    /// It is told.
    Refused(Report),
    /// It did not wait.
    Gone,
}

impl From<Report> for Unserved {
    fn from(report: Report) -> Self {
        Self::Refused(report)
    }
}

/// A client's place in the line: what it gets when its turn comes.
pub(super) type Turn = oneshot::Receiver<Result<Idle, Report>>;

/// The line.
#[derive(Default)]
pub(super) struct Queue {
    waiting: VecDeque<oneshot::Sender<Result<Idle, Report>>>,
}

impl Queue {
    /// Joins at the end.
    pub(super) fn join(&mut self) -> Turn {
        let (hand, turn) = oneshot::channel();
        self.waiting.push_back(hand);
        turn
    }

    /// Hands a server to the first who still waits; returns it if nobody does.
    pub(super) fn hand(&mut self, mut server: Idle) -> Option<Idle> {
        while let Some(hand) = self.waiting.pop_front() {
            match hand.send(Ok(server)) {
                // Who waited gave up; the server goes to the next.
                Err(Ok(unclaimed)) => server = unclaimed,
                Ok(()) | Err(Err(_)) => return None,
            }
        }
        Some(server)
    }

    /// Tells everyone that there is nothing to wait for.
    pub(super) fn refuse_all(&mut self, why: impl Fn() -> Report) {
        for hand in self.waiting.drain(..) {
            // Whoever gave up meanwhile is not to be told.
            let _ = hand.send(Err(why()));
        }
    }

    /// Everyone finds that their turn will not come.
    pub(super) fn dismiss(&mut self) {
        self.waiting.clear();
    }

    /// How many still wait. Those who gave up are taken out.
    pub(super) fn len(&mut self) -> usize {
        self.waiting.retain(|hand| !hand.is_closed());
        self.waiting.len()
    }

    /// Whether someone still waits.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.iter().all(oneshot::Sender::is_closed)
    }
}
