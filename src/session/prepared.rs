//! A client's prepared statements: its names for the pool's shared statements.

use std::collections::HashMap;
use std::sync::Arc;

use crate::pool::budget::{self, Kept};
use crate::pool::due::{Deallocated, Due, Said, Unnamed};
use crate::pool::server::BoundServer;
use crate::pool::statement::Statement;
use crate::tenancy::text::Deallocates;
use crate::wire::report::{Report, Sqlstate};
use crate::wire::speak;

/// Statements that one client may hold.
pub const MAX_CLIENT_STATEMENTS: usize = 10_000;

/// Bytes of their names and texts together.
pub const MAX_CLIENT_STATEMENT_BYTES: usize = 16 * 1024 * 1024;

/// What a name takes beside its bytes: its places in the table and on the heap.
const NAME_COSTS: usize = 64;

/// What one client has prepared, whichever servers have it.
#[derive(Default)]
pub struct ClientStatements {
    named: HashMap<Box<[u8]>, Arc<Statement>>,
    bytes: usize,
    /// What the names alone take, and that it is counted: unlike texts, they are each client's own.
    names: usize,
    names_kept: Kept,
    /// Text and types of the unnamed statement, while it was short enough to be remembered.
    unnamed: Unnamed,
    /// What that takes of the memory for all clients, if it is long.
    unnamed_kept: Option<Kept>,
}

/// Why a name cannot be given.
#[derive(Debug, PartialEq, Eq)]
pub enum NameRefused {
    /// 42P05
    Taken,
    /// 54000
    TooMany,
    /// 53200
    NoMemory,
}

/// All clients together have the proxy keep as much as it may.
pub fn no_memory() -> Report {
    Report::new(Sqlstate::OUT_OF_MEMORY, "the proxy keeps no more texts of its clients")
        .detail("listen.max_kept of pgtenant is reached.")
        .hint("Close statements that are not used, or raise listen.max_kept.")
}

impl NameRefused {
    /// What the client is told.
    pub fn report(&self, name: &[u8]) -> Report {
        match self {
            Self::Taken => Report::new(
                Sqlstate::DUPLICATE_STATEMENT,
                format!("prepared statement \"{}\" already exists", String::from_utf8_lossy(name)),
            ),
            Self::NoMemory => no_memory(),
            Self::TooMany => {
                Report::new(Sqlstate::LIMIT_EXCEEDED, "too many or too long prepared statements")
                    .hint("Close statements that are no longer used.")
            }
        }
    }
}

impl ClientStatements {
    /// Gives a statement a name.
    ///
    /// # Errors
    /// The name is taken, or the client holds too many.
    pub fn name(&mut self, name: &[u8], statement: Arc<Statement>) -> Result<(), NameRefused> {
        if self.named.contains_key(name) {
            return Err(NameRefused::Taken);
        }
        let bytes = self.bytes + name.len() + statement.text_and_types.len();
        if self.named.len() >= MAX_CLIENT_STATEMENTS || bytes > MAX_CLIENT_STATEMENT_BYTES {
            return Err(NameRefused::TooMany);
        }
        if !self.names_kept.becomes(self.names + name.len() + NAME_COSTS) {
            return Err(NameRefused::NoMemory);
        }
        self.put_back(name.into(), statement);
        Ok(())
    }

    /// The statement of this name.
    pub fn get(&self, name: &[u8]) -> Option<&Arc<Statement>> {
        self.named.get(name)
    }

    /// Forgets a name.
    pub fn close(&mut self, name: &[u8]) -> Option<(Box<[u8]>, Arc<Statement>)> {
        let closed = self.named.remove_entry(name)?;
        self.bytes -= closed.0.len() + closed.1.text_and_types.len();
        self.names -= closed.0.len() + NAME_COSTS;
        self.names_kept.becomes(self.names);
        Some(closed)
    }

    /// Forgets what an SQL-level DEALLOCATE drops, here and on the server.
    pub fn deallocate(&mut self, which: &Deallocates, server: &mut BoundServer) -> Deallocated {
        match which {
            Deallocates::One(name) => {
                Deallocated { names: self.close(name).into_iter().collect(), ..Deallocated::default() }
            }
            Deallocates::All => {
                (self.bytes, self.names) = (0, 0);
                self.names_kept.becomes(0);
                let names = self.named.drain().collect();
                Deallocated { names, on_server: server.drops_statements(), all: true }
            }
        }
    }

    /// The statement with this number, if a name stands for it.
    pub fn numbered(&self, id: u64) -> Option<&Arc<Statement>> {
        self.named.values().find(|statement| statement.id == id)
    }

    /// The result of the statement with this number has another type now, for this client: on PostgreSQL, a session that
    /// prepared it is refused until it prepares it anew.
    pub fn outdate(&mut self, id: u64) -> Option<Arc<Statement>> {
        let mut old = None;
        for statement in self.named.values_mut().filter(|statement| statement.id == id && !statement.outdated)
        {
            old = Some(std::mem::replace(statement, Arc::new(statement.as_outdated())));
        }
        old
    }

