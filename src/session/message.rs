//! One message of a client's on its way to a server: statement names translated, what cannot work refused.

use std::sync::Arc;

use bytes::BufMut as _;

use super::permitted::{self, MAX_NAME, MAX_STATEMENT, MAX_WHOLE, check_statement_length};
use super::prepared::{self, ClientStatements};
use super::requests::Requests;
use crate::config::PoolMode;
use crate::net::buffer::Buffer;
use crate::pool::due::{Deallocated, Due, Said, Special};
use crate::pool::server::BoundServer;
use crate::pool::statement::{Registry, Statement};
use crate::pool::switch::Switch;
use crate::tenancy::inert;
use crate::tenancy::stakes::Stake;
use crate::tenancy::statements::OWN_PREFIX;
use crate::tenancy::text::{Deallocates, Effects, Watch};
use crate::wire::frame::{HEADER, Header, split_cstr};
use crate::wire::report::Report;
use crate::wire::violation::Violation;
use crate::wire::{speak, tag};

/// What became of a message.
#[derive(PartialEq, Eq)]
pub(super) enum Taken {
    /// Dealt with, or its body streams.
    Done,
    /// Not enough of it is here.
    NeedsMore,
}

/// One message at the head of the buffer.
pub(super) struct Message<'a> {
    pub(super) header: Header,
    pub(super) requests: &'a mut Requests,
    pub(super) server: &'a mut BoundServer,
    pub(super) statements: &'a mut ClientStatements,
    pub(super) registry: &'a Registry,
}

