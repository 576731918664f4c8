//! A client's messages on their way to a server: headers are scanned, statement names translated, bodies streamed.
//!
//! Only what names a prepared statement is read further than five bytes. Nothing of what is refused reaches the server.

use bytes::BytesMut;

use super::permitted::{HIGH_WATER, MAX_OUTSTANDING, MAX_TEXTS, check_known, check_statement_length};
use super::prepared::{self, ClientStatements};
use crate::net::buffer::{BUFFER_SIZE, Buffer};
use crate::pool::ledger::{Due, Said};
use crate::pool::server::BoundServer;
use crate::pool::statement::Registry;
use crate::tenancy::statements::OWN_PREFIX;
use crate::tenancy::text::Touched;
use crate::wire::frame::{HEADER, Header, peek, split_cstr};
use crate::wire::report::Report;
use crate::wire::violation::Violation;
use crate::wire::{speak, tag};

/// A portal's or statement's name at most; PostgreSQL's own limit for identifiers is 63.
const MAX_NAME: usize = 1024;

/// A message is remembered or rewritten in one piece up to this size.
const MAX_WHOLE: usize = BUFFER_SIZE - 1024;

/// The state of the scan between reads.
#[derive(Default)]
pub struct Requests {
    /// Bytes of the current message still to come, and whether the server gets them.
    body: Option<(usize, bool)>,
    /// A Parse that is longer than a buffer, being collected.
    collecting: Option<(usize, Vec<u8>)>,
    /// The batch has failed: as the server does, skip everything up to Sync.
    skipping: bool,
    /// Past [`MAX_OUTSTANDING`], the server was asked to answer without waiting for a Sync.
    flushed: bool,
    /// Terminate was read.
    terminated: bool,
    /// What the texts so far do to the client's settings.
    touched: Touched,
    /// Backslashes in the client's string constants are escapes: `standard_conforming_strings` is off.
    backslashes: bool,
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
    /// Whether the client said Terminate.
    pub fn is_terminated(&self) -> bool {
        self.terminated
    }

    /// Whether no message is half read.
    pub fn is_between_messages(&self) -> bool {
        self.body.is_none() && self.collecting.is_none() && !self.skipping
    }

    /// The server has failed the batch and skips the rest of it.
    pub fn skip_to_sync(&mut self) {
        self.skipping = true;
    }

    /// A turn begins: what earlier texts set is past. Tells how this client's string constants are to be read.
    pub fn begin(&mut self, standard_strings: bool) {
        self.touched.begin();
        self.backslashes = !standard_strings;
    }

    /// What the texts of this turn do to the client's settings.
    pub fn touched(&self) -> &Touched {
        &self.touched
    }

    fn read_text(&mut self, body: &[u8]) {
        let text = split_cstr(body).map_or(body, |(text, _)| text);
        self.touched.read(text, !self.backslashes);
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
            if self.is_stalled(server) {
                return Ok(());
            }
            if self.collecting.is_some() {
                match self.collect(incoming) {
                    Some(_) if self.skipping => {}
                    Some(message) => self.parse(&message, server, statements, registry),
                    None => return Ok(()),
                }
                continue;
            }
            if !self.stream_body(incoming, server) {
                return Ok(());
            }
            let Some(header) = peek(incoming.filled())? else { return Ok(()) };
            check_known(header)?;
            if self.skipping && !matches!(header.tag, tag::SYNC | tag::TERMINATE) {
                self.body = Some((header.frame(), false));
                continue;
            }
            let mut message = Message { header, requests: self, server, statements, registry };
            if message.take(incoming)? == Taken::NeedsMore {
                return Ok(());
            }
        }
        Ok(())
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

    fn stream_body(&mut self, incoming: &mut Buffer, server: &mut BoundServer) -> bool {
        let Some((left, is_servers)) = self.body else { return true };
        if is_servers {
            let here = incoming.filled().len().min(left);
            server.carry(&incoming.filled()[..here]);
        }
        self.skip_body(incoming);
        if let Some((left, _)) = self.body {
            self.body = Some((left, is_servers));
        }
        self.body.is_none()
    }

