//! What answers and failures tell of statements.

use super::Ledger;
use crate::pool::due::{Due, Skipped};
use crate::pool::statement::Shape;
use crate::pool::switch::Switch;

impl Ledger {
    /// Whether the next answer is to the proxy's own switch of contexts within a transaction.
    pub fn is_rebinding(&self) -> bool {
        matches!(self.due.front(), Some(Due::TowardsRebind | Due::Rebind(_)))
    }

    /// Whether what was sent last ends a batch: nothing of one is outstanding whose end is still to come.
    pub fn is_between_batches(&self) -> bool {
        matches!(self.due.back(), None | Some(Due::Sync | Due::Query(_))) && !self.is_copying
    }

    /// Whether the server takes copy data, and nothing else.
    pub fn is_in_copy(&self) -> bool {
        self.is_copying
    }

    /// Whether a statement's result is being looked at.
    pub fn is_verifying(&self, id: u64) -> bool {
        self.due.iter().any(|due| matches!(due, Due::Verify(statement, _) if statement.id == id))
    }

    /// Whether the next answer is to a Describe of the proxy's own.
    pub fn is_own_describe(&self) -> bool {
        matches!(self.due.front(), Some(Due::Verify(..)))
    }

    /// Whether the next answer tells of the result of a shared statement.
    pub fn is_describing(&self) -> bool {
        matches!(self.due.front(), Some(Due::Verify(..) | Due::Describe(Some(_))))
    }

    /// What RowDescription or NoData tells of the result of a shared statement. The statement, if clients were told of
    /// another one.
    pub fn described(&self, shape: impl FnOnce() -> Shape) -> Option<u64> {
        match self.due.front()? {
            Due::Describe(Some(statement)) => {
                statement.learn(shape());
                None
            }
            Due::Verify(statement, generation) => {
                (!statement.verify(shape(), *generation)).then_some(statement.id)
            }
            _ => None,
        }
    }

    /// Statements that outstanding messages put on the server.
    pub fn placed(&self) -> impl Iterator<Item = u64> {
        self.due.iter().filter_map(Due::placed)
    }

    /// The shared statement that the message now being answered is of.
    pub fn statement(&self) -> Option<u64> {
        match self.due.front() {
            Some(Due::Bind(id)) => *id,
            Some(Due::Describe(statement)) => Some(statement.as_ref()?.id),
            _ => None,
        }
    }

    /// The binding failed that the client's first batch depends on: all of that was skipped. Whether all of it had been
    /// sent, and nothing else.
    pub fn skip_switched(&mut self, skipped: &mut Vec<Skipped>) -> bool {
        let is_whole = self.switch == Switch::Sent && matches!(self.due.front(), Some(Due::Switch(_)));
        if is_whole {
            self.pop();
            self.error(skipped);
        }
        is_whole
    }
}
