//! Who speaks next, as far as what was sent and answered tells.

use super::Ledger;
use crate::pool::due::Due;

/// Who speaks next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
    /// PostgreSQL, when it has done what it is asked.
    Server,
    /// The same, but it may keep its answers to itself until it gets a Sync or a Flush.
    ServerIfAsked,
    /// The client: everything is answered, or PostgreSQL waits for the rest of it.
    Client,
}

impl Ledger {
    /// Whether the server will not come to rest by itself: it waits for the end of a COPY, or for a Sync.
    pub fn awaits_client(&self) -> bool {
        let last = self.due.iter().rev().find(|due| !matches!(due, Due::CopyEnd));
        let is_complete = matches!(last, Some(Due::Binding | Due::Query(_) | Due::Sync));
        self.is_copying || self.is_waiting() && !is_complete
    }

    /// Who speaks next, when all that is queued was sent. `is_last_whole`: so was the end of the last message.
    pub fn speaks_next(&self, is_last_whole: bool) -> Speaks {
        let sent = self.due.len().saturating_sub(usize::from(!is_last_whole));
        if self.is_copying || sent == 0 {
            return Speaks::Client;
        }
        let answers_by_itself = |due: &Due| matches!(due, Due::Query(_) | Due::Sync | Due::Binding);
        if self.due.iter().take(sent).rev().any(answers_by_itself) {
            return Speaks::Server;
        }
        // Within half a message nobody can ask.
        if is_last_whole { Speaks::ServerIfAsked } else { Speaks::Client }
    }
}