    /// Collects a Parse that is longer than a buffer. The vector grows by what arrived, not by what was announced.
    fn collect(&mut self, incoming: &mut Buffer) -> Option<Vec<u8>> {
        let (wanted, bytes) = self.collecting.as_mut()?;
        let here = incoming.filled().len().min(*wanted - bytes.len());
        bytes.extend_from_slice(&incoming.filled()[..here]);
        incoming.consume(here);
        if bytes.len() < *wanted {
            return None;
        }
        self.collecting.take().map(|(_, bytes)| bytes)
    }

    /// A named Parse whose body is here whole, and whose name's meaning is certain.
    fn parse(
        &mut self,
        body: &[u8],
        server: &mut BoundServer,
        statements: &mut ClientStatements,
        registry: &Registry,
    ) {
        let Some((name, text_and_types)) = split_cstr(body) else {
            return self.say_error(&Violation::Malformed(tag::PARSE).into(), server);
        };
        let statement = registry.intern(text_and_types);
        if let Err(refused) = statements.name(name, statement.clone()) {
            // What is wrong with the text itself comes first, as on PostgreSQL.
            prepared::try_out(text_and_types, Due::Aside, server);
            return self.say_error(&refused.report(name), server);
        }
        prepared::pass_parse(name, text_and_types, statement, server);
    }

    /// Fails the batch with an error of the proxy's own. The server is made to fail it too, so that what the batch did
    /// before is rolled back.
    fn say_error(&mut self, report: &Report, server: &mut BoundServer) {
        let mut bytes = BytesMut::new();
        report.error(&mut bytes);
        speak::describe_nothing(server.outgoing());
        server.owe(Due::Provoked(bytes.as_ref().into()));
        self.skipping = true;
    }
}

#[derive(PartialEq, Eq)]
enum Taken {
    /// Dealt with, or its body streams.
    Done,
    /// Not enough of it is here.
    NeedsMore,
}

/// One message at the head of the buffer.
struct Message<'a> {
    header: Header,
    requests: &'a mut Requests,
    server: &'a mut BoundServer,
    statements: &'a mut ClientStatements,
    registry: &'a Registry,
}

