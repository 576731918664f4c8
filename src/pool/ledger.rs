//! What a server still owes: one entry per message sent, settled by its answers in order. Pure.
//!
//! It is how the proxy knows that a transaction is over, which answers are its own to swallow, and which
//! messages the server skipped after an error (PostgreSQL documentation, 53.2.3 "Extended Query").

use std::collections::VecDeque;
use std::sync::Arc;

use super::due::{Deallocated, Due, Said, Skipped, Special, Unnamed};
use super::statement::Statement;
use super::switch::Switch;
use crate::tenancy::stakes::Stake;
use crate::tenancy::text::Deallocates;
use crate::wire::tag;
use crate::wire::violation::Violation;

mod quiet;
mod results;
mod speaks;
mod staked;

pub use speaks::Speaks;

/// What an answer means for who sees it.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub enum Verdict {
    /// The client's.
    Pass,
    /// The proxy's.
    Swallow,
}

/// Proof that a transaction is over: ReadyForQuery said idle and nothing is outstanding. Only [`Ledger::over`] makes one.
#[derive(Debug)]
pub struct TransactionOver(());

/// The state in the last ReadyForQuery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    Idle,
    InTransaction,
}

/// Everything outstanding on one server.
#[derive(Debug)]
pub struct Ledger {
    due: VecDeque<Due>,
    status: Status,
    /// Answers came since the last ReadyForQuery (a Flush was answered), so a Sync is still to come.
    open_batch: bool,
    /// Something was executed since the last ReadyForQuery, which may have begun a transaction.
    has_executed: bool,
    /// Outstanding messages that give or take a client's statement name.
    naming: usize,
    /// Outstanding messages that put a statement on the server.
    placing: usize,
    /// Bytes of the outstanding unnamed statements.
    texts: usize,
    /// What became of the client's unnamed statement since it was last asked for.
    unnamed: Option<Unnamed>,
    /// Which unnamed statement the server has was settled by an answer since this was last asked.
    has_settled_unnamed: bool,
    /// The last error skipped a message that was to settle it.
    has_lost_unnamed: bool,
    /// The server waits for copy data, and the end of it was not sent.
    is_copying: bool,
    /// The server has begun to read a COPY.
    has_copied: bool,
    /// Syncs that the COPY now running swallows, if it comes to read them.
    swallowed: usize,
    /// Answers to such Syncs that may come after all, because the COPY failed before it read them.
    strays: usize,
    /// Whether the client's first batch is one with its binding.
    switch: Switch,
    /// Something other than inert texts was sent since the last cleaning.
    is_loud: bool,
    /// What may have been committed of what is outstanding.
    stake: Stake,
}

impl Default for Ledger {
    fn default() -> Self {
        Self {
            due: VecDeque::with_capacity(8),
            status: Status::Idle,
            open_batch: false,
            has_executed: false,
            naming: 0,
            placing: 0,
            texts: 0,
            unnamed: None,
            has_settled_unnamed: false,
            has_lost_unnamed: false,
            is_copying: false,
            has_copied: false,
            swallowed: 0,
            strays: 0,
            switch: Switch::No,
            is_loud: false,
            stake: Stake::Nothing,
        }
    }
}

impl Ledger {
    /// A message left for the server.
    pub fn push(&mut self, due: Due) {
        if self.is_copying && matches!(due, Due::Sync) {
            // The COPY ignores it.
            self.swallowed += 1;
            return;
        }
        self.open_batch |= due.opens_batch();
        self.is_copying &= !matches!(due, Due::CopyEnd);
        self.has_executed |= matches!(due, Due::Query(_) | Due::Execute(_));
        self.switch.sent(&due);
        self.is_loud = self.is_loud || !due.is_inert();
        self.naming += usize::from(due.names());
        self.placing += usize::from(due.places());
        self.texts += due.text_length();
        self.due.push_back(due);
    }

    /// Whether the binding is one batch with the client's first, and how far that is.
    pub fn switch(&self) -> Switch {
        self.switch
    }

    /// The server is cleaned, or about to be.
    pub fn is_cleaned(&mut self) {
        (self.switch, self.is_loud) = (Switch::No, false);
    }

    /// Bytes of the outstanding unnamed statements.
    pub fn texts(&self) -> usize {
        self.texts
    }

    /// What became of the client's unnamed statement, if anything did.
    pub fn take_unnamed(&mut self) -> Option<Unnamed> {
        self.unnamed.take()
    }

    /// How many messages are outstanding.
    pub fn outstanding(&self) -> usize {
        self.due.len()
    }

