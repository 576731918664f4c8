//! Protocol-level prepared statements, shared by all clients of a pool: same text and types, same statement.

use std::borrow::Borrow;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use lru::LruCache;

use super::budget::{self, Kept};
use crate::tenancy::inert::{self, Reading};
use crate::tenancy::text::{self, Effects};
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
    /// Its name on servers.
    pub server_name: Box<[u8]>,
    /// What follows the name in Parse.
    pub text_and_types: Box<[u8]>,
    /// What its text does to the session, where string constants are standard.
    pub effects: Effects,
    /// What it may do besides, where string constants are standard.
    pub reading: Reading,
    /// It is a query that does nothing to its session and may run in any transaction, where string constants are standard.
    pub is_plain: bool,
    /// Its result has changed since it was prepared: its client must prepare it anew.
    pub outdated: bool,
    /// The result that its first Describe told of; a client may decode by it ever after.
    shape: OnceLock<Shape>,
    /// The generation of the schema in which this was found to hold.
    verified: AtomicU64,
    /// What it takes of the memory for all clients.
    _kept: Kept,
}

/// A hash of a result's columns: names, types and type modifiers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape(u64);

impl Shape {
    /// Reads the body of a RowDescription, or none for NoData.
    pub fn of(row_description: Option<&[u8]>) -> Self {
        let mut hasher = DefaultHasher::new();
        let columns = row_description.and_then(|body| body.split_at_checked(2));
        let mut rest = columns.map_or(&[][..], |(_, columns)| columns);
        while let Some((name, after)) = split_cstr(rest) {
            name.hash(&mut hasher);
            // Table and column number (6 bytes) may change without a change of the type, then 8 bytes of type, size and
            // modifier, and the format.
            let Some((column, after)) = after.split_at_checked(18) else { break };
            column[6..16].hash(&mut hasher);
            rest = after;
        }
        row_description.is_some().hash(&mut hasher);
        Self(hasher.finish())
    }
}

impl Statement {
    /// The name on servers of the statement with this number.
    pub fn name_of(id: u64) -> Box<[u8]> {
        format!("pgtenant_{id}").into_bytes().into()
    }

    /// Numbers what a client parsed.
    pub fn new(id: u64, text_and_types: &[u8]) -> Self {
        Self::keeping(id, text_and_types, budget::keep_anyway(text_and_types.len()))
    }

    fn keeping(id: u64, text_and_types: &[u8], kept: Kept) -> Self {
        let text = split_cstr(text_and_types).map_or(text_and_types, |(text, _)| text);
        let effects = Effects::of(text, true);
        Self {
            id,
            server_name: Self::name_of(id),
            text_and_types: text_and_types.into(),
            effects,
            reading: inert::read_parse(text_and_types),
            is_plain: text::is_plain(text, true),
            outdated: false,
            shape: OnceLock::new(),
            verified: AtomicU64::new(0),
            _kept: kept,
        }
    }

    /// A Describe told a client of its result.
    pub fn learn(&self, shape: Shape) {
        // The first one stays: it is what clients were told.
        let _ = self.shape.set(shape);
    }

    /// Its result was looked at in this generation of the schema. Whether it is still what clients were told.
    pub fn verify(&self, shape: Shape, generation: u64) -> bool {
        self.verified.fetch_max(generation, Ordering::Relaxed);
        self.shape.get().is_none_or(|told| *told == shape)
    }

    /// Whether a client may have been told of a result that an earlier schema had.
    pub fn is_doubtful(&self, generation: u64) -> bool {
        self.verified.load(Ordering::Relaxed) < generation && self.shape.get().is_some()
    }

    /// The same for a client to whom its result is another one than it was told.
    pub fn as_outdated(&self) -> Self {
        Self { outdated: true, ..Self::new(self.id, &self.text_and_types) }
    }
}

/// Finds the statement for a text, or numbers a new one.
pub struct Registry {
    shared: Mutex<Shared>,
    /// Counts what may have changed the results of statements.
    generation: AtomicU64,
}