impl Message<'_> {
    /// Moves it on, or as much of it as is here.
    ///
    /// # Errors
    /// What a server must never see.
    pub(super) fn take(&mut self, incoming: &mut Buffer) -> Result<Taken, Report> {
        match self.header.tag {
            tag::QUERY => self.take_query(incoming),
            tag::SYNC => {
                self.requests.skipping = false;
                self.stream(incoming, Some(Due::Sync))
            }
            tag::EXECUTE => {
                if let Some(which) = &self.requests.deallocates
                    && self.server.ledger().is_uncertain_what(which)
                {
                    return Ok(Taken::NeedsMore);
                }
                let closed = match self.requests.deallocates.take() {
                    Some(which) => self.deallocate(&which),
                    None => Deallocated::default(),
                };
                self.stream(incoming, Some(Due::Execute(closed)))
            }
            tag::FLUSH | tag::COPY_DATA => self.stream(incoming, None),
            tag::COPY_DONE | tag::COPY_FAIL => self.stream(incoming, Some(Due::CopyEnd)),
            tag::TERMINATE => {
                self.requests.terminated = true;
                incoming.consume(HEADER);
                Ok(Taken::Done)
            }
            _ if self.requests.mode() == PoolMode::Session => self.take_as_it_is(incoming),
            tag::PARSE => self.take_parse(incoming),
            tag::BIND => self.take_bind(incoming),
            tag::DESCRIBE | tag::CLOSE => self.take_target(incoming),
            other => Err(Violation::Unexpected(other).into()),
        }
    }

    /// On a server of its own, a client's statement names are its own too; but for ours.
    fn take_as_it_is(&mut self, incoming: &mut Buffer) -> Result<Taken, Report> {
        let due = match self.header.tag {
            tag::PARSE => {
                let here = self.body(incoming);
                if here.len() < OWN_PREFIX.len() && !self.is_whole(incoming) {
                    return self.more(incoming);
                }
                if !self.is_whole(incoming) {
                    self.requests.watch = Some(Watch::default());
                }
                if here.starts_with(OWN_PREFIX) {
                    return Ok(self.refuse(&permitted::reserved_name()));
                }
                Due::ParseAsIs
            }
            tag::BIND => {
                // What it is of was not read.
                self.server.ledger().stakes(Stake::Block);
                Due::Bind(None)
            }
            tag::DESCRIBE => Due::Describe(None),
            tag::CLOSE => Due::Close,
            other => return Err(Violation::Unexpected(other).into()),
        };
        self.stream(incoming, Some(due))
    }

    fn take_query(&mut self, incoming: &mut Buffer) -> Result<Taken, Report> {
        if !self.is_whole(incoming) {
            if self.header.frame() <= MAX_WHOLE {
                return self.more(incoming);
            }
            // What is longer than a buffer passes, watched only for what no command tag would tell.
            self.drop_unnamed();
            self.requests.watch = Some(Watch::default());
            self.server.ledger().stakes(Stake::Block);
            return self.stream(incoming, Some(Due::Query(None)));
        }
        let effects = self.requests.effects_of(self.body(incoming));
        if effects.deallocates.as_ref().is_some_and(|which| self.server.ledger().is_uncertain_what(which)) {
            return Ok(Taken::NeedsMore);
        }
        self.requests.touched.add(&effects.touched);
        self.drop_unnamed();
        self.server.ledger().stakes(effects.stake);
        if effects.leaves {
            self.server.leaves_something();
        }
        let mode = self.requests.mode();
        let is_outside = self.server.ledger().is_outside_transaction();
        if let Some(report) = permitted::refusal(mode, &effects, is_outside) {
            self.requests.refuse(self.header, &report, self.server);
            return Ok(Taken::Done);
        }
        let Some(which) = effects.deallocates.filter(|_| mode != PoolMode::Session) else {
            let body = self.body(incoming);
            let is_inert = self.server.ledger().is_quiet() && inert::read(body).is_inert;
            if self.server.ledger().switch() == Switch::Open {
                speak::query_as_batch(body, self.server.outgoing());
                self.server.ledger().push_query(Some(Special::Batch(Vec::new())), is_inert);
                incoming.consume(self.header.frame());
                return Ok(Taken::Done);
            }
            self.server.ledger().push_query(None, is_inert);
            return self.stream(incoming, None);
        };
        let closed = self.deallocate(&which);
        let is_rewritten = which != Deallocates::All && effects.statements == 1 && !closed.names.is_empty();
        let due = Due::Query(Some(Box::new(Special::Deallocates { closed, is_rewritten })));
        if !is_rewritten {
            return self.stream(incoming, Some(due));
        }
        incoming.consume(self.header.frame());
        speak::query(prepared::DEALLOCATE_ONE, self.server.outgoing());
        self.server.owe(due);
        Ok(Taken::Done)
    }

    fn deallocate(&mut self, which: &Deallocates) -> Deallocated {
        if *which == Deallocates::All {
            self.requests.tokens.forget();
        }
        self.statements.deallocate(which, self.server)
    }

    /// A simple query drops the unnamed statement: that there is none is what the client is to find.
    fn drop_unnamed(&mut self) {
        *self.server.unnamed_is_ours() = true;
        self.requests.unnamed = Effects::default();
    }

    /// Fails the batch with an error of the proxy's own in place of this message.
    fn refuse(&mut self, report: &Report) -> Taken {
        self.requests.refuse(self.header, report, self.server);
        Taken::Done
    }

    /// Passes the message on as it is, body as it comes.
    fn stream(&mut self, incoming: &mut Buffer, due: Option<Due>) -> Result<Taken, Report> {
        if let Some(due) = due {
            self.server.owe(due);
        }
        self.requests.body = Some((self.header.frame(), true));
        self.requests.stream_body(incoming, self.server);
        Ok(Taken::Done)
    }

    fn body<'b>(&self, incoming: &'b Buffer) -> &'b [u8] {
        let bytes = incoming.filled();
        &bytes[HEADER..self.header.frame().min(bytes.len())]
    }

    fn is_whole(&self, incoming: &Buffer) -> bool {
        incoming.filled().len() >= self.header.frame()
    }

    /// Sees what a statement will do when it is executed; an error if it is not to be.
    fn foresee(&mut self, name: &[u8], named: Option<&Statement>) -> Option<Report> {
        self.requests.deallocates = None;
        let reread;
        let effects = match (named, self.statements.unnamed()) {
            (Some(statement), _) if statement.outdated => return Some(prepared::outdated()),
            (Some(statement), _) if !self.requests.backslashes => {
                self.requests.touched.add(&statement.effects.touched);
                &statement.effects
            }
            (Some(statement), _) => {
                reread = self.requests.read_text(&statement.text_and_types);
                &reread
            }
            // What was parsed in this turn.
            (None, _) if name.is_empty() && *self.server.unnamed_is_ours() => &self.requests.unnamed,
            (None, Some(text)) if name.is_empty() => {
                reread = self.requests.read_text(text);
                &reread
            }
            _ => {
                self.server.ledger().stakes(Stake::Block);
                return None;
            }
        };
        self.server.ledger().stakes(effects.stake);
        if effects.leaves {
            self.server.leaves_something();
        }
        self.requests.deallocates = effects.deallocates.clone();
        permitted::refusal(self.requests.mode(), effects, self.server.ledger().is_outside_transaction())
    }

    /// Not enough is here; unless more cannot help, because the buffer has no room for it.
    fn more(&self, incoming: &Buffer) -> Result<Taken, Report> {
        if incoming.filled().len() >= MAX_WHOLE {
            return Err(Violation::Malformed(self.header.tag).into());
        }
        Ok(Taken::NeedsMore)
    }

    fn take_parse(&mut self, incoming: &mut Buffer) -> Result<Taken, Report> {
        match self.body(incoming).first() {
            None if self.header.body == 0 => return Err(Violation::Malformed(tag::PARSE).into()),
            None => return self.more(incoming),
            Some(0) => return self.take_unnamed_parse(incoming),
            Some(_) => {}
        }
        check_statement_length(self.header, incoming)?;
        match split_cstr(self.body(incoming)).map(|(name, _)| name.to_vec()) {
            Some(name) if name.len() > MAX_NAME => return Err(Violation::Malformed(tag::PARSE).into()),
            Some(name) => {
                let known = self.statements.get(&name).cloned();
                if self.is_uncertain(&name, known.as_deref()) {
                    return Ok(Taken::NeedsMore);
                }
            }
            None if !self.is_whole(incoming) && self.body(incoming).len() <= MAX_NAME => {
                return self.more(incoming);
            }
            None => return Err(Violation::Malformed(tag::PARSE).into()),
        }
        if self.is_whole(incoming) {
            let body = self.body(incoming).to_vec();
            if self.is_being_placed(&body) {
                return Ok(Taken::NeedsMore);
            }
            incoming.consume(self.header.frame());
            self.requests.parse(&body, self.server, self.statements, self.registry);
            Ok(Taken::Done)
        } else {
            Ok(self.collect(incoming))
        }
    }

    /// What is longer than a buffer is read when it is here whole.
    fn collect(&mut self, incoming: &mut Buffer) -> Taken {
        if !self.requests.collects(self.header, self.registry) {
            return self.refuse(&prepared::no_memory());
        }
        incoming.consume(HEADER);
        Taken::Done
    }

    fn take_unnamed_parse(&mut self, incoming: &mut Buffer) -> Result<Taken, Report> {
        if !self.is_whole(incoming) && self.header.frame() <= MAX_WHOLE {
            return self.more(incoming);
        }
        if !self.is_whole(incoming) && self.header.body > MAX_STATEMENT {
            // Longer ones pass as they are; they do not follow the client to another server.
            self.requests.watch = Some(Watch::default());
            self.requests.unnamed = Effects::default();
            *self.server.unnamed_is_ours() = true;
            return self.stream(incoming, Some(Due::ParseUnnamed(None)));
        }
        if !self.is_whole(incoming) {
            return Ok(self.collect(incoming));
        }
        let text_and_types = self.body(incoming)[1..].to_vec();
        let effects = self.requests.effects_of(&text_and_types);
        if effects.deallocates.as_ref().is_some_and(|which| self.server.ledger().is_uncertain_what(which)) {
            return Ok(Taken::NeedsMore);
        }
        incoming.consume(self.header.frame());
        self.requests.parse_unnamed(&text_and_types, effects, self.server, self.statements);
        Ok(Taken::Done)
    }

    /// Bind: portal, statement, and the rest, which streams.
    fn take_bind(&mut self, incoming: &mut Buffer) -> Result<Taken, Report> {
        let body = self.body(incoming);
        let names = split_cstr(body).and_then(|(portal, rest)| {
            split_cstr(rest).map(|(statement, rest)| (portal, statement, body.len() - rest.len()))
        });
        let Some((portal, statement, names_length)) = names else {
            if self.is_whole(incoming) || body.len() > 2 * MAX_NAME {
                return Err(Violation::Malformed(tag::BIND).into());
            }
            return self.more(incoming);
        };
        let known = self.statements.get(statement).cloned();
        if self.is_uncertain(statement, known.as_deref()) || self.is_doubtful(known.as_ref()) {
            return Ok(Taken::NeedsMore);
        }
        if let Some(report) = self.foresee(statement, known.as_deref()) {
            return Ok(self.refuse(&report));
        }
        self.ensure(statement, known.as_ref());
        let [prefix, server_name] = server_name(statement, known.as_deref());
        let rest = self.header.body - names_length;
        let length = 4 + portal.len() + 1 + prefix.len() + server_name.len() + 1 + rest;
        let out = self.server.outgoing();
        out.put_u8(tag::BIND);
        out.put_u32(length as u32);
        for part in [portal, &[0], prefix, server_name, &[0]] {
            out.put_slice(part);
        }
        self.server.owe(Due::Bind(known.map(|known| known.id)));
        incoming.consume(HEADER + names_length);
        self.requests.body = (rest > 0).then_some((rest, true));
        self.requests.stream_body(incoming, self.server);
        Ok(Taken::Done)
    }

    /// Describe and Close: a statement's or a portal's name.
    fn take_target(&mut self, incoming: &mut Buffer) -> Result<Taken, Report> {
        if self.header.body > MAX_NAME {
            return Err(Violation::Malformed(self.header.tag).into());
        }
        if !self.is_whole(incoming) {
            return self.more(incoming);
        }
        let body = self.body(incoming).to_vec();
        let Some((&target, rest)) = body.split_first() else {
            return Err(Violation::Malformed(self.header.tag).into());
        };
        let Some((name, [])) = split_cstr(rest) else {
            return Err(Violation::Malformed(self.header.tag).into());
        };
        let is_close = self.header.tag == tag::CLOSE;
        if target != tag::TARGET_STATEMENT {
            return self.stream(incoming, Some(if is_close { Due::Close } else { Due::Describe(None) }));
        }
        let statement = self.statements.get(name).cloned();
        if self.is_uncertain(name, statement.as_deref()) {
            return Ok(Taken::NeedsMore);
        }
        if is_close && !name.is_empty() {
            // The name lives here; the statement stays on the servers, where others may use it.
            incoming.consume(self.header.frame());
            let closed = self.statements.close(name);
            self.server.owe(Due::Said(Said::CloseComplete { closed }));
            return Ok(Taken::Done);
        }
        if is_close {
            *self.server.unnamed_is_ours() = true; // it will be gone, which is what the client wants to find
            return self.stream(incoming, Some(Due::CloseUnnamed));
        }
        if self.is_doubtful(statement.as_ref()) {
            return Ok(Taken::NeedsMore);
        }
        if statement.as_ref().is_some_and(|statement| statement.outdated) {
            return Ok(self.refuse(&prepared::outdated()));
        }
        self.ensure(name, statement.as_ref());
        let [prefix, server_name] = server_name(name, statement.as_deref());
        let out = self.server.outgoing();
        out.put_u8(self.header.tag);
        out.put_u32((4 + 1 + prefix.len() + server_name.len() + 1) as u32);
        for part in [&[target][..], prefix, server_name, &[0]] {
            out.put_slice(part);
        }
        self.server.owe(Due::Describe(statement));
        incoming.consume(self.header.frame());
        Ok(Taken::Done)
    }

    /// The same for the text of a Parse.
    fn is_being_placed(&mut self, body: &[u8]) -> bool {
        let text = split_cstr(body).map(|(_, text)| text);
        let ledger = self.server.ledger();
        ledger.is_batch_before()
            && text
                .and_then(|text| self.registry.intern(text))
                .is_some_and(|known| ledger.is_placing(known.id))
    }

    /// Whether what a name means, or whether the server has it, must wait for the answers to an earlier batch.
    fn is_uncertain(&mut self, name: &[u8], known: Option<&Statement>) -> bool {
        let ledger = self.server.ledger();
        ledger.is_uncertain(name) || known.is_some_and(|known| ledger.is_placing(known.id))
    }

    /// Whether a statement's result may be another one than its client was told, because something was altered since. The
    /// server is asked then, and what is sent next waits for the answer: once for a statement and a change.
    fn is_doubtful(&mut self, statement: Option<&Arc<Statement>>) -> bool {
        let Some(statement) = statement else { return false };
        let generation = self.registry.generation();
        if !statement.is_doubtful(generation) {
            return false;
        }
        if self.server.ledger().is_verifying(statement.id) {
            return true;
        }
        // What the server has, PostgreSQL watches itself.
        if statement.outdated || self.server.has(statement) {
            return false;
        }
        self.place(statement);
        speak::describe_statement(&statement.server_name, self.server.outgoing());
        speak::flush(self.server.outgoing());
        self.server.owe(Due::Verify(statement.clone(), generation));
        true
    }

    /// Makes sure that the server has the client's statement.
    fn ensure(&mut self, name: &[u8], known: Option<&Arc<Statement>>) {
        match known {
            _ if name.is_empty() => self.ensure_unnamed(),
            Some(statement) => self.place(statement),
            None => {}
        }
    }

    fn place(&mut self, statement: &Arc<Statement>) {
        if !self.server.will_have(statement) {
            speak::parse_raw(&statement.server_name, &statement.text_and_types, self.server.outgoing());
            self.server.owe(Due::Ensure(statement.clone()));
        }
    }

    fn ensure_unnamed(&mut self) {
        if *self.server.unnamed_is_ours() {
            return;
        }
        let drops_known = matches!(&self.requests.deallocates, Some(Deallocates::One(name))
            if self.statements.get(name).is_some());
        match self.statements.unnamed() {
            Some(_) if drops_known => prepared::parse_deallocate(self.server),
            Some(text_and_types) => speak::parse_raw(b"", text_and_types, self.server.outgoing()),
            // Whoever had the server before may have left one: the client must find none.
            None => speak::close_statement(b"", self.server.outgoing()),
        }
        self.server.owe(Due::Unnamed);
        *self.server.unnamed_is_ours() = true;
    }
}

/// The server's name for a client's statement, in two parts. Where there is none, PostgreSQL itself says so (or finds what
/// SQL PREPARE made in this transaction); names of ours are out of a client's reach.
fn server_name<'n>(name: &'n [u8], known: Option<&'n Statement>) -> [&'n [u8]; 2] {
    match known {
        Some(statement) => [b"", &statement.server_name],
        None if name.starts_with(OWN_PREFIX) => [b"?", name],
        None => [b"", name],
    }
}
