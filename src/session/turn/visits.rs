//! Organizations that a client is brought to within its transaction: their limits hold for the rest of it.

use super::Turn;
use super::limits::TimeLimits;
use crate::session::accounts::Attendance;
use crate::session::desk::Held;
use crate::wire::report::{Report, Sqlstate};

/// Organizations that one transaction is brought to.
const MAX_VISITS: usize = 64;

/// Those of one turn. The client is counted as one of each until what holds afterwards is known.
#[derive(Default)]
pub struct Visits {
    all: Vec<Attendance>,
    /// Whose it is now; none is the client's own.
    now: Option<usize>,
}

impl Turn<'_> {
    /// The client is about to be under another context. Nothing begins behind this transaction in the same turn, for it could
    /// be under either.
    ///
    /// # Errors
    /// Its organization has as many clients as it may, or asks too fast; or the transaction visits too many.
    pub(super) fn visits(&mut self, held: &Held) -> Result<(), Report> {
        let own = self.client.attendance.as_ref();
        let organization = held.context.as_ref().map(|context| context.organization());
        let Some(organization) = organization.filter(|other| own.is_none_or(|own| !own.is_of(other))) else {
            self.changes.visits.now = None;
            return Ok(());
        };
        let visits = &mut self.changes.visits;
        let known = visits.all.iter().position(|visit| visit.is_of(organization));
        let index = match known {
            Some(index) => {
                visits.all[index].may_begin()?;
                index
            }
            None if visits.all.len() == MAX_VISITS => {
                let message = "too many organizations in one transaction";
                return Err(Report::new(Sqlstate::LIMIT_EXCEEDED, message));
            }
            None => {
                let visit = self.client.desk.visits(organization)?;
                TimeLimits::narrow(&mut self.limits, &visit.limits(), self.begun);
                visits.all.push(visit);
                visits.all.len() - 1
            }
        };
        visits.now = Some(index);
        self.client.requests.ends_turn();
        Ok(())
    }

    /// Takes note of queries that were answered, on the account of the organization that they were of. Whether nothing is to
    /// be sent ahead of the next transaction.
    pub(super) fn charge(&self, queries: usize) -> bool {
        let Visits { all, now } = &self.changes.visits;
        let visited = now.and_then(|index| all.get(index));
        let payer = visited.or(self.client.attendance.as_ref());
        queries > 0 && payer.is_some_and(|payer| payer.asked(queries)) || !all.is_empty()
    }
}