struct Shared {
    by_text: LruCache<ByText, ()>,
    bytes: usize,
    last_id: u64,
}

/// A statement that is found by its text, which is kept once.
struct ByText(Arc<Statement>);

impl Borrow<[u8]> for ByText {
    fn borrow(&self) -> &[u8] {
        &self.0.text_and_types
    }
}

impl Hash for ByText {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.text_and_types.hash(state);
    }
}

impl PartialEq for ByText {
    fn eq(&self, other: &Self) -> bool {
        self.0.text_and_types == other.0.text_and_types
    }
}

impl Eq for ByText {}

impl Default for Registry {
    fn default() -> Self {
        let capacity = NonZeroUsize::new(MAX_SHARED).unwrap_or(NonZeroUsize::MIN);
        let shared = Shared { by_text: LruCache::new(capacity), bytes: 0, last_id: 0 };
        Self { shared: Mutex::new(shared), generation: AtomicU64::new(0) }
    }
}

impl Shared {
    /// What nobody holds any more gives way to what somebody needs.
    fn keep(&mut self, bytes: usize) -> Option<Kept> {
        loop {
            if let Some(kept) = budget::keep(bytes) {
                return Some(kept);
            }
            let mut oldest_first = self.by_text.iter().rev();
            let unheld = oldest_first.find(|(ByText(statement), ())| Arc::strong_count(statement) == 1);
            let text = unheld.map(|(ByText(statement), ())| statement.text_and_types.clone())?;
            self.by_text.pop(&*text);
            self.bytes -= text.len();
        }
    }
}

impl Registry {
    /// The shared statement for what follows the name in a client's Parse; `None` where all clients together have too much.
    pub fn intern(&self, text_and_types: &[u8]) -> Option<Arc<Statement>> {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        // PostgreSQL would read a text anew that was prepared before something was altered.
        let generation = self.generation();
        if let Some((ByText(statement), ())) = shared.by_text.get_key_value(text_and_types)
            && statement.verified.load(Ordering::Relaxed) >= generation
        {
            return Some(statement.clone());
        }
        let kept = shared.keep(text_and_types.len())?;
        shared.last_id += 1;
        let statement = Arc::new(Statement::keeping(shared.last_id, text_and_types, kept));
        statement.verified.store(generation, Ordering::Relaxed);
        shared.bytes += text_and_types.len();
        // Putting in keeps an equal key that is there already.
        if let Some((ByText(replaced), ())) = shared.by_text.pop_entry(text_and_types) {
            shared.bytes -= replaced.text_and_types.len();
        }
        if let Some((ByText(forgotten), ())) = shared.by_text.push(ByText(statement.clone()), ()) {
            shared.bytes -= forgotten.text_and_types.len();
        }
        while shared.bytes > MAX_SHARED_BYTES {
            let Some((ByText(forgotten), ())) = shared.by_text.pop_lru() else { break };
            shared.bytes -= forgotten.text_and_types.len();
        }
        Some(statement)
    }

    /// Counts bytes that a client of this pool is about to have kept; `None` where all together have too much.
    pub fn keep(&self, bytes: usize) -> Option<Kept> {
        budget::keep(bytes).or_else(|| self.shared.lock().unwrap_or_else(PoisonError::into_inner).keep(bytes))
    }

    /// The generation of the schema, as far as it can be seen from here.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    /// Something was altered or dropped: what servers are to prepare from now on may have another result than before.
    pub fn schema_changed(&self) {
        self.generation.fetch_add(1, Ordering::Relaxed);
    }

    /// The result of a statement has another type now, for one of its clients: it may be that client's doing alone (a
    /// temporary table of the same name). So the others are asked about before they use it again, and who prepares the same
    /// text from now on gets a new statement.
    pub fn doubt(&self, statement: &Statement) {
        self.schema_changed();
        self.forget(statement);
    }

