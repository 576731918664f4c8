//! What a message sent to a server waits for: the entries of the [`Ledger`](super::ledger::Ledger).

use std::collections::HashSet;
use std::sync::Arc;

use super::statement::Statement;
use crate::tenancy::inert;

/// Text and types of an unnamed statement; none if there is none, or it cannot be remembered.
pub type Unnamed = Option<Arc<[u8]>>;

/// A message whose answer is due.
#[derive(Debug)]
pub enum Due {
    /// The proxy's binding or cleaning; everything up to its ReadyForQuery is the proxy's own business.
    Binding,
    /// A cleaning and binding that are one batch with what the client sends: so many CommandComplete are the proxy's own
    /// business, and everything before the last of them.
    Switch(usize),
    /// A simple query: answers up to ReadyForQuery.
    Query(Option<Box<Special>>),
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
    /// A step towards another context within a transaction: its answer is swallowed.
    TowardsRebind,
    /// The execution that puts the server under another context within a transaction: a row is swallowed, and the client
    /// gets this in place of its CommandComplete.
    Rebind(Box<[u8]>),
    /// A client's Parse that passed as it is: ParseComplete.
    ParseAsIs,
    /// Bind: BindComplete. Of which shared statement, if it is of one.
    Bind(Option<u64>),
    /// Describe: RowDescription or NoData. The shared statement, if it is of one.
    Describe(Option<Arc<Statement>>),
    /// A Describe that the proxy added, to see whether a statement's result is still what clients were told: its answer
    /// is swallowed. The generation of the schema in which it was sent.
    Verify(Arc<Statement>, u64),
    /// Execute: CommandComplete, EmptyQueryResponse or PortalSuspended.
    Execute(Deallocated),
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

/// A simple query that is not the client's as it stands.
#[derive(Debug)]
pub enum Special {
    /// What the server gets cannot succeed; the client gets this ErrorResponse in place of the server's.
    Refused(Box<[u8]>),
    /// It drops statements that live in the proxy.
    Deallocates {
        /// What the client closed by it, put back if it fails.
        closed: Deallocated,
        /// It was rewritten, so that PostgreSQL has a statement to drop: its first answer is the proxy's.
        is_rewritten: bool,
    },
    /// The server gets it as a batch of the extended protocol, up to the Sync; the client gets the answers to a simple
    /// query. The CommandComplete, held back until the transaction is committed, as PostgreSQL does it.
    Batch(Vec<u8>),
}

/// What an SQL-level DEALLOCATE closed.
#[derive(Debug, Default)]
pub struct Deallocated {
    /// The client's names, with what they stood for.
    pub names: Vec<(Box<[u8]>, Arc<Statement>)>,
    /// Shared statements that the server had, when all were dropped.
    pub on_server: HashSet<u64>,
    /// All were dropped.
    pub all: bool,
}

impl Due {
    /// Whether a Sync must follow before the server is at rest again.
    pub(super) fn opens_batch(&self) -> bool {
        !matches!(self, Due::Query(_) | Due::Sync | Due::Binding | Due::CopyEnd)
    }

    /// Whether it is the proxy's binding.
    pub(super) fn is_binding(&self) -> bool {
        matches!(self, Due::Binding | Due::Switch(_))
    }

    /// Whether it is sure to have PostgreSQL do no more than read and write rows, and plan that.
    pub(super) fn is_inert(&self) -> bool {
        match self {
            Due::Parse { statement, .. } | Due::Ensure(statement) => statement.reading.is_inert,
            Due::ParseUnnamed(Some(text_and_types)) => inert::read_parse(text_and_types).is_inert,
            // What it executes was parsed before, under the same eyes.
            Due::Bind(_) | Due::Describe(_) | Due::Verify(..) | Due::Execute(_) => true,
            Due::Binding | Due::Switch(_) | Due::Sync | Due::Close | Due::CloseUnnamed | Due::Said(_) => true,
            Due::TowardsRebind | Due::Rebind(_) => true,
            Due::ParseUnnamed(None)
            | Due::ParseAgain { .. }
            | Due::ParseAsIs
            | Due::Unnamed
            | Due::Aside
            | Due::Query(_)
            | Due::CopyEnd
            | Due::Provoked(_) => false,
        }
    }

