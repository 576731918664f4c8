//! A server's answers, matched against what is outstanding: what passes to the client, what is the proxy's own.
//!
//! Five bytes are looked at and the rest is passed along; only short messages that change what the proxy knows are
//! read. Nothing is copied unless something of the proxy's own lies between the client's bytes.

use bytes::BytesMut;

use super::due::{Said, Skipped};
use super::lease_state::LeaseState;
use super::ledger::Verdict;
use super::server::BoundServer;
use super::statement::Shape;
use crate::net::buffer::BUFFER_SIZE;
use crate::wire::frame::{HEADER, Header, peek, split_cstr};
use crate::wire::report::ServerReport;
use crate::wire::violation::Violation;
use crate::wire::{speak, tag};

/// Messages up to this size are read whole when their content matters; longer ones pass unread.
const MAX_READ: usize = BUFFER_SIZE / 2;

/// What was heard in one read, for the session to act on. Cleared and reused.
#[derive(Default)]
pub struct Heard {
    /// ReadyForQuery messages that passed to the client.
    pub readies: usize,
    /// Executions of the extended protocol that ended, but for the first before each ReadyForQuery: that is charged by it.
    pub further: usize,
    /// One has ended since the last ReadyForQuery.
    has_executed: bool,
    /// The proxy's binding was acknowledged.
    pub bound: bool,
    /// Settings that PostgreSQL reported as changed by the client.
    pub settings: Vec<(String, String)>,
    /// Settings as PostgreSQL reported them while binding.
    pub bound_settings: Vec<(String, String)>,
    /// Something of the client's failed, by PostgreSQL's will or the proxy's.
    pub failed: bool,
    /// SQLSTATEs of errors that passed.
    pub errors: Vec<String>,
    /// SET was answered this often.
    pub sets: usize,
    /// RESET or DISCARD ALL was answered.
    pub resets: bool,
    /// PostgreSQL ended the session, and the client was told.
    pub fatal: bool,
    /// Messages of the client that the server skipped.
    pub skipped: Vec<Skipped>,
    /// The database refused the seal.
    pub seal_refused: bool,
    /// Shared statements whose result type has changed.
    pub outdated: Vec<u64>,
    /// Shared statements that PostgreSQL can no longer make sense of: what they name was altered or dropped.
    pub misread: Vec<u64>,
    /// The schema was changed in a way that may change the results of statements.
    pub alters: bool,
}

impl Heard {
    fn clear(&mut self) {
        (self.readies, self.further) = (0, 0);
        self.failed = false;
        self.bound = false;
        self.settings.clear();
        self.bound_settings.clear();
        self.errors.clear();
        self.fatal = false;
        self.sets = 0;
        self.resets = false;
        self.skipped.clear();
        self.seal_refused = false;
        self.outdated.clear();
        self.misread.clear();
        self.alters = false;
    }
}

impl Heard {
    /// An error of the client's: what it means for the server, and for the shared statement that it is of.
    fn failed(
        &mut self,
        report: ServerReport,
        is_fatal: bool,
        statement: Option<u64>,
        state: &mut LeaseState,
    ) {
        self.failed = true;
        self.fatal |= is_fatal;
        state.is_doomed |= is_fatal;
        // A statement that the server lost (DEALLOCATE inside a function).
        state.is_dirty |= report.code == "26000";
        if report.routine == CHANGED_RESULT {
            state.is_dirty = true;
            self.outdated.extend(statement);
        }
        if report.code.starts_with("42") {
            self.misread.extend(statement);
        }
        if report.code == "42501" && report.message == SEAL_REFUSED {
            self.seal_refused = true;
            state.is_doomed = true;
        }
        self.errors.push(report.code);
    }

    /// An execution of the extended protocol has ended.
    fn executed(&mut self) {
        self.further += usize::from(std::mem::replace(&mut self.has_executed, true));
    }

    /// A command of the client's is complete: what of it outlives its transaction.
    fn completed(&mut self, command_tag: &[u8], state: &mut LeaseState, left: &Leaves) {
        let resets = command_tag.starts_with(b"RESET") || command_tag.starts_with(b"DISCARD ALL");
        self.resets |= resets;
        state.has_reset |= resets;
        match left {
            Leaves::Nothing => {}
            Leaves::Setting => {
                self.sets += 1;
                state.has_set = true;
            }
            Leaves::Something => state.is_dirty = true,
            Leaves::NoStatements => {
                state.is_dirty = true;
                state.unnamed_is_ours = false;
            }
        }
    }
}

