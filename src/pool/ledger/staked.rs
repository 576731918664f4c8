//! Whether what was sent may have been committed when no answer comes any more.

use super::{Ledger, Status};
use crate::pool::due::Due;
use crate::tenancy::stakes::Stake;

impl Ledger {
    /// Something is sent with which so much is at stake.
    pub fn stakes(&mut self, stake: Stake) {
        self.stake = self.stake.max(stake);
    }

    /// Whether a transaction may have been committed of whose outcome nothing was heard.
    pub fn may_have_committed(&self) -> bool {
        let is_sent = |ends: fn(&Due) -> bool| self.due.iter().any(ends);
        match (self.status, self.stake) {
            (_, Stake::Nothing) | (Status::InTransaction, Stake::Statement) => false,
            // A statement outside of a block is committed by the Sync behind it, or at the end of its Query.
            (Status::Idle, Stake::Statement) => is_sent(|due| matches!(due, Due::Query(_) | Due::Sync)),
            (_, Stake::Block) => is_sent(|due| matches!(due, Due::Query(_) | Due::Execute(_) | Due::Sync)),
        }
    }
}
