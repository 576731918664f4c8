//! A client's messages on their way to a server: headers are scanned, statement names translated, bodies streamed.
//!
//! Only what names a prepared statement is read further than five bytes. Nothing of what is refused reaches the server.

use bytes::BytesMut;

use super::bar::Bar;
use super::guarded::{Guarded, Judged};
use super::message::{Message, Taken};
use super::permitted::{self, HIGH_WATER, MAX_OUTSTANDING, MAX_TEXTS, check_known, check_statement_length};
use super::prepared::{self, ClientStatements};
use super::tokens::{self, Asked, Meaning, TokenStatements};
use crate::config::PoolMode;
use crate::net::buffer::Buffer;
use crate::pool::budget::Kept;
use crate::pool::due::{Due, Said, Special};
use crate::pool::server::BoundServer;
use crate::pool::statement::Registry;
use crate::pool::switch::Switch;
use crate::tenancy::text::{Deallocates, Effects, Touched, Watch};
use crate::tenancy::token_command::Misplaced;
use crate::wire::frame::{HEADER, Header, peek, split_cstr};
use crate::wire::report::Report;
use crate::wire::violation::Violation;
use crate::wire::{speak, tag};

/// The state of the scan between reads.
#[derive(Default)]
pub struct Requests {
    /// Bytes of the current message still to come, and whether the server gets them.
    pub(super) body: Option<(usize, bool)>,
    /// A Parse that is longer than a buffer, being collected.
    pub(super) collecting: Option<(usize, Vec<u8>, Kept)>,
    /// The batch has failed: as the server does, skip everything up to Sync.
    pub(super) skipping: bool,
    /// Past [`MAX_OUTSTANDING`], the server was asked to answer without waiting for a Sync.
    flushed: bool,
    /// The server was asked for the answers that a token command waits for.
    hurried: bool,
    /// Terminate was read.
    pub(super) terminated: bool,
    /// What the texts so far do to the client's settings.
    pub(super) touched: Touched,
    /// Backslashes in the client's string constants are escapes: `standard_conforming_strings` is off.
    pub(super) backslashes: bool,
    /// A text that is longer than a buffer, while it passes.
    pub(super) watch: Option<Watch>,
    /// What the unnamed statement does that was parsed in this turn.
    pub(super) unnamed: Effects,
    /// The unnamed portal drops prepared statements when it is executed.
    pub(super) deallocates: Option<Deallocates>,
    /// What it prepared that switches its token.
    pub(super) tokens: TokenStatements,
    /// A token command that is to be executed now, before anything that follows it.
    pub(super) asked: Option<Asked>,
    /// It has no context.
    pub(super) bar: Option<Bar>,
    /// Since then it has parsed an unnamed statement that may run without.
    pub(super) has_admitted_unnamed: bool,
    /// Portals of what may run without.
    pub(super) admitted_portals: Vec<Box<[u8]>>,
    /// A token was brought that lifted the bar, if the server takes it.
    pub(super) is_lifting: bool,
    /// What it may not say of the context's settings.
    pub(super) guarded: Guarded,
    /// The context is that of the first batch alone, or depends on it.
    is_one_batch: bool,
    /// A text was cut off that must not reach the server.
    is_cut_off: bool,
    /// Something was sent in this turn.
    has_carried: bool,
    /// How long the client keeps its server.
    mode: PoolMode,
}

/// What the first bytes of an idle client ask for.
#[derive(Debug, PartialEq, Eq)]
pub enum Wants {
    /// A whole message (or a buffer full of it) is there that needs a server.
    Server,
    /// More bytes first: a server is not held for half a message.
    More,
    /// Terminate.
    Goodbye,
}

impl Requests {
    /// The scan of a client's messages that keeps its server as long as `mode` says.
    pub fn new(mode: PoolMode) -> Self {
        Self { mode, ..Self::default() }
    }

    /// How long the client keeps its server.
    pub fn mode(&self) -> PoolMode {
        self.mode
    }

    /// Whether the client said Terminate.
    pub fn is_terminated(&self) -> bool {
        self.terminated
    }

    /// Whether a token command is to be executed before anything else is carried.
    #[cfg(fuzzing)]
    pub fn has_asked(&self) -> bool {
        self.asked.is_some()
    }

    /// Whether no message is half read.
    pub fn is_between_messages(&self) -> bool {
        self.body.is_none() && self.collecting.is_none() && !self.skipping
    }

    /// The server has failed the batch and skips the rest of it.
    pub fn skip_to_sync(&mut self) {
        self.skipping = true;
    }

    /// A turn begins: what earlier texts set is past. Tells how this client's string constants are to be read, and whether
    /// its context may be another one behind its first batch.
    pub fn begin(&mut self, standard_strings: bool, is_one_batch: bool) {
        self.touched.begin();
        self.backslashes = !standard_strings;
        (self.is_one_batch, self.has_carried, self.is_lifting) = (is_one_batch, false, false);
        self.hurried = false;
    }

