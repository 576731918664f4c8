//! A client's prepared statements: its names for the pool's shared statements.

use std::collections::HashMap;
use std::sync::Arc;

use crate::pool::statement::Statement;

/// Statements that one client may hold.
pub const MAX_CLIENT_STATEMENTS: usize = 10_000;

/// What one client has prepared, whichever servers have it.
#[derive(Default)]
pub struct ClientStatements {
    named: HashMap<Box<[u8]>, Arc<Statement>>,
    /// Text and types of the unnamed statement, while it was short enough to be remembered.
    unnamed: Option<Box<[u8]>>,
}

/// Why a name cannot be given.
#[derive(Debug, PartialEq, Eq)]
pub enum NameRefused {
    /// 42P05
    Taken,
    /// 54000
    TooMany,
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
        if self.named.len() >= MAX_CLIENT_STATEMENTS {
            return Err(NameRefused::TooMany);
        }
        self.named.insert(name.into(), statement);
        Ok(())
    }

    /// The statement of this name.
    pub fn get(&self, name: &[u8]) -> Option<&Arc<Statement>> {
        self.named.get(name)
    }

    /// Forgets a name.
    pub fn close(&mut self, name: &[u8]) -> Option<(Box<[u8]>, Arc<Statement>)> {
        self.named.remove_entry(name)
    }

    /// Puts back what was closed by a message that the server skipped.
    pub fn put_back(&mut self, name: Box<[u8]>, statement: Arc<Statement>) {
        self.named.insert(name, statement);
    }

    /// Remembers the unnamed statement, so that it follows the client to another server; none when it is too long.
    pub fn remember_unnamed(&mut self, text_and_types: Option<&[u8]>) {
        self.unnamed = text_and_types.map(Into::into);
    }

    /// The unnamed statement.
    pub fn unnamed(&self) -> Option<&[u8]> {
        self.unnamed.as_deref()
    }
}
