//! What of a server may outlive a change of hands: prepared statements, and plans.
//!
//! PostgreSQL reads a text and plans it under the settings of that moment, and keeps what it made of it; functions keep
//! theirs too. So nothing is kept unless all of it was made under the settings that the clients brought, which inert texts
//! alone are sure of ([`inert`](crate::tenancy::inert)); nor where the database has functions that say IMMUTABLE, whose
//! results a plan may have for constants: one organization's for the next.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::statement::Statement;

/// For how long an answer holds to the question whether the database has functions that say IMMUTABLE, or rules.
const ANSWER_HOLDS: Duration = Duration::from_secs(60);

/// What is on a server, as far as the proxy put it there.
#[derive(Debug, Default)]
pub struct Kept {
    /// Shared statements that the server has, or is about to have.
    statements: HashSet<u64>,
    /// Of them, those whose text may have somebody's data in it: everyone can read it there.
    with_data: HashSet<u64>,
    /// The proxy's own statements are there that wipe and bind.
    pub(super) has_own: bool,
    /// A new session's transactions are standard ones, so that a wipe can make them.
    pub(super) is_standard: bool,
    /// The database has no functions that say IMMUTABLE; known since then.
    is_safe: Option<Instant>,
    /// It has no rules but those of views for reading (`CREATE RULE`); known since then.
    has_no_rules: Option<Instant>,
}

impl Kept {
    /// Whether the server has this statement, or is about to.
    pub fn has(&self, id: u64) -> bool {
        self.statements.contains(&id)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.statements.len()
    }

    /// Notes that the server will have a statement. Whether it has it already.
    pub fn will_have(&mut self, statement: &Statement) -> bool {
        let is_new = self.statements.insert(statement.id);
        if is_new && statement.reading.has_data {
            self.with_data.insert(statement.id);
        }
        !is_new
    }

    /// Takes back that the server has a statement.
    pub fn lacks(&mut self, id: u64) {
        self.statements.remove(&id);
        self.with_data.remove(&id);
    }

    /// It drops all of them.
    pub fn take(&mut self) -> HashSet<u64> {
        self.with_data.clear();
        std::mem::take(&mut self.statements)
    }

    /// It did not drop them, or has them by now.
    pub fn still_has(&mut self, ids: impl IntoIterator<Item = u64>) {
        self.statements.extend(ids);
    }

    /// It drops those whose texts the next client must not read: which.
    pub fn forget_data(&mut self) -> impl Iterator<Item = u64> {
        self.with_data.drain().filter(|id| self.statements.remove(id))
    }

    /// It drops everything, the proxy's own included.
    pub fn discard(&mut self) {
        self.take();
        self.has_own = false;
    }

    /// What the database said: that it has no functions that say IMMUTABLE, and no rules.
    pub fn is_answered(&mut self, is_safe: bool, has_no_rules: bool) {
        self.is_safe = is_safe.then(Instant::now);
        self.has_no_rules = has_no_rules.then(Instant::now);
    }

    /// Whether no rule adds to what a statement returns.
    pub fn has_no_rules(&self) -> bool {
        holds(self.has_no_rules)
    }

    /// Whether plans may be kept, as far as the database is concerned.
    pub fn is_safe(&self) -> bool {
        holds(self.is_safe)
    }

    /// Whether that was so, and has to be asked again.
    pub fn is_in_doubt(&self) -> bool {
        self.is_safe.is_some() && !self.is_safe()
    }

    /// Whether there were no rules, and that has to be asked again.
    pub fn has_forgotten_rules(&self) -> bool {
        self.has_no_rules.is_some() && !self.has_no_rules()
    }
}

fn holds(since: Option<Instant>) -> bool {
    since.is_some_and(|since| since.elapsed() < ANSWER_HOLDS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_with_data_are_dropped_once_and_the_others_stay() {
        let statement = |id, text: &str| Statement::new(id, text.as_bytes());
        let (plain, data) = (statement(1, "SELECT $1\0\0\0"), statement(2, "SELECT 'x'\0\0\0"));
        let mut kept = Kept::default();
        assert!(!kept.will_have(&plain) && !kept.will_have(&data) && kept.will_have(&data));
        assert_eq!(kept.forget_data().collect::<Vec<_>>(), [2]);
        assert!(kept.has(1) && !kept.has(2) && kept.forget_data().next().is_none());
        kept.will_have(&data);
        kept.lacks(2);
        assert!(kept.forget_data().next().is_none(), "it was never there");
        assert_eq!(kept.take().len(), 1);
    }

    #[test]
    fn what_is_not_known_is_not_safe() {
        let mut kept = Kept::default();
        assert!(!kept.is_safe() && !kept.has_no_rules() && !kept.is_in_doubt());
        kept.is_answered(true, false);
        assert!(kept.is_safe() && !kept.is_in_doubt() && !kept.has_no_rules() && !kept.has_forgotten_rules());
        kept.is_safe = Instant::now().checked_sub(ANSWER_HOLDS);
        assert!(!kept.is_safe() && kept.is_in_doubt());
        kept.is_answered(false, true);
        assert!(!kept.is_safe() && !kept.is_in_doubt() && kept.has_no_rules() && !kept.has_forgotten_rules());
        kept.has_no_rules = Instant::now().checked_sub(ANSWER_HOLDS);
        assert!(!kept.has_no_rules() && kept.has_forgotten_rules());
    }
}