impl Message<'_> {
    fn take(&mut self, incoming: &mut Buffer) -> Result<Taken, Report> {
        match self.header.tag {
            tag::QUERY => {
                // A simple query drops the unnamed statement: that there is none is what the client is to find.
                *self.server.unnamed_is_ours() = true;
                self.read_text(incoming, 0);
                self.stream(incoming, Some(Due::Query))
            }
            tag::SYNC => {
                self.requests.skipping = false;
                self.stream(incoming, Some(Due::Sync))
            }
            tag::EXECUTE => self.stream(incoming, Some(Due::Execute)),
            tag::FLUSH | tag::COPY_DATA => self.stream(incoming, None),
            tag::COPY_DONE | tag::COPY_FAIL => self.stream(incoming, Some(Due::CopyEnd)),
            tag::PARSE => self.take_parse(incoming),
            tag::BIND => self.take_bind(incoming),
            tag::DESCRIBE | tag::CLOSE => self.take_target(incoming),
            tag::TERMINATE => {
                self.requests.terminated = true;
                incoming.consume(HEADER);
                Ok(Taken::Done)
            }
            other => Err(Violation::Unexpected(other).into()),
        }
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

    /// Sees what a statement will set when it is executed.
    fn foresee(&mut self, name: &[u8]) {
        let named = self.statements.get(name).filter(|_| !name.is_empty());
        match (named, self.statements.unnamed()) {
            (Some(statement), _) if !self.requests.backslashes => {
                self.requests.touched.add(&statement.touched)
            }
            (Some(statement), _) => self.requests.read_text(&statement.text_and_types),
            // Of this turn it was seen when it was parsed.
            (None, Some(text)) if name.is_empty() && !*self.server.unnamed_is_ours() => {
                self.requests.read_text(text);
            }
            _ => {}
        }
    }

    /// Sees what the text behind the first `before` bytes of the body sets, if it is here whole.
    fn read_text(&mut self, incoming: &Buffer, before: usize) {
        if self.is_whole(incoming) {
            let text = self.body(incoming).get(before..).unwrap_or_default();
            self.requests.read_text(text);
        } else {
            self.requests.touched.opaque = true;
        }
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
            Some(name) if self.is_uncertain(&name) => return Ok(Taken::NeedsMore),
            Some(_) => {}
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
        } else {
            incoming.consume(HEADER);
            self.requests.collecting = Some((self.header.body, Vec::new()));
        }
        Ok(Taken::Done)
    }

    fn take_unnamed_parse(&mut self, incoming: &mut Buffer) -> Result<Taken, Report> {
        if !self.is_whole(incoming) && self.header.frame() <= MAX_WHOLE {
            return self.more(incoming);
        }
        // Longer ones pass as they are; they do not follow the client to another server.
        self.read_text(incoming, 1);
        let text_and_types = self.is_whole(incoming).then(|| self.body(incoming)[1..].into());
        *self.server.unnamed_is_ours() = true;
        self.stream(incoming, Some(Due::ParseUnnamed(text_and_types)))
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
        let (portal, statement) = (portal.to_vec(), statement.to_vec());
        if self.is_uncertain(&statement) {
            return Ok(Taken::NeedsMore);
        }
        self.foresee(&statement);
        let server_name = self.ensure(&statement);
        let length = 4 + portal.len() + 1 + server_name.len() + 1 + (self.header.body - names_length);
        let mut head = Vec::with_capacity(HEADER + portal.len() + server_name.len() + 2);
        head.push(tag::BIND);
        head.extend((length as u32).to_be_bytes());
        head.extend(portal);
        head.push(0);
        head.extend(server_name);
        head.push(0);
        self.server.carry(&head);
        self.server.owe(Due::Bind);
        incoming.consume(HEADER + names_length);
        let rest = self.header.body - names_length;
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
            return self.stream(incoming, Some(if is_close { Due::Close } else { Due::Describe }));
        }
        if self.is_uncertain(name) {
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
        let server_name = self.ensure(name);
        let mut message = vec![self.header.tag];
        message.extend((4 + 1 + server_name.len() as u32 + 1).to_be_bytes());
        message.push(target);
        message.extend(server_name);
        message.push(0);
        self.server.carry(&message);
        self.server.owe(Due::Describe);
        incoming.consume(self.header.frame());
        Ok(Taken::Done)
    }

    /// The same for the text of a Parse.
    fn is_being_placed(&mut self, body: &[u8]) -> bool {
        let text = split_cstr(body).map(|(_, text)| text);
        let ledger = self.server.ledger();
        ledger.is_batch_before() && text.is_some_and(|text| ledger.is_placing(self.registry.intern(text).id))
    }

    /// Whether what a name means, or whether the server has it, must wait for the answers to an earlier batch.
    fn is_uncertain(&mut self, name: &[u8]) -> bool {
        let ledger = self.server.ledger();
        ledger.is_uncertain(name)
            || self.statements.get(name).is_some_and(|known| ledger.is_placing(known.id))
    }

    /// The server's name for the client's statement, after making sure that the server has it.
    fn ensure(&mut self, name: &[u8]) -> Vec<u8> {
        if name.is_empty() {
            self.ensure_unnamed();
            return Vec::new();
        }
        let Some(statement) = self.statements.get(name) else {
            // PostgreSQL itself says that there is none (or finds what SQL PREPARE made in this transaction); names of
            // ours are out of a client's reach.
            return if name.starts_with(OWN_PREFIX) { [b"?", name].concat() } else { name.to_vec() };
        };
        if !self.server.will_have(statement) {
            let server_name = statement.server_name();
            speak::parse_raw(server_name.as_bytes(), &statement.text_and_types, self.server.outgoing());
            self.server.owe(Due::Ensure(statement.clone()));
        }
        statement.server_name().into_bytes()
    }

    fn ensure_unnamed(&mut self) {
        if *self.server.unnamed_is_ours() {
            return;
        }
        match self.statements.unnamed() {
            Some(text_and_types) => speak::parse_raw(b"", text_and_types, self.server.outgoing()),
            // Whoever had the server before may have left one: the client must find none.
            None => speak::close_statement(b"", self.server.outgoing()),
        }
        self.server.owe(Due::Unnamed);
        *self.server.unnamed_is_ours() = true;
    }
}
