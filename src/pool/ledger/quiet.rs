//! What a server may still have of others: texts that were more than rows, and answers that are not due.

use super::Ledger;
use crate::pool::due::{Due, Special};

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

    /// The same as [`Ledger::push`] of a simple query whose text is inert, or is not.
    pub fn push_query(&mut self, special: Option<Special>, is_inert: bool) {
        let was_loud = self.is_loud;
        self.push(Due::Query(special.map(Box::new)));
        self.is_loud = was_loud || !is_inert;
    }

    /// Everything that could come has come.
    pub fn has_settled(&mut self) {
        self.strays = 0;
    }

    /// Whether more ReadyForQuery may come than are due: the server must not serve anyone else.
    pub fn has_strays(&self) -> bool {
        self.strays > 0
    }
}
