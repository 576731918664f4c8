//! What a client is told of its last transaction, where its connection ends before the answer comes.

use super::Turn;
use crate::wire::report::{Report, Sqlstate};

/// What a client is told when its server is gone.
pub const SERVER_GONE: &str = "the connection to PostgreSQL was lost";

/// What a client is told of a transaction whose end was sent and not answered.
const UNKNOWN: &str =
    "Whether the last transaction was committed is not known: it was sent, and no answer came.";

/// And what it is to do.
const CHECK: &str = "Connect again and check whether it took effect before repeating it.";

impl Turn<'_> {
    /// The server is gone.
    pub(super) fn server_gone(&mut self) -> Report {
        if self.may_have_committed() {
            return Report::new(Sqlstate::OUTCOME_UNKNOWN, SERVER_GONE).detail(UNKNOWN).hint(CHECK);
        }
        Report::new(Sqlstate::CONNECTION_FAILURE, SERVER_GONE)
            .detail("The transaction was rolled back.")
            .hint("Connect again and repeat it.")
    }

    /// The proxy itself ends the connection, and why. What is at PostgreSQL by then cannot be taken back: that matters more to
    /// the client than the reason.
    pub(super) fn ends(&mut self, report: Report) -> Report {
        if !self.may_have_committed() {
            return report;
        }
        let detail = report.detail.map_or(UNKNOWN.to_owned(), |detail| format!("{UNKNOWN} {detail}"));
        Report::new(Sqlstate::OUTCOME_UNKNOWN, report.message).detail(detail).hint(CHECK)
    }

    fn may_have_committed(&mut self) -> bool {
        // PostgreSQL begins nothing before the end of its message.
        let is_last_whole = self.client.requests.body.is_none();
        self.server.ledger().may_have_committed(is_last_whole)
    }
}
