//! What a server still owes: one entry per message sent, settled by its answers in order. Pure.
//!
//! It is how the proxy knows that a transaction is over, which answers are its own to swallow, and which
//! messages the server skipped after an error (PostgreSQL documentation, 53.2.3 "Extended Query").

use std::collections::VecDeque;
use std::sync::Arc;

use super::statement::Statement;
use crate::wire::tag;
use crate::wire::violation::Violation;

/// Text and types of an unnamed statement; none if there is none, or it cannot be remembered.
pub type Unnamed = Option<Arc<[u8]>>;

/// A message whose answer is due.
#[derive(Debug)]
pub enum Due {
    /// The proxy's binding or cleaning; everything up to its ReadyForQuery is the proxy's own business.
    Binding,
    /// A simple query: answers up to ReadyForQuery.
    Query,
    /// Sync: ReadyForQuery.
    Sync,
    /// A client's Parse of a name that was passed on: ParseComplete. Takes back the client's name for it if it fails.
    Parse {
        /// The client's name.
        name: Box<[u8]>,
        /// What the server now has.
        statement: Arc<Statement>,
    },
    /// A client's Parse of what the server has already, passed on under another name: ParseComplete.
    ParseAgain {
        /// The client's name, taken back if it fails.
        name: Box<[u8]>,
    },
    /// A client's Parse of the unnamed statement: ParseComplete. Text and types, if they are short enough to be
    /// remembered.
    ParseUnnamed(Unnamed),
    /// A Parse that the proxy added: its ParseComplete is swallowed.
    Ensure(Arc<Statement>),
    /// A Parse or Close of the unnamed statement that the proxy added: its answer is swallowed.
    Unnamed,
    /// A Parse or Close of a name of the proxy's own: its answer is swallowed.
    Aside,
    /// Bind: BindComplete.
    Bind,
    /// Describe: RowDescription or NoData.
    Describe,
    /// Execute: CommandComplete, EmptyQueryResponse or PortalSuspended.
    Execute,
    /// Close of a portal: CloseComplete.
    Close,
    /// Close of the unnamed statement: CloseComplete.
    CloseUnnamed,
    /// CopyDone or CopyFail: no answer of its own; marks which Syncs a COPY swallowed.
    CopyEnd,
    /// An answer that the proxy gives itself when its turn comes.
    Said(Said),
    /// A message that the server refuses, so that the transaction fails as it would on PostgreSQL itself; the
    /// ErrorResponse that the client gets in place of the server's.
    Provoked(Box<[u8]>),
}

impl Due {
    /// Whether a Sync must follow before the server is at rest again.
    fn opens_batch(&self) -> bool {
        !matches!(self, Due::Query | Due::Sync | Due::Binding | Due::CopyEnd)
    }

    /// The statement that it puts on the server.
    fn places(&self) -> Option<u64> {
        match self {
            Due::Parse { statement, .. } | Due::Ensure(statement) => Some(statement.id),
            _ => None,
        }
    }

    /// Whether the unnamed statement is another one, or none, afterwards.
    fn settles_unnamed(&self) -> bool {
        matches!(self, Due::ParseUnnamed(_) | Due::CloseUnnamed | Due::Unnamed | Due::Query)
    }

    fn text_length(&self) -> usize {
        match self {
            Due::ParseUnnamed(Some(text)) => text.len(),
            _ => 0,
        }
    }

    /// The client's statement name that it gives or takes.
    fn name(&self) -> Option<&[u8]> {
        match self {
            Due::Parse { name, .. }
            | Due::ParseAgain { name }
            | Due::Said(Said::ParseComplete { name } | Said::CloseComplete { closed: Some((name, _)) }) => {
                Some(name)
            }
            _ => None,
        }
    }
}

/// Answers that the proxy gives in the server's place, in order.
#[derive(Debug)]
pub enum Said {
    /// The statement is on this server already.
    ParseComplete {
        /// The client's name, taken back if the message turns out to be skipped.
        name: Box<[u8]>,
    },
    /// A statement's Close stays in the proxy, where its name lives.
    CloseComplete {
        /// What the client closed, put back if the message turns out to be skipped.
        closed: Option<(Box<[u8]>, Arc<Statement>)>,
    },
}

/// What an answer means for who sees it.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub enum Verdict {
    /// The client's.
    Pass,
    /// The proxy's.
    Swallow,
}

/// A message that the server skipped after an error.
#[derive(Debug)]
pub enum Skipped {
    /// The client's name for a statement that was not made.
    Parse(Box<[u8]>),
    /// A Close that did not happen.
    Close(Box<[u8]>, Arc<Statement>),
    /// A statement that the server does not have after all.
    NotOnServer(u64),
    /// Whatever is still to come before the next Sync.
    ToSync,
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
    /// Syncs that the COPY now running swallows, if it comes to read them.
    swallowed: usize,
    /// Answers to such Syncs that may come after all, because the COPY failed before it read them.
    strays: usize,
}

impl Default for Ledger {
    fn default() -> Self {
        Self {
            due: VecDeque::with_capacity(8),
            status: Status::Idle,
            open_batch: false,
            naming: 0,
            placing: 0,
            texts: 0,
            unnamed: None,
            has_settled_unnamed: false,
            has_lost_unnamed: false,
            swallowed: 0,
            strays: 0,
        }
    }
}

