//! Token commands outside a transaction, which need no server; and what holds when a turn is over.

use std::sync::Arc;
use std::time::SystemTime;

use super::Relay;
use bytes::BytesMut;

use crate::pool::ledger::TransactionOver;
use crate::pool::server::BoundServer;
use crate::session::client::Client;
use crate::session::desk::{Held, Standing};
use crate::session::tokens::{Asked, Meaning};
use crate::session::turn::Changes;
use crate::tenancy::blocks::Block;
use crate::tenancy::settings::READ_ONLY;
use crate::wire::frame::{HEADER, Header, peek, split_cstr};
use crate::wire::report::{Report, Sqlstate};
use crate::wire::{speak, tag};

/// A batch of the extended protocol that began with a switch of tokens.
pub(super) struct Batch {
    /// What holds if it fails.
    before: Held,
    /// What holds if it does not.
    after: Held,
}

impl Relay {
    /// What a message at the head of what an idle client sent means, if it needs no server.
    ///
    /// # Errors
    /// The client breaks the protocol.
    pub(super) fn desk_matter(&mut self) -> Result<Option<(Header, Meaning)>, Report> {
        let bytes = self.client.incoming.filled();
        let Some(header) = peek(bytes)? else { return Ok(None) };
        if header.tag == tag::SYNC {
            // Nothing of its batch has gone to a server.
            let mut ready = BytesMut::new();
            speak::ready_for_query(&mut ready);
            return Ok(Some((header, Meaning::Said(ready))));
        }
        let (standard_strings, has_context) =
            (self.client.has_standard_strings(), self.standing == Standing::Good);
        let is_unnamed = header.tag == tag::QUERY || bytes.get(HEADER) == Some(&0);
        let Some(meaning) = self.client.requests.tokens.meaning(header, bytes, standard_strings, has_context)
        else {
            return Ok(None);
        };
        if is_unnamed && matches!(header.tag, tag::QUERY | tag::PARSE) {
            self.client.statements.remember_unnamed(None);
        }
        if let Meaning::Asked(asked) = &meaning
            && !asked.is_simple
            && !self.is_followed_plainly(header)
        {
            // What follows may begin or end transactions: PostgreSQL must know of the switch.
            if let Some(refusal) = self.client.desk.refusal(&self.holds(), SystemTime::now()) {
                tracing::debug!(reason = refusal.message, "a transaction begins by bringing a token");
                if self.standing == Standing::Good {
                    self.put_on(Held::refused()); // its token has expired, for good
                }
                self.brings_token = true;
            }
            return Ok(None);
        }
        Ok(Some((header, meaning)))
    }

    /// Whether nothing but queries follows in this batch: nothing that could begin or end a transaction.
    fn is_followed_plainly(&self, header: Header) -> bool {
        let Client { incoming, requests, statements, .. } = &self.client;
        let generation = self.pool.registry().generation();
        let rest = incoming.filled().get(header.frame()..);
        self.client.has_standard_strings()
            && rest.is_some_and(|rest| requests.is_plain_batch(rest, statements, generation))
    }