/// Why a server's answers can no longer be followed.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// The binding was refused: the client must see nothing.
    #[error("binding failed: {} ({})", .0.message, .0.code)]
    Binding(ServerReport),
    /// The server does not keep to the protocol.
    #[error("the server broke the protocol: {0}")]
    Protocol(#[from] Violation),
}

impl BoundServer {
    /// Goes through what was read. Afterwards `to_client` and then [`BoundServer::run`] are the client's.
    ///
    /// # Errors
    /// See [`Broken`]; the server must be closed.
    pub fn hear(&mut self, to_client: &mut BytesMut, heard: &mut Heard) -> Result<(), Broken> {
        heard.clear();
        loop {
            if !self.finish_body(to_client) {
                return Ok(());
            }
            let (incoming, _, state, _) = self.parts();
            let rest = &incoming.filled()[state.run..];
            let Some(header) = peek(rest)? else { return Ok(()) };
            let is_whole = rest.len() >= header.frame();
            let is_shape = header.tag == tag::ROW_DESCRIPTION && self.ledger().is_describing();
            if !is_whole && (is_read(header.tag) || is_shape) && header.frame() <= MAX_READ {
                return Ok(()); // its end comes with the next read
            }
            // What is told at the end of a transaction follows its command's completion.
            if matches!(header.tag, tag::READY_FOR_QUERY | tag::PARAMETER_STATUS)
                && let Some(held) = self.ledger().take_held()
            {
                self.set_aside_run(to_client);
                to_client.extend_from_slice(&held);
            }
            let provoked = match header.tag {
                tag::ERROR_RESPONSE => self.ledger().provoked(),
                _ => None,
            };
            let verdict = match &provoked {
                Some(_) => {
                    let (_, ledger, state, _) = self.parts();
                    let verdict = ledger.refuse(&mut heard.skipped);
                    heard.failed = true;
                    state.lose_unnamed(ledger);
                    verdict
                }
                None => self.judge(header, is_whole, heard)?,
            };
            self.pass_frame(header, verdict, to_client);
            if let Some(report) = provoked {
                // The server's own words are swallowed, now or as they come; what follows them is behind these.
                to_client.extend_from_slice(&report);
            }
            if !self.say_what_is_due(to_client) {
                return Ok(());
            }
        }
    }

    /// Deals with the rest of a message whose header is past; false if more of it is still to come.
    fn finish_body(&mut self, to_client: &mut BytesMut) -> bool {
        let (incoming, _, state, _) = self.parts();
        let Some((left, is_clients)) = state.body else { return true };
        let here = (incoming.filled().len() - state.run).min(left);
        if is_clients {
            state.run += here;
        } else {
            self.set_aside_run(to_client);
            self.parts().0.consume(here);
        }
        let state = self.parts().2;
        state.body = (left > here).then_some((left - here, is_clients));
        state.body.is_none()
    }

    /// Takes the header's frame, or as much of it as is here, out of the stream.
    fn pass_frame(&mut self, header: Header, verdict: Verdict, to_client: &mut BytesMut) {
        self.parts().2.body = Some((header.frame(), verdict == Verdict::Pass));
        self.finish_body(to_client);
    }

    /// Moves the run so far out of the way: what follows it is not the client's.
    fn set_aside_run(&mut self, to_client: &mut BytesMut) {
        let (incoming, _, state, _) = self.parts();
        if state.run > 0 {
            to_client.extend_from_slice(&incoming.filled()[..state.run]);
            incoming.consume(state.run);
            state.run = 0;
        }
    }

    /// Gives the proxy's own answers whose turn has come. They wait while a message is only half here.
    fn say_what_is_due(&mut self, to_client: &mut BytesMut) -> bool {
        if self.parts().2.body.is_some() {
            return false;
        }
        while let Some(said) = self.ledger().to_say() {
            self.set_aside_run(to_client);
            match said {
                Said::ParseComplete { .. } => speak::parse_complete(to_client),
                Said::CloseComplete { .. } => speak::close_complete(to_client),
                Said::Own(answer) => to_client.extend_from_slice(&answer),
            }
        }
        true
    }

