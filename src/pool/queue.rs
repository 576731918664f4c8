//! Clients that wait for a server: first come, first served, but for a few who are passed over because a server suits
//! another better.

use std::collections::VecDeque;
use std::time::SystemTime;

use tokio::sync::oneshot;

use super::server::{Idle, Resting as _, Shard, TermsDigest};
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

/// How many from the head of the line a server is matched with.
const LOOK_AHEAD: usize = 16;

/// How often one may be passed over before it is served, whatever comes.
const MAX_PASSED_OVER: usize = 8;

/// The line.
#[derive(Default)]
pub(super) struct Queue {
    waiting: VecDeque<Waiting>,
}

/// Somebody in the line.
struct Waiting {
    hand: oneshot::Sender<Result<Idle, Report>>,
    /// What it wants to be bound to, and where it runs.
    wants: (TermsDigest, Shard),
    /// Later ones were served first this often.
    passed_over: usize,
}

impl Queue {
    /// Joins at the end.
    pub(super) fn join(&mut self, terms: TermsDigest, shard: Shard) -> Turn {
        let (hand, turn) = oneshot::channel();
        self.waiting.push_back(Waiting { hand, wants: (terms, shard), passed_over: 0 });
        turn
    }

    /// Hands a server to whom it suits best near the head of the line; returns it if nobody waits.
    pub(super) fn hand(&mut self, mut server: Idle) -> Option<Idle> {
        while !self.waiting.is_empty() {
            let next = self.suited(&server);
            self.waiting.iter_mut().take(next).for_each(|earlier| earlier.passed_over += 1);
            let Some(Waiting { hand, .. }) = self.waiting.remove(next) else { break };
            match hand.send(Ok(server)) {
                // Who waited gave up; the server goes to the next.
                Err(Ok(unclaimed)) => server = unclaimed,
                Ok(()) | Err(Err(_)) => return None,
            }
        }
        Some(server)
    }

    /// Who is to have this server: whoever has equal terms, for a cleaning costs most; of them who runs where its socket
    /// is registered.
    fn suited(&self, server: &Idle) -> usize {
        let now = SystemTime::now();
        let rank = |waiting: &Waiting| {
            let (terms, shard) = waiting.wants;
            let serves = match server {
                Idle::Used(used) => used.serves(terms, now),
                Idle::Clean(..) => true,
            };
            (!serves, server.shard() != shard)
        };
        // Who has been passed over often enough closes the line behind it.
        let patient = self.waiting.iter().position(|waiting| waiting.passed_over >= MAX_PASSED_OVER);
        let candidates = patient.map_or(LOOK_AHEAD, |index| index + 1).min(LOOK_AHEAD);
        let candidates = self.waiting.iter().take(candidates).enumerate();
        match patient {
            Some(0) => 0,
            _ => candidates.min_by_key(|(_, waiting)| rank(waiting)).map_or(0, |(index, _)| index),
        }
    }

    /// Tells everyone that there is nothing to wait for.
    pub(super) fn refuse_all(&mut self, why: impl Fn() -> Report) {
        for Waiting { hand, .. } in self.waiting.drain(..) {
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
        self.waiting.retain(|waiting| !waiting.hand.is_closed());
        self.waiting.len()
    }

    /// Whether someone still waits.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.iter().all(|waiting| waiting.hand.is_closed())
    }
}
