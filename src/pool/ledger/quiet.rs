//! Whether a server has seen nothing but texts that read and write rows.

use super::Ledger;
use crate::pool::due::Due;

impl Ledger {
    /// Whether nothing but inert texts was sent since the last cleaning: no plan was made under settings that no client
    /// brought.
    pub fn is_quiet(&self) -> bool {
        !self.is_loud
    }

    /// Something may be sent that is not told to the ledger as it is.
    pub fn is_loud(&mut self) {
        self.is_loud = true;
    }

    /// The same as [`Ledger::push`] of a simple query, of an inert text.
    pub fn push_inert_query(&mut self) {
        let was_loud = self.is_loud;
        self.push(Due::Query(None));
        self.is_loud = was_loud;
    }
}