    /// Nothing more may begin in this turn: what is sent next waits for another one.
    pub fn ends_turn(&mut self) {
        self.is_one_batch = true;
    }

    /// Whether what is sent next must wait until everything before it is answered, or for another turn: under which
    /// context it is to run is not known yet.
    fn is_in_lockstep(&mut self, server: &mut BoundServer) -> bool {
        let is_at_end =
            self.has_carried && self.is_between_messages() && server.ledger().is_between_batches();
        if !is_at_end || !(self.is_one_batch || self.is_lifting || self.bar.is_some()) {
            return false;
        }
        let is_held = server.ledger().is_waiting() || server.ledger().over().is_some();
        self.is_one_batch &= is_held;
        is_held
    }

    /// What the texts of this turn do to the client's settings.
    pub fn touched(&self) -> &Touched {
        &self.touched
    }

    /// What the text at the start of a message's body does to the session.
    pub(super) fn effects_of(&self, body: &[u8]) -> Effects {
        Effects::of(split_cstr(body).map_or(body, |(text, _)| text), !self.backslashes)
    }

    /// The same, of a text that is about to run.
    pub(super) fn read_text(&mut self, body: &[u8]) -> Effects {
        let effects = self.effects_of(body);
        self.touched.add(&effects.touched);
        effects
    }

    /// Looks at what an idle client sent, without a server.
    ///
    /// # Errors
    /// What a server must never see.
    pub fn wants(&mut self, incoming: &mut Buffer) -> Result<Wants, Report> {
        loop {
            if !self.skip_body(incoming) {
                return Ok(Wants::More);
            }
            let Some(header) = peek(incoming.filled())? else { return Ok(Wants::More) };
            match header.tag {
                tag::TERMINATE => return Ok(Wants::Goodbye),
                // Outside a COPY, PostgreSQL ignores copy data; a Flush has nothing to flush.
                tag::COPY_DATA | tag::COPY_DONE | tag::COPY_FAIL | tag::FLUSH => {
                    self.body = Some((header.frame(), false));
                }
                _ => {
                    check_known(header)?;
                    check_statement_length(header, incoming)?;
                    let whole = incoming.filled().len() >= header.frame() || incoming.is_full();
                    return Ok(if whole { Wants::Server } else { Wants::More });
                }
            }
        }
    }

    /// Moves what the client sent to the server's queue.
    ///
    /// # Errors
    /// What a server must never see: the client is refused and both connections close.
    pub fn carry(
        &mut self,
        incoming: &mut Buffer,
        server: &mut BoundServer,
        statements: &mut ClientStatements,
        registry: &Registry,
    ) -> Result<(), Report> {
        while !self.terminated && server.outgoing().len() < HIGH_WATER {
            // What nobody gets is dropped, also while nothing may be sent.
            if matches!(self.body, Some((_, false))) && !self.skip_body(incoming) {
                return self.cut_off();
            }
            if server.ledger().switch().is_held() || self.is_stalled(server) || self.is_in_lockstep(server) {
                return Ok(());
            }
            if self.collecting.is_some() {
                let Some(message) = self.collect(incoming) else { return Ok(()) };
                self.take_collected(&message, server, statements, registry);
                continue;
            }
            if !self.stream_body(incoming, server) {
                return self.cut_off();
            }
            let Some(header) = peek(incoming.filled())? else { return Ok(()) };
            check_known(header)?;
            if self.skipping && !matches!(header.tag, tag::SYNC | tag::TERMINATE) {
                self.body = Some((header.frame(), false));
                self.hurried = false;
                continue;
            }
            let taken = self.take_token(header, incoming, server, statements);
            self.hurried &= taken == Some(Taken::NeedsMore);
            match taken {
                Some(Taken::Done) if self.asked.is_some() => return Ok(()),
                Some(Taken::Done) => continue,
                Some(Taken::NeedsMore) => return Ok(()),
                None => {}
            }
            let text_of = |name: &[u8]| statements.get(name).map(|statement| &*statement.text_and_types);
            if let Some(report) = self.barred(header, incoming.filled(), text_of) {
                self.refuse(header, &report, server);
                continue;
            }
            match self.judge(header, incoming.filled(), statements) {
                Judged::Passes => {}
                Judged::NeedsMore => return Ok(()),
                Judged::Refused(report) => {
                    self.refuse(header, &report, server);
                    continue;
                }
                Judged::Collect => {
                    self.has_carried = true;
                    if !self.collects(header, registry) {
                        self.refuse(header, &prepared::no_memory(), server);
                        continue;
                    }
                    incoming.consume(HEADER);
                    self.guarded.collects_query = true;
                    continue;
                }
            }
            self.has_carried = true;
            let mut message = Message { header, requests: self, server, statements, registry };
            let taken = message.take(incoming)?;
            self.cut_off()?;
            if taken == Taken::NeedsMore {
                return Ok(());
            }
        }
        Ok(())
    }