    /// Gives the proxy's own answers that nothing of the server's precedes.
    pub fn say(&mut self, to_client: &mut BytesMut) {
        self.say_what_is_due(to_client);
    }

    /// Whose message this is, and what it changes.
    fn judge(&mut self, header: Header, is_whole: bool, heard: &mut Heard) -> Result<Verdict, Broken> {
        let (incoming, ledger, state, _) = self.parts();
        let body = match is_whole {
            true => &incoming.filled()[state.run..][HEADER..header.frame()],
            false => &[],
        };
        let own = if ledger.is_binding() || ledger.is_rebinding() { Verdict::Swallow } else { Verdict::Pass };
        match header.tag {
            tag::DATA_ROW | tag::COPY_DATA | tag::COPY_DONE | tag::NOTICE_RESPONSE => Ok(own),
            tag::PARAMETER_DESCRIPTION if ledger.is_own_describe() => Ok(Verdict::Swallow),
            tag::PARAMETER_DESCRIPTION => Ok(own),
            tag::READY_FOR_QUERY => {
                let [status] = *body else { return Err(Violation::Malformed(header.tag).into()) };
                let verdict = ledger.ready(status)?;
                match verdict {
                    // The binding is a step of its own: it cannot have left a transaction open.
                    Verdict::Swallow if own == Verdict::Pass => {} // a stray one
                    Verdict::Swallow if status != b'I' => return Err(Violation::Malformed(header.tag).into()),
                    Verdict::Swallow => heard.bound = true,
                    Verdict::Pass => (heard.readies, heard.has_executed) = (heard.readies + 1, false),
                }
                Ok(verdict)
            }
            tag::COMMAND_COMPLETE => self.judge_completion(header, heard),
            tag::ROW_DESCRIPTION | tag::NO_DATA => {
                // One that is longer than a buffer is not known, and never doubted.
                if is_whole || header.tag == tag::NO_DATA {
                    let row = (header.tag == tag::ROW_DESCRIPTION).then_some(body);
                    heard.outdated.extend(ledger.described(|| Shape::of(row)));
                }
                Ok(ledger.answer(header.tag)?.0)
            }
            tag::PARSE_COMPLETE | tag::BIND_COMPLETE | tag::CLOSE_COMPLETE => {
                Ok(ledger.answer(header.tag)?.0)
            }
            tag::EMPTY_QUERY_RESPONSE | tag::PORTAL_SUSPENDED => {
                if ledger.is_executing() {
                    heard.executed();
                }
                Ok(ledger.answer(header.tag)?.0)
            }
            tag::ERROR_RESPONSE => {
                let report = ServerReport::parse(body);
                if ledger.is_binding() {
                    return Err(Broken::Binding(report));
                }
                let is_fatal = report.is_fatal();
                if !is_fatal && !ledger.may_fail() {
                    return Err(Violation::Unexpected(header.tag).into());
                }
                heard.failed(report, is_fatal, ledger.statement(), state);
                let verdict = ledger.error(&mut heard.skipped);
                state.lose_unnamed(ledger);
                Ok(verdict)
            }
            tag::PARAMETER_STATUS => {
                if let Some((name, rest)) = split_cstr(body)
                    && let Some((value, _)) = split_cstr(rest)
                {
                    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
                    let heard =
                        if own == Verdict::Pass { &mut heard.settings } else { &mut heard.bound_settings };
                    heard.push((text(name), text(value)));
                }
                Ok(own)
            }
            tag::COPY_IN_RESPONSE => Ok(ledger.copy_in()?),
            tag::COPY_OUT_RESPONSE if own == Verdict::Pass => Ok(own),
            tag::NOTIFICATION_RESPONSE => {
                // Only a LISTEN of this very client can have asked for it; whatever asked is still on the server.
                state.is_dirty = true;
                if own == Verdict::Pass {
                    self.is_its_own(header);
                }
                Ok(own)
            }
            other => Err(Violation::Unexpected(other).into()),
        }
    }

