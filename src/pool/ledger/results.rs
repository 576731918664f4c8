//! Which statement the next answer is of, and what it tells of its result.

use super::Ledger;
use crate::pool::due::Due;
use crate::pool::statement::Shape;

impl Ledger {
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
}