    /// Who prepares the same text from now on gets a new statement: this one no longer means what its text does.
    pub fn forget(&self, statement: &Statement) {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let text: &[u8] = &statement.text_and_types;
        let current = shared.by_text.pop_entry(text);
        match current {
            Some((ByText(current), ())) if current.id != statement.id => {
                shared.by_text.push(ByText(current), ());
            }
            Some(_) => shared.bytes -= text.len(),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn equal_texts_share_a_statement_and_types_tell_apart() {
        let registry = Registry::default();
        let a = registry.intern(b"select $1\0\0\0").unwrap();
        assert_eq!(a.id, registry.intern(b"select $1\0\0\0").unwrap().id);
        assert_ne!(a.id, registry.intern(b"select $1\0\0\x01\0\0\0\x17").unwrap().id);
    }

    #[test]
    fn an_outdated_statement_is_nobodys_new_one() {
        let registry = Registry::default();
        let old = registry.intern(b"select *\0\0\0").unwrap();
        old.learn(Shape::of(None));
        let outdated = old.as_outdated();
        registry.doubt(&old);
        let new = registry.intern(b"select *\0\0\0").unwrap();
        assert!(outdated.outdated && !old.outdated && !new.outdated && old.id != new.id);
        assert!(old.is_doubtful(registry.generation()), "its other clients are asked about");
        registry.forget(&old);
        assert_eq!(registry.intern(b"select *\0\0\0").unwrap().id, new.id, "the new one stays");
    }

    #[test]
    fn what_was_told_is_doubtful_after_a_change_until_it_is_looked_at_again() {
        let registry = Registry::default();
        let statement = registry.intern(b"select *\0\0\0").unwrap();
        let column = |name: &[u8], table: u8, kind: u8| {
            [name, b"\0\0\0\0", &[table], b"\0\x01\0\0\0", &[kind], b"\0\x04\xff\xff\xff\xff\0\0"].concat()
        };
        let shape =
            |name, table, kind| Shape::of(Some(&[b"\0\x01", &column(name, table, kind)[..]].concat()));
        registry.schema_changed();
        assert!(!statement.is_doubtful(registry.generation()), "nobody was told");
        statement.learn(shape(b"a", 1, 23));
        assert!(statement.is_doubtful(registry.generation()));
        assert!(statement.verify(shape(b"a", 2, 23), registry.generation()), "another table, the same type");
        assert!(!statement.is_doubtful(registry.generation()));
        for other in [shape(b"a", 1, 25), shape(b"b", 1, 23), Shape::of(None), Shape::of(Some(b"\0\0"))] {
            assert!(!statement.verify(other, registry.generation()));
        }
    }

    #[test]
    fn a_text_is_read_anew_after_a_change() {
        let registry = Registry::default();
        let old = registry.intern(b"select 1\0\0\0").unwrap();
        registry.schema_changed();
        let new = registry.intern(b"select 1\0\0\0").unwrap();
        assert_ne!(old.id, new.id);
        assert_eq!(registry.intern(b"select 1\0\0\0").unwrap().id, new.id);
        registry.forget(&old);
        assert_eq!(registry.intern(b"select 1\0\0\0").unwrap().id, new.id);
        registry.forget(&new);
        assert_ne!(registry.intern(b"select 1\0\0\0").unwrap().id, new.id);
    }

    #[test]
    fn texts_are_bounded_by_their_bytes() {
        let registry = Registry::default();
        let text = |n: u8| vec![n; MAX_SHARED_BYTES / 4];
        let ids: Vec<u64> = (0..4).map(|n| registry.intern(&text(n)).unwrap().id).collect();
        assert_eq!(registry.intern(&text(0)).unwrap().id, ids[0]);
        registry.intern(b"one more").unwrap();
        assert_eq!(registry.intern(&text(0)).unwrap().id, ids[0], "used lately");
        assert_ne!(registry.intern(&text(1)).unwrap().id, ids[1], "forgotten");
    }
}