    /// A text that is longer than a buffer would bring a token to the server: both connections end before it does.
    fn cut_off(&self) -> Result<(), Report> {
        if self.is_cut_off { Err(tokens::misplaced_report(Misplaced::TooLong)) } else { Ok(()) }
    }

    /// Whether too many answers are outstanding. PostgreSQL may keep answers back until a Sync: it is told not to.
    fn is_stalled(&mut self, server: &mut BoundServer) -> bool {
        if server.ledger().outstanding() < MAX_OUTSTANDING && server.ledger().texts() < MAX_TEXTS {
            self.flushed = false;
            return false;
        }
        // Between a message's header and its end nothing can be said.
        if self.body.is_some() {
            return false;
        }
        if !self.flushed {
            speak::flush(server.outgoing());
            self.flushed = true;
        }
        true
    }

    /// Drops the rest of a message that nobody gets; false if more of it is to come.
    fn skip_body(&mut self, incoming: &mut Buffer) -> bool {
        let Some((left, _)) = self.body else { return true };
        let here = incoming.filled().len().min(left);
        incoming.consume(here);
        self.body = (left > here).then_some((left - here, false));
        self.body.is_none()
    }

    pub(super) fn stream_body(&mut self, incoming: &mut Buffer, server: &mut BoundServer) -> bool {
        let Some((left, is_servers)) = self.body else { return true };
        if is_servers {
            let here = incoming.filled().len().min(left);
            let passing = &incoming.filled()[..here];
            server.carry(passing);
            if self.watch.as_mut().is_some_and(|watch| watch.sees(passing)) {
                self.touched.opaque = true;
                server.leaves_something();
            }
            if self.watch.as_ref().is_some_and(|watch| watch.names_token) {
                // PostgreSQL executes nothing before the end of it, which it never gets.
                self.is_cut_off = true;
                return false;
            }
            if here == left {
                self.watch = None;
            }
        }
        self.skip_body(incoming);
        if let Some((left, _)) = self.body {
            self.body = Some((left, is_servers));
        }
        self.body.is_none()
    }

    /// Begins to collect a message, if all clients together do not have too much; it is counted as announced.
    pub(super) fn collects(&mut self, header: Header, registry: &Registry) -> bool {
        self.collecting = registry.keep(header.body).map(|kept| (header.body, Vec::new(), kept));
        self.collecting.is_some()
    }

    /// Collects a Parse that is longer than a buffer. The vector grows by what arrived, not by what was announced.
    fn collect(&mut self, incoming: &mut Buffer) -> Option<Vec<u8>> {
        let (wanted, bytes, _) = self.collecting.as_mut()?;
        let here = incoming.filled().len().min(*wanted - bytes.len());
        bytes.extend_from_slice(&incoming.filled()[..here]);
        incoming.consume(here);
        if bytes.len() < *wanted {
            return None;
        }
        self.collecting.take().map(|(_, bytes, _)| bytes)
    }

    /// What is longer than a buffer is here whole.
    fn take_collected(
        &mut self,
        message: &[u8],
        server: &mut BoundServer,
        statements: &mut ClientStatements,
        registry: &Registry,
    ) {
        if std::mem::take(&mut self.guarded.collects_query) {
            self.take_collected_query(message, server);
        } else if self.skipping {
            // As the server does.
        } else if tokens::is_in_parse(message, !self.backslashes) {
            self.say_error(&tokens::misplaced_report(Misplaced::TooLong), server);
        } else if let Some(report) = self.judge_parse(message) {
            self.say_error(&report, server);
        } else if let Some((0, text_and_types)) = message.split_first() {
            let effects = self.effects_of(text_and_types);
            self.parse_unnamed(text_and_types, effects, server, statements);
        } else {
            self.parse(message, server, statements, registry);
        }
    }

    /// A Parse of the unnamed statement that is here whole.
    pub(super) fn parse_unnamed(
        &mut self,
        text_and_types: &[u8],
        effects: Effects,
        server: &mut BoundServer,
        statements: &ClientStatements,
    ) {
        self.touched.add(&effects.touched);
        if let Some(report) = permitted::refusal_at_parse(self.mode, &effects) {
            return self.say_error(&report, server);
        }
        let is_rewritten = matches!(&effects.deallocates, Some(Deallocates::One(name))
            if statements.get(name).is_some());
        self.unnamed = effects;
        *server.unnamed_is_ours() = true;
        if is_rewritten {
            prepared::parse_deallocate(server);
        } else {
            speak::parse_raw(b"", text_and_types, server.outgoing());
        }
        server.owe(Due::ParseUnnamed(Some(text_and_types.into())));
    }