    /// The statement that it puts on the server.
    pub(super) fn placed(&self) -> Option<u64> {
        match self {
            Due::Parse { statement, .. } | Due::Ensure(statement) => Some(statement.id),
            _ => None,
        }
    }

    /// Whether the unnamed statement is another one, or none, afterwards.
    pub(super) fn settles_unnamed(&self) -> bool {
        matches!(self, Due::ParseUnnamed(_) | Due::CloseUnnamed | Due::Unnamed | Due::Query(_))
    }

    /// Bytes of a client's that it holds.
    pub(super) fn text_length(&self) -> usize {
        let text = match self {
            Due::ParseUnnamed(Some(text)) => text.len(),
            Due::Said(Said::Own(answer)) | Due::Rebind(answer) => answer.len(),
            Due::Parse { statement, .. }
            | Due::Ensure(statement)
            | Due::Said(Said::CloseComplete { closed: Some((_, statement)) }) => {
                statement.text_and_types.len()
            }
            _ => 0,
        };
        text + self.name().map_or(0, <[u8]>::len)
    }

    /// What an SQL-level DEALLOCATE closed by it.
    pub(super) fn deallocated(&self) -> Option<&Deallocated> {
        match self {
            Due::Execute(closed) => Some(closed),
            Due::Query(Some(special)) => match special.as_ref() {
                Special::Deallocates { closed, .. } => Some(closed),
                Special::Refused(_) | Special::Batch(_) => None,
            },
            _ => None,
        }
    }

    /// What an SQL-level DEALLOCATE closed by it is not closed after all.
    pub(super) fn take_deallocated(&mut self, skipped: &mut Vec<Skipped>) {
        let closed = match self {
            Due::Execute(closed) => closed,
            Due::Query(Some(special)) => match special.as_mut() {
                Special::Deallocates { closed, .. } => closed,
                Special::Refused(_) | Special::Batch(_) => return,
            },
            _ => return,
        };
        skipped.extend(closed.names.drain(..).map(|(name, statement)| Skipped::Close(name, statement)));
        if !closed.on_server.is_empty() {
            skipped.push(Skipped::OnServer(std::mem::take(&mut closed.on_server)));
        }
    }

    /// Whether it gives or takes names of the client's statements.
    pub(super) fn names(&self) -> bool {
        self.name().is_some() || self.deallocated().is_some_and(|closed| !closed.names.is_empty())
    }

    /// Whether it gives or takes this name.
    pub(super) fn concerns(&self, name: &[u8]) -> bool {
        let mut closed = self.deallocated().into_iter().flat_map(|closed| &closed.names);
        self.name() == Some(name) || closed.any(|(closed, _)| closed.as_ref() == name)
    }

    /// Whether it puts statements on the server, or takes them.
    pub(super) fn places(&self) -> bool {
        self.placed().is_some() || self.deallocated().is_some_and(|closed| !closed.on_server.is_empty())
    }

    /// Whether it puts this statement on the server, or takes it.
    pub(super) fn moves(&self, id: u64) -> bool {
        self.placed() == Some(id) || self.deallocated().is_some_and(|closed| closed.on_server.contains(&id))
    }

    /// The client's statement name that it gives or takes.
    pub(super) fn name(&self) -> Option<&[u8]> {
        match self {
            Due::Parse { name, .. }
            | Due::ParseAgain { name }
            | Due::Said(Said::ParseComplete { name } | Said::CloseComplete { closed: Some((name, _)) }) => {
                Some(name)
            }
            _ => None,
        }
    }

    /// A message that ends its batch: what is sent behind it does not depend on it, but for names.
    pub(super) fn ends_batch(&self) -> bool {
        match self {
            Due::Sync => true,
            Due::Query(Some(special)) => matches!(**special, Special::Deallocates { .. }),
            _ => false,
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
    /// What has no name that a server could know.
    Own(Box<[u8]>),
    /// A statement's Close stays in the proxy, where its name lives.
    CloseComplete {
        /// What the client closed, put back if the message turns out to be skipped.
        closed: Option<(Box<[u8]>, Arc<Statement>)>,
    },
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
    /// Statements that the server still has.
    OnServer(HashSet<u64>),
    /// Whatever is still to come before the next Sync.
    ToSync,
}