    /// Whether what a client's statement name means depends on a message of an earlier batch that may still fail.
    pub fn is_uncertain(&self, name: &[u8]) -> bool {
        if name.is_empty() {
            return self.is_unnamed_uncertain();
        }
        if self.naming == 0 {
            return false;
        }
        let mut in_earlier_batches = self.due.iter().rev().skip_while(|due| !due.ends_batch());
        in_earlier_batches.any(|due| due.concerns(name))
    }

    /// The same of all that a DEALLOCATE drops.
    pub fn is_uncertain_what(&self, dropped: &Deallocates) -> bool {
        match dropped {
            Deallocates::One(name) => self.is_uncertain(name),
            Deallocates::All => {
                self.naming > 0 && self.due.iter().rev().skip_while(|due| !due.ends_batch()).any(Due::names)
            }
        }
    }

    /// Whether an earlier batch that puts a statement on the server is unanswered.
    pub fn is_batch_before(&self) -> bool {
        self.placing > 0 && self.due.iter().any(Due::ends_batch)
    }

    /// Whether the server will have a statement depends on a message of an earlier batch that may still fail.
    pub fn is_placing(&self, id: u64) -> bool {
        if self.placing == 0 {
            return false;
        }
        self.due.iter().rev().skip_while(|due| !due.ends_batch()).any(|due| due.moves(id))
    }

    /// The same for the unnamed statement, which a simple query drops too.
    fn is_unnamed_uncertain(&self) -> bool {
        let mut is_earlier = false;
        for due in self.due.iter().rev() {
            match due {
                Due::Sync => is_earlier = true,
                due if due.settles_unnamed() => return is_earlier,
                _ => {}
            }
        }
        false
    }

    fn pop(&mut self) -> Option<Due> {
        let due = self.due.pop_front()?;
        self.naming -= usize::from(due.names());
        self.placing -= usize::from(due.places());
        self.texts -= due.text_length();
        Some(due)
    }

    /// Whether a message that is sent now meets no transaction, and nothing before it that may fail.
    pub fn is_at_start(&self) -> bool {
        self.status == Status::Idle && self.due.iter().all(Due::is_binding)
    }

    /// Whether what is executed now is certain to begin outside a transaction block.
    pub fn is_outside_transaction(&self) -> bool {
        self.status == Status::Idle && !self.has_executed
    }

    /// Whether the server was in a transaction block when it last said so.
    pub fn is_in_transaction(&self) -> bool {
        self.status == Status::InTransaction
    }

    /// Whether an answer is due.
    pub fn is_waiting(&self) -> bool {
        !self.due.is_empty()
    }

    /// Whether an error may come: something is outstanding, or a batch is open.
    pub fn may_fail(&self) -> bool {
        self.is_waiting() || self.open_batch
    }

    /// A command of the client's is complete; of a COPY from it, the end was read.
    pub fn copied(&mut self, command_tag: &[u8]) {
        let is_copy = self.has_copied && command_tag.starts_with(b"COPY");
        if is_copy && matches!(self.due.get(1), Some(Due::CopyEnd)) {
            self.due.remove(1);
        }
        self.has_copied &= !is_copy;
    }

    /// Whether the proxy's own binding is not yet acknowledged.
    pub fn is_binding(&self) -> bool {
        self.due.front().is_some_and(Due::is_binding)
    }

    /// Whether the transaction is over: the only place where the proof is made.
    pub fn over(&self) -> Option<TransactionOver> {
        let over = self.due.is_empty() && self.status == Status::Idle && !self.open_batch;
        over.then_some(TransactionOver(()))
    }

    /// What the proxy must say now, before anything else that comes from the server.
    pub fn to_say(&mut self) -> Option<Said> {
        loop {
            match self.due.front() {
                Some(Due::Said(_)) => match self.pop() {
                    Some(Due::Said(said)) => return Some(said),
                    _ => return None,
                },
                Some(Due::CopyEnd) => drop(self.pop()),
                _ => return None,
            }
        }
    }

    /// ReadyForQuery arrived.
    ///
    /// # Errors
    /// None was due: the two sides no longer agree, and nothing further can be trusted.
    pub fn ready(&mut self, status: u8) -> Result<Verdict, Violation> {
        self.has_settled_unnamed |= self.due.front().is_some_and(Due::settles_unnamed);
        let verdict = match self.due.front() {
            Some(Due::Binding) => Verdict::Swallow,
            Some(Due::Query(_)) => {
                // A simple query drops the unnamed statement.
                self.unnamed = Some(None);
                Verdict::Pass
            }
            Some(Due::Sync) => Verdict::Pass,
            None if self.strays > 0 => {
                self.strays -= 1;
                return Ok(Verdict::Swallow);
            }
            _ => return Err(Violation::Unexpected(tag::READY_FOR_QUERY)),
        };
        self.status = match status {
            b'I' => Status::Idle,
            b'T' | b'E' => Status::InTransaction,
            _ => return Err(Violation::Malformed(tag::READY_FOR_QUERY)),
        };
        self.pop();
        if self.due.is_empty() {
            self.stake = Stake::Nothing;
        }
        self.switch.answered();
        self.open_batch = self.due.iter().any(Due::opens_batch);
        self.has_executed = self.due.iter().any(|due| matches!(due, Due::Query(_) | Due::Execute(_)));
        self.swallowed = 0;
        (self.is_copying, self.has_copied) = (false, false);
        Ok(verdict)
    }