    /// Deals with it.
    ///
    /// # Errors
    /// The client is gone.
    pub(super) async fn at_desk(&mut self, header: Header, meaning: Meaning) -> Result<(), Report> {
        match meaning {
            Meaning::More => self.more().await?,
            Meaning::Wrong(report) => {
                self.batch_over(true);
                self.refuse(&report).await?;
            }
            Meaning::Said(answer) => {
                self.client.incoming.consume(header.frame());
                self.client.outgoing.extend_from_slice(&answer);
                self.is_at_desk = true;
                if header.tag == tag::SYNC {
                    self.batch_over(false);
                }
            }
            Meaning::Asked(asked) => {
                self.client.incoming.consume(header.frame());
                self.is_at_desk = !asked.is_simple;
                self.client.desk.fetches_keys_for(&asked.value).await;
                if let Err(report) = self.switch_token(&asked) {
                    self.batch_over(true);
                    if asked.is_simple {
                        report.error(&mut self.client.outgoing);
                        speak::ready_for_query(&mut self.client.outgoing);
                    } else {
                        self.refuse(&report).await?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Executes a token command.
    fn switch_token(&mut self, asked: &Asked) -> Result<(), Report> {
        if asked.is_simple {
            self.batch_over(false);
        }
        let judged = self.client.desk.judge(&asked.value);
        let judged = judged.and_then(|held| held.suits(self.pool.mode(), self.terms.is_read_only()));
        let held = match judged {
            Ok(held) => held,
            Err(denied) => {
                if denied.is_refused {
                    self.batch = None;
                    self.put_on(Held::refused());
                }
                return Err(denied.report);
            }
        };
        // Alone outside of a transaction, it changes nothing.
        if !(asked.is_simple && asked.is_local) {
            self.attend(&held)?;
        }
        let out = &mut self.client.outgoing;
        if asked.is_simple {
            if asked.is_set_local() {
                Report::new(Sqlstate::NO_TRANSACTION, "SET LOCAL can only be used in transaction blocks")
                    .warning(out);
            }
            out.extend_from_slice(&asked.answer());
            speak::ready_for_query(out);
            if !asked.is_local {
                self.put_on(held);
            }
            return Ok(());
        }
        out.extend_from_slice(&asked.answer());
        let now = self.holds();
        let batch = self.batch.get_or_insert_with(|| Batch { before: now.clone(), after: now });
        if !asked.is_local {
            batch.after = held.clone();
        }
        self.put_on(held);
        Ok(())
    }

    /// What the client's next transaction runs under.
    fn holds(&self) -> Held {
        Held { context: self.terms.shared_context().cloned(), standing: self.standing }
    }

    /// Counts the client as one of the organization that it is about to be of.
    ///
    /// # Errors
    /// That has as many as it may (53300).
    fn attend(&mut self, held: &Held) -> Result<(), Report> {
        let Some(organization) = held.context.as_ref().map(|context| context.organization()) else {
            return Ok(());
        };
        if !self.client.attendance.as_ref().is_some_and(|attendance| attendance.is_of(organization)) {
            self.client.attendance = Some(self.gate.accounts.enter(organization)?);
        }
        Ok(())
    }

    fn put_on(&mut self, held: Held) {
        self.standing = held.standing;
        match held.context.as_ref().map(|context| context.organization()) {
            None => self.client.attendance = None,
            // Within a transaction it has come by another token; back, by one that was undone.
            Some(organization) => {
                let is_there =
                    self.client.attendance.as_ref().is_some_and(|attendance| attendance.is_of(organization));
                if !is_there {
                    self.client.attendance = Some(self.gate.accounts.come_in(organization));
                }
            }
        }
        let now = self.terms.shared_context().map(Arc::as_ptr);
        if now != held.context.as_ref().map(Arc::as_ptr) {
            let was_read_only = self.terms.is_read_only();
            self.terms = self.terms.with_context(held.context);
            if was_read_only && !self.terms.is_read_only() {
                self.client.reported.is_as_at_start(READ_ONLY, &mut self.client.outgoing);
            }
            if let Some(server) = &mut self.held {
                server.is_to_be_bound_anew();
            }
        }
    }

    /// The batch that began at the desk is over, there or on a server.
    pub(super) fn batch_over(&mut self, has_failed: bool) {
        self.is_at_desk = false;
        self.client.requests.tokens.forget_portals();
        if let Some(Batch { before, after }) = self.batch.take() {
            self.put_on(if has_failed { before } else { after });
        }
    }

    /// Why a turn may not begin, if it may not.
    pub(super) fn refusal(&self) -> Option<Report> {
        let refusal = self.client.desk.refusal(&self.holds(), SystemTime::now())?;
        let may_begin = self.standing == Standing::Missing && self.begins();
        (!may_begin).then_some(refusal)
    }

    /// Whether the client begins a transaction, in which it may bring its token.
    fn begins(&self) -> bool {
        let bytes = self.client.incoming.filled();
        let Ok(Some(header)) = peek(bytes) else { return false };
        let Some(body) = bytes.get(HEADER..header.frame()) else { return false };
        let text = match header.tag {
            tag::QUERY => Some(body),
            tag::PARSE => split_cstr(body).map(|(_, text)| text),
            tag::BIND => {
                let named = split_cstr(body).and_then(|(_, rest)| split_cstr(rest));
                let statement = named.and_then(|(name, _)| self.client.statements.get(name));
                statement.map(|statement| &*statement.text_and_types)
            }
            _ => None,
        };
        text.and_then(Block::of) == Some(Block::Begins)
    }

    /// What holds when a turn has ended, if that is not clear. `in_doubt`: the server must not be asked.
    pub(super) async fn settled(
        &mut self,
        server: &mut BoundServer,
        over: &TransactionOver,
        changes: &Changes,
        in_doubt: bool,
    ) -> Option<Held> {
        if !self.is_unsettled(changes) {
            return None;
        }
        if in_doubt {
            return Some(Held::refused());
        }
        // Boxed: most turns have no such question.
        Box::pin(self.settle_token(server, over, changes)).await
    }

    /// Whether it is not clear what holds when a turn has ended.
    fn is_unsettled(&self, changes: &Changes) -> bool {
        let at_sign_in = &self.client.desk.at_sign_in().context;
        let is_else = self.terms.shared_context().map(Arc::as_ptr) != at_sign_in.as_ref().map(Arc::as_ptr);
        changes.refused || !changes.switched.is_empty() || changes.resets && is_else
    }

    /// What holds when such a turn has ended; `None` if nothing has changed.
    async fn settle_token(
        &mut self,
        server: &mut BoundServer,
        over: &TransactionOver,
        changes: &Changes,
    ) -> Option<Held> {
        // It may have a context that its next client's terms do not tell: also where a later token was refused.
        server.leaves_something();
        if changes.refused {
            return Some(Held::refused());
        }
        self.hand_over().await;
        let Ok(Some(seal)) = server.seal(over).await else {
            tracing::warn!("what a client's token commands left could not be asked for; it has no context");
            return Some(Held::refused());
        };
        let found = changes.switched.iter().rev().find(|(given, _)| *given == seal);
        match found {
            Some((_, held)) => Some(held.clone()),
            None if changes.resets && seal.is_empty() => Some(self.client.desk.at_sign_in().clone()),
            None => None,
        }
    }

    /// A turn has ended: what holds from now on.
    pub(super) fn turn_over(&mut self, found: Option<Held>, has_failed: bool) {
        let is_undone = has_failed && self.batch.is_some();
        self.batch_over(has_failed);
        if let Some(held) = found.filter(|held| !is_undone || held.standing == Standing::Refused) {
            self.put_on(held);
        }
    }
}
