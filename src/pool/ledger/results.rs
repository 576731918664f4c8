//! What answers and failures tell of statements.

use super::Ledger;
use crate::pool::due::{Due, Skipped, Special};
use crate::pool::ledger::Verdict;
use crate::pool::statement::Shape;
use crate::pool::switch::Switch;
use crate::wire::tag;

impl Ledger {
    /// Whether the next answer is to the proxy's own switch of contexts within a transaction.
    pub fn is_rebinding(&self) -> bool {
        matches!(self.due.front(), Some(Due::TowardsRebind | Due::Rebind(_)))
    }

    /// The binding is a batch of its own with so many CommandComplete, behind which the client's BEGIN goes unanswered.
    pub fn goes_ahead(&mut self, completions: usize) {
        self.push(Due::Switch(completions));
        self.push(Due::Binding);
        self.switch = Switch::Ahead;
    }

    /// A command's completion arrived: it is held back where a simple query was sent as a batch of the extended protocol.
    pub fn hold_back(&mut self, frame: &[u8]) -> Verdict {
        let Some(held) = self.held() else { return Verdict::Pass };
        held.extend_from_slice(frame);
        Verdict::Swallow
    }

    /// The bytes that are held back, if a simple query was sent so.
    fn held(&mut self) -> Option<&mut Vec<u8>> {
        match self.due.front_mut() {
            Some(Due::Query(Some(special))) => match special.as_mut() {
                Special::Batch(held) => Some(held),
                _ => None,
            },
            _ => None,
        }
    }

    /// The completion of a simple query that was held back, if there is one.
    pub fn take_held(&mut self) -> Option<Vec<u8>> {
        self.held().map(std::mem::take).filter(|held| !held.is_empty())
    }

    /// Whose an answer within a simple query is.
    pub(super) fn within_query(&mut self, kind: u8) -> Verdict {
        let is_of_batches =
            matches!(kind, tag::PARSE_COMPLETE | tag::BIND_COMPLETE | tag::NO_DATA | tag::CLOSE_COMPLETE);
        if is_of_batches && self.held().is_some() { Verdict::Swallow } else { Verdict::Pass }
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

    /// Whether the next answer is to an Execute of the client's.
    pub fn is_executing(&self) -> bool {
        matches!(self.due.front(), Some(Due::Execute(_)))
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

    /// The binding failed that the client's first batch depends on: all of that was skipped, or did no more than begin a
    /// transaction. Whether all of it had been sent, and nothing else.
    pub fn skip_switched(&mut self, skipped: &mut Vec<Skipped>) -> bool {
        let is_whole = matches!(
            (self.switch, self.due.front()),
            (Switch::Sent, Some(Due::Switch(_))) | (Switch::Followed, Some(Due::Switch(_) | Due::Binding))
        );
        if is_whole {
            while self.is_binding() {
                self.pop();
            }
            self.error(skipped);
        }
        is_whole
    }
}
