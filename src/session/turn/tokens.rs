//! Token commands within a transaction.

use std::time::Instant;

use super::Turn;
use crate::pool::due::Due;
use crate::session::bar::Bar;
use crate::session::desk::{Denied, Standing};
use crate::session::tokens::Asked;
use crate::wire::report::{Report, Sqlstate};
use crate::wire::speak;

/// Switches for the session that are remembered of one transaction.
const MAX_SWITCHES: usize = 64;

impl Turn<'_> {
    /// Who sends without a pause begins one transaction after another.
    ///
    /// # Errors
    /// None may begin any more, and one does.
    pub(super) fn goes_on(&mut self) -> Result<(), Report> {
        if !self.server.ledger().is_in_transaction() {
            self.begun = Instant::now();
            if let Some(limits) = &mut self.limits {
                limits.begins(self.begun);
            }
        }
        let Some(passing) = self.client.desk.passing(&self.under) else { return Ok(()) };
        // What was sent ahead is at the server by now, and cannot be taken back.
        if let Some(report) = passing.filter(|_| !self.server.ledger().is_in_transaction()) {
            return Err(self.ends(report));
        }
        self.client.requests.ends_turn();
        Ok(())
    }

    /// Puts the server under what a token command asks for, from this message on: as part of the client's transaction, so
    /// that it is undone where PostgreSQL undoes what stands around it.
    ///
    /// # Errors
    /// There is no key to seal with, or the transaction switches too often.
    pub(super) fn switch_token(&mut self, asked: &Asked) -> Result<(), Report> {
        let judged = self.client.desk.judge(&asked.value);
        let is_read_only = self.client.requests.is_under_read_only();
        let judged = judged.and_then(|held| held.suits(self.pool.mode(), is_read_only));
        let held = match judged {
            Ok(held) => held,
            Err(denied) => {
                self.deny(asked, &denied);
                return Ok(());
            }
        };
        // Any of them may hold in the end, by a savepoint.
        if !asked.is_local && self.changes.switched.len() == MAX_SWITCHES {
            let report =
                Report::new(Sqlstate::LIMIT_EXCEEDED, "too many switches of tokens in one transaction");
            self.deny(asked, &Denied { report, is_refused: false });
            return Ok(());
        }
        if let Err(report) = self.visits(&held) {
            self.deny(asked, &Denied { report, is_refused: false });
            return Ok(());
        }
        let seal = self.pool.put_under(
            &mut self.server,
            held.context.as_deref(),
            asked.is_local,
            &asked.answer(),
        )?;
        if asked.is_simple {
            speak::sync(self.server.outgoing());
            self.server.owe(Due::Sync);
        }
        if let Some(context) = held.context.as_deref().filter(|context| context.actor().is_some()) {
            self.client.desk.acts(context);
            // Also behind a savepoint that undoes it.
            self.client.requests.is_read_only(true);
        }
        self.under.extend(held.context.clone());
        if !asked.is_local {
            self.changes.switched.push((seal, held.clone()));
        }
        match held.standing {
            Standing::Missing => self.client.requests.bar(Some(Bar::Missing)),
            _ => self.client.requests.lift_bar(),
        }
        Ok(())
    }

    /// The transaction fails, and nothing more runs in it.
    fn deny(&mut self, asked: &Asked, denied: &Denied) {
        let requests = &mut self.client.requests;
        if asked.is_simple {
            requests.say_query_error(&denied.report, &mut self.server);
        } else {
            requests.say_error(&denied.report, &mut self.server);
        }
        if denied.is_refused {
            requests.bar(Some(Bar::Refused));
            self.changes.refused = true;
        }
    }
}