    /// A named Parse whose body is here whole, and whose name's meaning is certain.
    pub(super) fn parse(
        &mut self,
        body: &[u8],
        server: &mut BoundServer,
        statements: &mut ClientStatements,
        registry: &Registry,
    ) {
        let Some((name, text_and_types)) = split_cstr(body) else {
            return self.say_error(&Violation::Malformed(tag::PARSE).into(), server);
        };
        let Some(statement) = registry.intern(text_and_types) else {
            return self.say_error(&prepared::no_memory(), server);
        };
        if let Some(report) = permitted::refusal_at_parse(self.mode, &statement.effects) {
            return self.say_error(&report, server);
        }
        if let Err(refused) = statements.name(name, statement.clone()) {
            // What is wrong with the text itself comes first, as on PostgreSQL.
            prepared::try_out(text_and_types, Due::Aside, server);
            return self.say_error(&refused.report(name), server);
        }
        prepared::pass_parse(name, text_and_types, statement, server);
    }

    /// What has to do with tokens stays here. `None` if the message has not.
    fn take_token(
        &mut self,
        header: Header,
        incoming: &mut Buffer,
        server: &mut BoundServer,
        statements: &mut ClientStatements,
    ) -> Option<Taken> {
        // A transaction that failed with its token takes no other one.
        if server.ledger().is_in_copy() || self.bar == Some(Bar::Refused) {
            return None;
        }
        let has_context = self.bar.is_none();
        let meaning = self.tokens.meaning(header, incoming.filled(), !self.backslashes, has_context);
        if let Some(name) = self.tokens.other.take() {
            self.touched.sets(name);
        }
        let meaning = meaning?;
        match meaning {
            Meaning::More => return Some(Taken::NeedsMore),
            // A simple query is a batch of its own; outside a transaction, it needs no server.
            Meaning::Asked(_) if header.tag == tag::QUERY && server.ledger().is_waiting() => {
                if !server.ledger().is_between_batches() && !self.hurried {
                    speak::flush(server.outgoing()); // nobody else asks for the answers
                    self.hurried = true;
                }
                return Some(Taken::NeedsMore);
            }
            Meaning::Asked(_) if header.tag == tag::QUERY && server.ledger().over().is_some() => {
                return Some(Taken::NeedsMore);
            }
            Meaning::Said(answer) => server.owe(Due::Said(Said::Own(answer.as_ref().into()))),
            Meaning::Asked(asked) => self.asked = Some(asked),
            Meaning::Wrong(report) => {
                self.refuse(header, &report, server);
                return Some(Taken::Done);
            }
        }
        if header.tag == tag::PARSE && incoming.filled().get(HEADER) == Some(&0) {
            // It takes the place of whatever the client had as its unnamed statement.
            statements.remember_unnamed(None);
            *server.unnamed_is_ours() = false;
            self.unnamed = Effects::default();
        }
        self.has_carried = true;
        incoming.consume(header.frame());
        Some(Taken::Done)
    }

    /// Refuses a message, and what depends on it, with an error of the proxy's own.
    pub(super) fn refuse(&mut self, header: Header, report: &Report, server: &mut BoundServer) {
        self.has_carried = true;
        self.body = Some((header.frame(), false));
        if header.tag == tag::QUERY {
            self.say_query_error(report, server)
        } else {
            self.say_error(report, server)
        }
    }

    /// Fails a simple query with an error of the proxy's own. What cannot succeed fails on the server as well, so that
    /// the transaction does.
    pub(super) fn say_query_error(&mut self, report: &Report, server: &mut BoundServer) {
        let mut bytes = BytesMut::new();
        report.error(&mut bytes);
        if server.ledger().switch() == Switch::Open {
            // It shares a batch with the binding, and that has to end.
            speak::describe_nothing(server.outgoing());
            server.owe(Due::Provoked(bytes.as_ref().into()));
            speak::sync(server.outgoing());
            return server.owe(Due::Sync);
        }
        speak::query(permitted::REFUSED, server.outgoing());
        server.owe(Due::Query(Some(Box::new(Special::Refused(bytes.as_ref().into())))));
    }

    /// Fails the batch with an error of the proxy's own. The server is made to fail it too, so that what the batch did
    /// before is rolled back.
    pub(super) fn say_error(&mut self, report: &Report, server: &mut BoundServer) {
        let mut bytes = BytesMut::new();
        report.error(&mut bytes);
        speak::describe_nothing(server.outgoing());
        server.owe(Due::Provoked(bytes.as_ref().into()));
        self.skipping = true;
    }
}