    /// An answer to one message arrived: settles the front entry if this is what it waits for.
    /// Reports the statement that the server has from now on.
    ///
    /// # Errors
    /// An answer that nothing asked for.
    pub fn answer(&mut self, kind: u8) -> Result<(Verdict, Option<Arc<Statement>>), Violation> {
        let front = match self.due.front_mut() {
            Some(Due::Binding) => return Ok((Verdict::Swallow, None)),
            Some(Due::Switch(left)) => {
                *left -= usize::from(kind == tag::COMMAND_COMPLETE && *left > 0);
                if *left == 0 {
                    self.pop();
                }
                return Ok((Verdict::Swallow, None));
            }
            // Answers inside a simple query are its own; ReadyForQuery ends it.
            Some(Due::Query(_)) => return Ok((self.within_query(kind), None)),
            Some(front) => &*front,
            None => return Err(Violation::Unexpected(kind)),
        };
        let settles = match front {
            Due::Parse { .. }
            | Due::ParseAgain { .. }
            | Due::ParseAsIs
            | Due::ParseUnnamed(_)
            | Due::Ensure(_) => kind == tag::PARSE_COMPLETE,
            Due::Unnamed | Due::Aside => matches!(kind, tag::PARSE_COMPLETE | tag::CLOSE_COMPLETE),
            Due::TowardsRebind => {
                matches!(kind, tag::PARSE_COMPLETE | tag::CLOSE_COMPLETE | tag::BIND_COMPLETE)
            }
            Due::Rebind(_) => kind == tag::COMMAND_COMPLETE,
            Due::Bind(_) => kind == tag::BIND_COMPLETE,
            Due::Describe(_) | Due::Verify(..) => matches!(kind, tag::ROW_DESCRIPTION | tag::NO_DATA),
            Due::Execute(_) => {
                matches!(kind, tag::COMMAND_COMPLETE | tag::EMPTY_QUERY_RESPONSE | tag::PORTAL_SUSPENDED)
            }
            Due::Close | Due::CloseUnnamed => kind == tag::CLOSE_COMPLETE,
            _ => false,
        };
        if !settles {
            return Err(Violation::Unexpected(kind));
        }
        self.has_settled_unnamed |= front.settles_unnamed();
        Ok(match self.pop() {
            Some(Due::Ensure(statement)) => (Verdict::Swallow, Some(statement)),
            Some(Due::Unnamed | Due::Aside | Due::Verify(..) | Due::TowardsRebind) => {
                (Verdict::Swallow, None)
            }
            Some(Due::Rebind(answer)) => {
                self.texts += answer.len();
                self.due.push_front(Due::Said(Said::Own(answer)));
                (Verdict::Swallow, None)
            }
            Some(Due::Parse { statement, .. }) => (Verdict::Pass, Some(statement)),
            Some(Due::ParseUnnamed(text)) => {
                self.unnamed = Some(text);
                (Verdict::Pass, None)
            }
            Some(Due::CloseUnnamed) => {
                self.unnamed = Some(None);
                (Verdict::Pass, None)
            }
            _ => (Verdict::Pass, None),
        })
    }

    /// What the client gets in place of an ErrorResponse, if the proxy provoked it.
    pub fn provoked(&mut self) -> Option<Box<[u8]>> {
        match self.due.front_mut() {
            Some(Due::Provoked(report)) => Some(std::mem::take(report)),
            Some(Due::Query(Some(special))) => match special.as_mut() {
                Special::Refused(report) if !report.is_empty() => Some(std::mem::take(report)),
                _ => None,
            },
            _ => None,
        }
    }

    /// Whether the next CommandComplete belongs to what the proxy put before a client's DEALLOCATE; after this it is
    /// the client's.
    pub fn take_rewritten(&mut self) -> bool {
        match self.due.front_mut() {
            Some(Due::Query(Some(special))) => match special.as_mut() {
                Special::Deallocates { is_rewritten, .. } => std::mem::take(is_rewritten),
                Special::Refused(_) | Special::Batch(_) => false,
            },
            _ => false,
        }
    }