impl Ledger {
    /// A message left for the server.
    pub fn push(&mut self, due: Due) {
        self.open_batch |= due.opens_batch();
        self.naming += usize::from(due.name().is_some());
        self.placing += usize::from(due.places().is_some());
        self.texts += due.text_length();
        self.due.push_back(due);
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
        let in_earlier_batches = self.due.iter().rev().skip_while(|due| !matches!(due, Due::Sync));
        in_earlier_batches.filter_map(Due::name).any(|uncertain| uncertain == name)
    }

    /// Whether an earlier batch that puts a statement on the server is unanswered.
    pub fn is_batch_before(&self) -> bool {
        self.placing > 0 && self.due.iter().any(|due| matches!(due, Due::Sync))
    }

    /// Whether the server will have a statement depends on a message of an earlier batch that may still fail.
    pub fn is_placing(&self, id: u64) -> bool {
        if self.placing == 0 {
            return false;
        }
        let in_earlier_batches = self.due.iter().rev().skip_while(|due| !matches!(due, Due::Sync));
        in_earlier_batches.filter_map(Due::places).any(|placed| placed == id)
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
        self.naming -= usize::from(due.name().is_some());
        self.placing -= usize::from(due.places().is_some());
        self.texts -= due.text_length();
        Some(due)
    }

    /// Whether a message that is sent now meets no transaction, and nothing before it that may fail.
    pub fn is_at_start(&self) -> bool {
        self.status == Status::Idle && self.due.iter().all(|due| matches!(due, Due::Binding))
    }

    /// Whether an answer is due.
    pub fn is_waiting(&self) -> bool {
        !self.due.is_empty()
    }

    /// Whether the proxy's own binding is not yet acknowledged.
    pub fn is_binding(&self) -> bool {
        matches!(self.due.front(), Some(Due::Binding))
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
            Some(Due::Query) => {
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
        self.open_batch = self.due.iter().any(Due::opens_batch);
        self.swallowed = 0;
        Ok(verdict)
    }

    /// An answer to one message arrived: settles the front entry if this is what it waits for.
    /// Reports the statement that the server has from now on.
    ///
    /// # Errors
    /// An answer that nothing asked for.
    pub fn answer(&mut self, kind: u8) -> Result<(Verdict, Option<Arc<Statement>>), Violation> {
        let front = match self.due.front() {
            Some(Due::Binding) => return Ok((Verdict::Swallow, None)),
            // Answers inside a simple query are its own; ReadyForQuery ends it.
            Some(Due::Query) => return Ok((Verdict::Pass, None)),
            Some(front) => front,
            None => return Err(Violation::Unexpected(kind)),
        };
        let settles = match front {
            Due::Parse { .. } | Due::ParseAgain { .. } | Due::ParseUnnamed(_) | Due::Ensure(_) => {
                kind == tag::PARSE_COMPLETE
            }
            Due::Unnamed | Due::Aside => matches!(kind, tag::PARSE_COMPLETE | tag::CLOSE_COMPLETE),
            Due::Bind => kind == tag::BIND_COMPLETE,
            Due::Describe => matches!(kind, tag::ROW_DESCRIPTION | tag::NO_DATA),
            Due::Execute => {
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
            Some(Due::Unnamed | Due::Aside) => (Verdict::Swallow, None),
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
            _ => None,
        }
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

    /// Whether more ReadyForQuery may come than are due: the server must not serve anyone else.
    pub fn has_strays(&self) -> bool {
        self.strays > 0
    }

    /// An ErrorResponse arrived: in the extended protocol the server skips everything up to the next Sync, a Query
    /// included; an error of a Query or of a Sync itself skips nothing.
    pub fn error(&mut self, skipped: &mut Vec<Skipped>) -> Verdict {
        if self.is_binding() {
            return Verdict::Swallow;
        }
        self.strays += std::mem::take(&mut self.swallowed);
        self.has_lost_unnamed = false;
        if matches!(self.due.front(), Some(Due::Query | Due::Sync)) {
            return Verdict::Pass;
        }
        self.has_lost_unnamed = matches!(self.due.front(), Some(Due::Unnamed));
        if let Some(Due::ParseUnnamed(_)) = self.due.front() {
            self.unnamed = Some(None); // dropped before the new one was found to be wrong
        }
        let others = self.due.iter().take_while(|due| !matches!(due, Due::Sync)).skip(1);
        self.has_lost_unnamed |= others.into_iter().any(Due::settles_unnamed);
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
                _ => {}
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
        if !matches!(self.due.front(), Some(Due::Query | Due::Execute)) {
            return Err(Violation::Unexpected(tag::COPY_IN_RESPONSE));
        }
        let end = self.due.iter().position(|due| matches!(due, Due::CopyEnd)).unwrap_or(self.due.len());
        if self.due.iter().take(end).skip(1).any(|due| !matches!(due, Due::Sync)) {
            return Err(Violation::Unexpected(tag::COPY_IN_RESPONSE));
        }
        self.swallowed += end.saturating_sub(1);
        self.due.drain(1..end);
        Ok(Verdict::Pass)
    }
}

#[cfg(test)]
#[path = "ledger/tests.rs"]
mod tests;