    /// A command is complete.
    fn judge_completion(&mut self, header: Header, heard: &mut Heard) -> Result<Verdict, Broken> {
        let (incoming, ledger, state, kept) = self.parts();
        let frame = incoming.filled()[state.run..].get(..header.frame());
        let body = frame.map_or(&[][..], |frame| &frame[HEADER..]);
        if ledger.take_rewritten() {
            return Ok(Verdict::Swallow);
        }
        let dropped = ledger.is_deallocating().map(|dropped| dropped.all);
        let was_binding = ledger.is_binding();
        let is_execution = ledger.is_executing();
        let (verdict, _) = ledger.answer(header.tag)?;
        heard.bound |= was_binding && !ledger.is_binding();
        if verdict == Verdict::Pass {
            if is_execution {
                heard.executed();
            }
            let left = match (leaves_behind(body), dropped) {
                (Leaves::NoStatements, Some(false)) => Leaves::Nothing,
                (Leaves::NoStatements, Some(true)) => Leaves::Something,
                (left, _) => left,
            };
            if matches!(left, Leaves::NoStatements) {
                kept.take();
                kept.still_has(ledger.placed());
            }
            ledger.copied(body);
            heard.completed(body, state, &left);
            heard.alters |= may_change_results(body);
            return Ok(ledger.hold_back(frame.unwrap_or_default()));
        }
        Ok(verdict)
    }
}

impl BoundServer {
    /// A client knows its own notifications by the process id that BackendKeyData told it.
    fn is_its_own(&mut self, header: Header) {
        let server = self.pid().0.to_be_bytes();
        let (incoming, _, state, _) = self.parts();
        let frame =
            incoming.filled_mut().get_mut(state.run..).and_then(|rest| rest.get_mut(..header.frame()));
        if let Some((_, body)) = frame.and_then(|frame| frame.split_at_mut_checked(HEADER))
            && let Some(pid) = body.first_chunk_mut::<4>()
            && *pid == server
        {
            *pid = state.told_pid.to_be_bytes();
        }
    }
}

/// The message by which the database refuses a seal (`architect/sql/interface.sql`).
const SEAL_REFUSED: &str = "tenant context refused";

/// The function of PostgreSQL that says `cached plan must not change result type`, in whatever language.
const CHANGED_RESULT: &str = "RevalidateCachedQuery";

/// Messages whose content is looked at, and those that may come while the client is idle: they pass whole.
fn is_read(kind: u8) -> bool {
    matches!(
        kind,
        tag::READY_FOR_QUERY
            | tag::COMMAND_COMPLETE
            | tag::ERROR_RESPONSE
            | tag::PARAMETER_STATUS
            | tag::NOTICE_RESPONSE
            | tag::NOTIFICATION_RESPONSE
    )
}

/// Whether a command with this tag may change the columns that a statement returns.
fn may_change_results(command_tag: &[u8]) -> bool {
    [&b"ALTER"[..], b"DROP", b"CREATE VIEW"].iter().any(|verb| command_tag.starts_with(verb))
}

enum Leaves {
    Nothing,
    /// A setting, of the session or of the transaction.
    Setting,
    Something,
    NoStatements,
}

/// Whether a command with this tag may leave something on the server that outlives its transaction.
///
/// What leaves no trace is listed; all else counts as leaving one. A SELECT may call a function that does
/// (`set_config`, `pg_advisory_lock`): under a context of its own the next client finds a cleaned server in any
/// case, and for clients of equal terms SECURITY.md says what they share.
fn leaves_behind(command_tag: &[u8]) -> Leaves {
    let command_tag = command_tag.strip_suffix(b"\0").unwrap_or(command_tag);
    let verb = command_tag.split(|b| *b == b' ').next().unwrap_or_default();
    match verb {
        b"SELECT" | b"INSERT" | b"UPDATE" | b"DELETE" | b"MERGE" | b"COPY" | b"FETCH" | b"MOVE"
        | b"BEGIN" | b"START" | b"COMMIT" | b"ROLLBACK" | b"SAVEPOINT" | b"RELEASE" | b"CLOSE" | b"SHOW"
        | b"EXPLAIN" | b"LOCK" | b"TRUNCATE" | b"VACUUM" | b"ANALYZE" | b"NOTIFY" | b"REFRESH" => {
            Leaves::Nothing
        }
        b"SET" => Leaves::Setting,
        b"DISCARD" | b"DEALLOCATE" if command_tag.ends_with(b" ALL") => Leaves::NoStatements,
        _ => Leaves::Something,
    }
}