    /// Whether what the message now being answered drops was taken account of when it was sent.
    pub fn is_deallocating(&self) -> Option<&Deallocated> {
        self.due.front()?.deallocated().filter(|closed| closed.all || !closed.names.is_empty())
    }

    /// The ErrorResponse that the proxy provoked arrived: nobody else's business, but the rest of its batch is skipped.
    pub fn refuse(&mut self, skipped: &mut Vec<Skipped>) -> Verdict {
        self.error(skipped);
        Verdict::Swallow
    }

    /// Whether an answer settled since the last call which unnamed statement the server has.
    pub fn take_settled_unnamed(&mut self) -> bool {
        std::mem::take(&mut self.has_settled_unnamed)
    }

    /// Whether the last error left it open which unnamed statement the server has.
    pub fn has_lost_unnamed(&self) -> bool {
        self.has_lost_unnamed
    }

    /// An ErrorResponse arrived: in the extended protocol the server skips everything up to the next Sync, a Query
    /// included; an error of a Query or of a Sync itself skips nothing.
    pub fn error(&mut self, skipped: &mut Vec<Skipped>) -> Verdict {
        if self.is_binding() {
            return Verdict::Swallow;
        }
        self.switch.failed();
        self.strays += std::mem::take(&mut self.swallowed);
        (self.is_copying, self.has_copied) = (false, false);
        self.has_lost_unnamed = false;
        match self.due.front_mut() {
            Some(query @ Due::Query(_)) => {
                self.naming -= usize::from(query.names());
                self.placing -= usize::from(query.places());
                query.take_deallocated(skipped);
                self.take_held(); // it was not committed
                return Verdict::Pass;
            }
            Some(Due::Sync) => return Verdict::Pass,
            _ => {}
        }
        self.has_lost_unnamed = matches!(self.due.front(), Some(Due::Unnamed));
        if let Some(Due::ParseUnnamed(_)) = self.due.front() {
            self.unnamed = Some(None); // dropped before the new one was found to be wrong
        }
        let others = self.due.iter().take_while(|due| !matches!(due, Due::Sync)).skip(1);
        self.has_lost_unnamed |= others.into_iter().any(Due::settles_unnamed);
        // A later batch is not skipped, and what it does to it will be answered.
        let mut later = self.due.iter().skip_while(|due| !matches!(due, Due::Sync));
        self.has_lost_unnamed &= !later.any(Due::settles_unnamed);
        // Outside all messages it is PostgreSQL's own affair: a FATAL before it closes.
        let mut skips_on = !self.due.is_empty() || self.open_batch;
        while let Some(front) = self.due.front() {
            if matches!(front, Due::Sync) {
                skips_on = false;
                break;
            }
            match self.pop() {
                Some(Due::Parse { name, statement }) => {
                    skipped.push(Skipped::NotOnServer(statement.id));
                    skipped.push(Skipped::Parse(name));
                }
                Some(Due::ParseAgain { name }) => skipped.push(Skipped::Parse(name)),
                Some(Due::Ensure(statement)) => skipped.push(Skipped::NotOnServer(statement.id)),
                Some(Due::Said(Said::ParseComplete { name })) => skipped.push(Skipped::Parse(name)),
                Some(Due::Said(Said::CloseComplete { closed: Some((name, statement)) })) => {
                    skipped.push(Skipped::Close(name, statement));
                }
                Some(mut other) => other.take_deallocated(skipped),
                None => {}
            }
        }
        if skips_on {
            skipped.push(Skipped::ToSync);
        }
        Verdict::Pass
    }

    /// CopyInResponse arrived: the server ignores every Sync that was sent before the end of the copy data.
    ///
    /// # Errors
    /// Other messages were pipelined behind the COPY; the server will take one of them for copy data that is broken,
    /// and which answers then belong to what cannot be known.
    pub fn copy_in(&mut self) -> Result<Verdict, Violation> {
        if self.is_binding() {
            return Err(Violation::Unexpected(tag::COPY_IN_RESPONSE));
        }
        if !matches!(self.due.front(), Some(Due::Query(_) | Due::Execute(_))) {
            return Err(Violation::Unexpected(tag::COPY_IN_RESPONSE));
        }
        let end = self.due.iter().position(|due| matches!(due, Due::CopyEnd)).unwrap_or(self.due.len());
        if self.due.iter().take(end).skip(1).any(|due| !matches!(due, Due::Sync)) {
            return Err(Violation::Unexpected(tag::COPY_IN_RESPONSE));
        }
        self.is_copying = end == self.due.len();
        self.has_copied = true;
        self.swallowed += end.saturating_sub(1);
        self.due.drain(1..end);
        Ok(Verdict::Pass)
    }
}

#[cfg(test)]
#[path = "ledger/tests.rs"]
mod tests;
