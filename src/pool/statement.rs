//! Protocol-level prepared statements, shared by all clients of a pool: same text and types, same statement.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use lru::LruCache;

use crate::tenancy::text::Effects;
use crate::wire::frame::split_cstr;

/// Statements remembered for sharing; a forgotten one lives on with the clients that hold it.
const MAX_SHARED: usize = 10_000;

/// Bytes of their texts together.
const MAX_SHARED_BYTES: usize = 64 * 1024 * 1024;

/// A statement as a client parsed it: text, NUL, and parameter types, byte for byte.
#[derive(Debug)]
pub struct Statement {
    /// Unique in the process.
    pub id: u64,
    /// What follows the name in Parse.
    pub text_and_types: Box<[u8]>,
    /// What its text does to the session, where string constants are standard.
    pub effects: Effects,
    /// Its result has changed since it was prepared: whoever still holds it must prepare it anew.
    outdated: AtomicBool,
}

impl Statement {
    /// Numbers what a client parsed.
    pub fn new(id: u64, text_and_types: &[u8]) -> Self {
        let text = split_cstr(text_and_types).map_or(text_and_types, |(text, _)| text);
        let effects = Effects::of(text, true);
        Self { id, text_and_types: text_and_types.into(), effects, outdated: AtomicBool::new(false) }
    }

    /// Whether PostgreSQL has said that its result type changed.
    pub fn is_outdated(&self) -> bool {
        self.outdated.load(Ordering::Relaxed)
    }

    /// Its name on servers.
    pub fn server_name(&self) -> String {
        format!("pgtenant_{}", self.id)
    }
}

/// Finds the statement for a text, or numbers a new one.
pub struct Registry {
    shared: Mutex<Shared>,
}

struct Shared {
    by_text: LruCache<Box<[u8]>, Arc<Statement>>,
    bytes: usize,
    last_id: u64,
}

impl Default for Registry {
    fn default() -> Self {
        let capacity = NonZeroUsize::new(MAX_SHARED).unwrap_or(NonZeroUsize::MIN);
        Self { shared: Mutex::new(Shared { by_text: LruCache::new(capacity), bytes: 0, last_id: 0 }) }
    }
}

impl Registry {
    /// The shared statement for what follows the name in a client's Parse.
    pub fn intern(&self, text_and_types: &[u8]) -> Arc<Statement> {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(statement) = shared.by_text.get(text_and_types) {
            return statement.clone();
        }
        shared.last_id += 1;
        let statement = Arc::new(Statement::new(shared.last_id, text_and_types));
        shared.bytes += text_and_types.len();
        if let Some((forgotten, _)) = shared.by_text.push(text_and_types.into(), statement.clone()) {
            shared.bytes -= forgotten.len();
        }
        while shared.bytes > MAX_SHARED_BYTES {
            let Some((forgotten, _)) = shared.by_text.pop_lru() else { break };
            shared.bytes -= forgotten.len();
        }
        statement
    }

    /// The result of a statement has another type now: on PostgreSQL, every session that prepared it is refused until it
    /// prepares it anew. So are its holders; who prepares the same text from now on gets a new statement.
    pub fn outdate(&self, statement: &Statement) {
        statement.outdated.store(true, Ordering::Relaxed);
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let current = shared.by_text.peek(&statement.text_and_types);
        if current.is_some_and(|current| current.id == statement.id) {
            shared.by_text.pop(&statement.text_and_types);
            shared.bytes -= statement.text_and_types.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_texts_share_a_statement_and_types_tell_apart() {
        let registry = Registry::default();
        let a = registry.intern(b"select $1\0\0\0");
        assert_eq!(a.id, registry.intern(b"select $1\0\0\0").id);
        assert_ne!(a.id, registry.intern(b"select $1\0\0\x01\0\0\0\x17").id);
    }

    #[test]
    fn an_outdated_statement_is_nobodys_new_one() {
        let registry = Registry::default();
        let old = registry.intern(b"select *\0\0\0");
        registry.outdate(&old);
        let new = registry.intern(b"select *\0\0\0");
        assert!(old.is_outdated() && !new.is_outdated() && old.id != new.id);
        registry.outdate(&old);
        assert_eq!(registry.intern(b"select *\0\0\0").id, new.id, "the new one stays");
    }

    #[test]
    fn texts_are_bounded_by_their_bytes() {
        let registry = Registry::default();
        let text = |n: u8| vec![n; MAX_SHARED_BYTES / 4];
        let ids: Vec<u64> = (0..4).map(|n| registry.intern(&text(n)).id).collect();
        assert_eq!(registry.intern(&text(0)).id, ids[0]);
        registry.intern(b"one more");
        assert_eq!(registry.intern(&text(0)).id, ids[0], "used lately");
        assert_ne!(registry.intern(&text(1)).id, ids[1], "forgotten");
    }
}
