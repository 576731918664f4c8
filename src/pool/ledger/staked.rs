//! Whether what was sent may have been committed when no answer comes any more.

use super::{Ledger, Status};
use crate::pool::due::Due;
use crate::tenancy::stakes::Stake;

impl Ledger {
    /// Something is sent with which so much is at stake.
    pub fn stakes(&mut self, stake: Stake) {
        self.stake = self.stake.max(stake);
    }

    /// Whether a transaction may have been committed of whose outcome nothing was heard. `is_last_whole`: all of the last
    /// message was sent.
    pub fn may_have_committed(&self, is_last_whole: bool) -> bool {
        let sent = self.due.len().saturating_sub(usize::from(!is_last_whole));
        let is_sent = |ends: fn(&Due) -> bool| self.due.iter().take(sent).any(ends);
        match (self.status, self.stake) {
            // A COPY is not over before its client says so.
            (_, Stake::Statement) if self.is_copying => false,
            (_, Stake::Nothing) | (Status::InTransaction, Stake::Statement) => false,
            // A statement outside of a block is committed by the Sync behind it, or at the end of its Query.
            (Status::Idle, Stake::Statement) => is_sent(|due| matches!(due, Due::Query(_) | Due::Sync)),
            (_, Stake::Block) => is_sent(|due| matches!(due, Due::Query(_) | Due::Execute(_) | Due::Sync)),
        }
    }
}
