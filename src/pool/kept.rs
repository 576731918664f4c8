//! Which prepared statements of a server may outlive its cleaning.
//!
//! PostgreSQL reads a statement's text under the settings of that moment and keeps what it made of it. So a statement may
//! serve another client only if nothing of anyone's was executed on the server between its last cleaning and its Parse, and
//! if both clients have the same settings.

use std::collections::HashSet;

use super::terms::{Foundation, SettingsDigest};
use crate::tenancy::statements::Own;

/// What is on a server, as far as the proxy put it there.
#[derive(Debug, Default)]
pub struct Kept {
    /// Shared statements that the server has, or is about to have.
    all: HashSet<u64>,
    /// Of them, those that were parsed while nothing of a client's had been executed since the last cleaning.
    lasting: HashSet<u64>,
    /// The settings under which the lasting ones were parsed.
    foundation: Foundation,
    /// The settings that the server was bound with, while they are what it has.
    pub(super) bound_with: Option<SettingsDigest>,
    /// The proxy's own.
    pub(super) own: Own,
    /// The database has nothing that could make a plan of one client's wrong for the next.
    pub(super) is_allowed: bool,
}

impl Kept {
    /// Whether the server has this statement, or is about to.
    pub fn has(&self, id: u64) -> bool {
        self.all.contains(&id)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Notes that the server will have a statement, parsed before or after something of its client's is executed. Whether
    /// it has it already.
    pub fn will_have(&mut self, id: u64, is_untouched: bool) -> bool {
        let is_new = self.all.insert(id);
        if is_new && is_untouched && self.is_allowed {
            self.lasting.insert(id);
        }
        !is_new
    }

    /// Takes back that the server has a statement.
    pub fn lacks(&mut self, id: u64) {
        self.all.remove(&id);
        self.lasting.remove(&id);
    }

    /// It drops all of them.
    pub fn take(&mut self) -> HashSet<u64> {
        self.lasting.clear();
        std::mem::take(&mut self.all)
    }

    /// It did not drop them; what they were read under is not known any more.
    pub fn still_has(&mut self, ids: impl IntoIterator<Item = u64>) {
        self.all.extend(ids);
    }

    /// A wipe drops those that must not outlive it: which.
    pub fn wipe(&mut self) -> Vec<u64> {
        let gone = self.all.difference(&self.lasting).copied().collect();
        self.all.clone_from(&self.lasting);
        gone
    }

    /// Whether the statements that are left mean the same under other settings.
    pub fn suits(&self, foundation: Foundation) -> bool {
        self.foundation == foundation
    }

    /// It is bound under these settings: which statements must go.
    pub fn found(&mut self, foundation: Foundation) -> Vec<u64> {
        if self.suits(foundation) {
            return Vec::new();
        }
        self.foundation = foundation;
        self.take().into_iter().collect()
    }

    /// Everything was dropped, the proxy's own included.
    pub fn discard(&mut self) {
        self.take();
        self.own = Own::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept() -> Kept {
        Kept { is_allowed: true, ..Kept::default() }
    }

    #[test]
    fn only_what_was_parsed_before_anything_ran_outlives_a_wipe() {
        let mut kept = kept();
        assert!(!kept.will_have(1, true) && !kept.will_have(2, false) && kept.will_have(2, true));
        assert_eq!(kept.wipe(), [2]);
        assert!(kept.has(1) && !kept.has(2));
        kept.lacks(1);
        assert!(!kept.will_have(1, false), "parsed again, but too late");
        assert_eq!(kept.wipe(), [1]);
    }

    #[test]
    fn other_settings_take_all_statements() {
        let (mut kept, other) = (kept(), Foundation([1; 32]));
        kept.will_have(1, true);
        assert!(kept.found(Foundation::default()).is_empty());
        assert!(!kept.suits(other));
        assert_eq!(kept.found(other), [1]);
        assert!(kept.suits(other) && !kept.has(1));
    }

    #[test]
    fn what_came_back_after_a_drop_that_failed_does_not_last() {
        let mut kept = kept();
        kept.will_have(1, true);
        let dropped = kept.take();
        kept.still_has(dropped);
        assert!(kept.has(1));
        assert_eq!(kept.wipe(), [1]);
    }

    #[test]
    fn where_nothing_may_be_kept_nothing_lasts() {
        let mut kept = Kept::default();
        kept.will_have(1, true);
        assert_eq!(kept.wipe(), [1]);
    }
}