    /// Puts back what was closed by a message that the server skipped.
    pub fn put_back(&mut self, name: Box<[u8]>, statement: Arc<Statement>) {
        let name_length = name.len();
        self.bytes += name_length + statement.text_and_types.len();
        self.names += name_length + NAME_COSTS;
        if let Some(replaced) = self.named.insert(name, statement) {
            self.bytes -= name_length + replaced.text_and_types.len();
            self.names -= name_length + NAME_COSTS;
        }
        self.names_kept.becomes_anyway(self.names);
    }

    /// Remembers the unnamed statement, so that it follows the client to another server; none when it is too long.
    pub fn remember_unnamed(&mut self, text_and_types: Unnamed) {
        self.unnamed_kept = None;
        let fits = |text: &Arc<[u8]>| {
            if text.len() > budget::UNCOUNTED {
                self.unnamed_kept = budget::keep(text.len());
            }
            text.len() + self.bytes <= MAX_CLIENT_STATEMENT_BYTES
                && (text.len() <= budget::UNCOUNTED || self.unnamed_kept.is_some())
        };
        self.unnamed = text_and_types.filter(fits);
    }

    /// The unnamed statement.
    pub fn unnamed(&self) -> Option<&[u8]> {
        self.unnamed.as_deref()
    }
}

/// What a client is told of a statement whose result type has changed since it was prepared, as PostgreSQL tells it.
pub fn outdated() -> Report {
    // Drivers (asyncpg, pgjdbc) know it by PostgreSQL's function, for texts are translated.
    Report::new(Sqlstate::NOT_SUPPORTED, "cached plan must not change result type")
        .routine("RevalidateCachedQuery")
}

/// A DEALLOCATE of a name that lives here: PostgreSQL has something to drop, and answers as it always does.
pub const DEALLOCATE_ONE: &str = "PREPARE pgtenant_dropped AS SELECT 1; DEALLOCATE pgtenant_dropped";

/// The same as the unnamed statement. An earlier one may not have been executed.
pub fn parse_deallocate(server: &mut BoundServer) {
    speak::close_statement(b"pgtenant_gone", server.outgoing());
    server.owe(Due::Aside);
    speak::parse("pgtenant_gone", "SELECT 1", server.outgoing());
    server.owe(Due::Aside);
    speak::parse("", "DEALLOCATE pgtenant_gone", server.outgoing());
}

/// What is parsed to see what PostgreSQL says of it has this name, for a moment.
const TRIAL: &[u8] = b"pgtenant_trial";

/// Passes on a client's Parse of `name`: under the shared name if the server does not have the statement yet; otherwise
/// the answer is given here, where nothing can be wrong with it, or PostgreSQL is asked once more.
pub fn pass_parse(name: &[u8], text_and_types: &[u8], statement: Arc<Statement>, server: &mut BoundServer) {
    let is_at_start = server.ledger().is_at_start();
    let name = name.into();
    if !server.will_have(&statement) {
        speak::parse_raw(&statement.server_name, text_and_types, server.outgoing());
        server.owe(Due::Parse { name, statement });
    } else if is_at_start {
        server.owe(Due::Said(Said::ParseComplete { name }));
    } else {
        // In a transaction that has failed, PostgreSQL refuses it.
        try_out(text_and_types, Due::ParseAgain { name }, server);
    }
}

/// Has a text parsed under a name that is gone at once; `due` is what its ParseComplete is to the client.
pub fn try_out(text_and_types: &[u8], due: Due, server: &mut BoundServer) {
    speak::parse_raw(TRIAL, text_and_types, server.outgoing());
    speak::close_statement(TRIAL, server.outgoing());
    server.owe(due);
    server.owe(Due::Aside);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statement(bytes: usize) -> Arc<Statement> {
        Arc::new(Statement::new(1, &vec![b'x'; bytes]))
    }

    #[test]
    fn texts_are_bounded_by_their_bytes_and_closing_makes_room() {
        let mut statements = ClientStatements::default();
        let half = MAX_CLIENT_STATEMENT_BYTES / 2 - 1;
        assert_eq!(statements.name(b"a", statement(half)), Ok(()));
        assert_eq!(statements.name(b"a", statement(1)), Err(NameRefused::Taken));
        assert_eq!(statements.name(b"b", statement(half)), Ok(()));
        assert_eq!(statements.name(b"c", statement(1)), Err(NameRefused::TooMany));
        let (name, closed) = statements.close(b"a").unwrap_or_else(|| unreachable!("it was named"));
        assert_eq!(statements.name(b"c", statement(half)), Ok(()));
        assert!(statements.close(b"c").is_some());
        statements.put_back(name, closed);
        assert_eq!(statements.name(b"d", statement(1)), Err(NameRefused::TooMany));
    }
}
