//! A connection to PostgreSQL, and the types that say what may be done with it.
//!
//! ```text
//! dial --> CleanServer --bind--> BoundServer --release(TransactionOver)--> UsedServer --clean--> CleanServer
//!                                    ^                                         |
//!                                    +------ reused under an equal context ----+
//! ```
//! Only a [`BoundServer`] carries client bytes. Dropping any of them closes the socket and frees its place in the pool.

use std::collections::HashSet;
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::BytesMut;

use super::due::Due;
use super::holder::Holder;
use super::kept::Kept;
use super::lease_state::LeaseState;
use super::ledger::{Ledger, TransactionOver};
use super::statement::Statement;
use super::terms::{SettingsDigest, Terms};
use crate::net::buffer::Buffer;
use crate::net::dial::Dialled;
use crate::net::stream::Stream;
use crate::net::way::CancelTarget;
use crate::tenancy::seal::{Lapse, SealedContext, ServerPid};
use crate::tenancy::statements::{self, Binder};
use crate::wire::frame::{HEADER, peek};
use crate::wire::report::ServerReport;
use crate::wire::{message, speak, tag};

/// A server that does not acknowledge its cleaning within this time is closed.
pub const CLEAN_TIMEOUT: Duration = Duration::from_secs(10);

/// Prepared statements on one server; past this number it is cleaned, which drops them all.
const MAX_STATEMENTS: usize = 1_000;

mod chance;
mod idle;
mod rebound;
#[cfg(fuzzing)]
mod unproven;
mod used;

pub use chance::jittered;
use chance::{nonce, seed, spread};
pub use idle::{Idle, Resting};
pub use used::UsedServer;

/// The thread whose reactor a server's socket is registered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard(pub usize);

/// What two leases must share for one server to serve both without cleaning: the context and the client's settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TermsDigest(pub [u8; 32]);

/// A place in the pool; whoever drops it lets another server be opened.
pub struct Place {
    vacate: Option<Box<dyn FnOnce(Option<Holder>) + Send>>,
    /// Who is charged for the server while it is not on the shelf.
    holder: Option<Holder>,
}

impl Place {
    /// Calls `vacate` when the server is gone, with who held it.
    pub fn new(vacate: impl FnOnce(Option<Holder>) + Send + 'static) -> Self {
        Self { vacate: Some(Box::new(vacate)), holder: None }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(vacate) = self.vacate.take() {
            vacate(self.holder.take());
        }
    }
}

/// What every state of a server has.
struct Core {
    stream: Stream,
    incoming: Buffer,
    outgoing: BytesMut,
    ledger: Ledger,
    target: Arc<CancelTarget>,
    kept: Kept,
    binder: Binder,
    /// The settings that it was bound with, while they are what it has.
    bound_with: Option<SettingsDigest>,
    /// When it is closed at the latest, once it is idle.
    retires: Instant,
    /// When it was begun to be opened.
    opened: Instant,
    shard: Shard,
    /// The last field: it is free again when the socket is closed.
    place: Place,
}

impl Core {
    /// Reads the answers to messages of the proxy's own until one of them is the last; anything but success is an error.
    /// What is refused is read up to ReadyForQuery.
    async fn acknowledge(&mut self, mut is_last: impl FnMut(u8, &[u8]) -> bool) -> Result<(), Unclean> {
        self.stream.send(&mut self.outgoing).await.map_err(Unclean::Gone)?;
        let (mut done, mut refused) = (false, None);
        loop {
            while let Some(header) = peek(self.incoming.filled()).map_err(|_| Unclean::Protocol)? {
                if header.frame() > MAX_ACKNOWLEDGEMENT {
                    return Err(Unclean::Protocol);
                }
                let Some(body) = self.incoming.filled().get(HEADER..header.frame()) else { break };
                match header.tag {
                    tag::ERROR_RESPONSE => refused = refused.or_else(|| Some(ServerReport::parse(body))),
                    tag::READY_FOR_QUERY if body != b"I" => return Err(Unclean::Protocol),
                    tag::READY_FOR_QUERY if refused.is_some() => done = true,
                    // Completions, reported settings, notices and notifications of the last client.
                    other => done |= is_last(other, body),
                }
                self.incoming.consume(header.frame());
                if done && let Some(report) = refused.take() {
                    return Err(Unclean::Refused(report));
                }
            }
            if done {
                return if self.incoming.is_empty() { Ok(()) } else { Err(Unclean::Protocol) };
            }
            match poll_fn(|cx| self.incoming.poll_fill(&mut self.stream, cx)).await {
                Ok(0) => {
                    let gone = || Unclean::Gone(io::ErrorKind::UnexpectedEof.into());
                    return Err(refused.map_or_else(gone, Unclean::Refused));
                }
                Ok(_) => {}
                Err(e) => return Err(Unclean::Gone(e)),
            }
        }
    }

    async fn acknowledge_in_time(&mut self, is_last: impl FnMut(u8, &[u8]) -> bool) -> Result<(), Unclean> {
        match tokio::time::timeout(CLEAN_TIMEOUT, self.acknowledge(is_last)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Unclean::Gone(io::ErrorKind::TimedOut.into())),
        }
    }

    /// Waits for what comes back behind everything that was outstanding.
    async fn prove(&mut self, nonce: &str) -> Result<(), Unclean> {
        let mut is_proven = false;
        let acknowledged = self.acknowledge_in_time(|kind, body| {
            is_proven |= kind == tag::DATA_ROW && body.ends_with(nonce.as_bytes());
            is_proven && kind == tag::READY_FOR_QUERY
        });
        acknowledged.await?;
        self.ledger.has_settled();
        Ok(())
    }

    /// Reads the answer to [`statements::POSTURE`], up to the ReadyForQuery of that number. Whether the role's rights are
    /// those that are reckoned with.
    async fn hear_posture(&mut self, mut batches: usize) -> Result<bool, Unclean> {
        let mut row = Vec::new();
        let answered = self.acknowledge_in_time(|kind, body| {
            if kind == tag::DATA_ROW {
                row = message::text_columns(body);
            }
            batches -= usize::from(kind == tag::READY_FOR_QUERY);
            batches == 0
        });
        answered.await?;
        let is_yes = |column: usize| row.get(column).is_some_and(|text| text == "t");
        self.kept.is_standard = is_yes(0);
        self.kept.is_answered(is_yes(1), is_yes(3));
        Ok(self.binder.expects(is_yes(2)))
    }

    /// Whether an idle server said something or closed: notices are dropped, anything else ends it.
    fn is_alive(&mut self, cx: &mut Context<'_>) -> bool {
        loop {
            match self.incoming.poll_fill(&mut self.stream, cx) {
                Poll::Pending => return self.incoming.is_empty(),
                Poll::Ready(Ok(0) | Err(_)) => return false,
                Poll::Ready(Ok(_)) => {}
            }
            while let Ok(Some(header)) = peek(self.incoming.filled()) {
                let harmless = matches!(
                    header.tag,
                    tag::NOTICE_RESPONSE | tag::PARAMETER_STATUS | tag::NOTIFICATION_RESPONSE
                );
                if !harmless || header.frame() > MAX_ACKNOWLEDGEMENT {
                    return false;
                }
                if self.incoming.filled().len() < header.frame() {
                    break;
                }
                self.incoming.consume(header.frame());
            }
            if self.incoming.is_full() {
                return false;
            }
        }
    }
}

/// No message of an acknowledgement is longer.
const MAX_ACKNOWLEDGEMENT: usize = 16 * 1024;

/// A server that could not be shown clean. It is closed.
#[derive(Debug, thiserror::Error)]
pub enum Unclean {
    /// The connection broke or timed out.
    #[error("the server connection broke: {0}")]
    Gone(#[source] io::Error),
    /// PostgreSQL refused a statement of the cleaning.
    #[error("PostgreSQL refused it: {} ({})", .0.message, .0.code)]
    Refused(ServerReport),
    /// The role may call what it could not before, or the other way round: a new server will be prepared for that.
    #[error("the database was hardened, or no longer is")]
    Hardened,
    /// The system has no random bytes to give.
    #[error("no random bytes")]
    Random,
    /// The answers were not those of a cleaning.
    #[error("unexpected answer")]
    Protocol,
}

/// A server with nothing of anyone on it: its last cleaning (or its start) was acknowledged without an error.
pub struct CleanServer(Box<Core>);

impl CleanServer {
    /// Makes a signed-in connection ready for its first binding.
    ///
    /// # Errors
    /// It does not acknowledge.
    pub async fn prepare(
        dialled: Dialled,
        shard: Shard,
        place: Place,
        (opened, max_age): (Instant, Duration),
        binder: Binder,
    ) -> Result<Self, Unclean> {
        // Boxed: a server changes hands many times.
        let mut core = Box::new(Core {
            stream: dialled.stream,
            incoming: dialled.incoming,
            outgoing: BytesMut::new(),
            ledger: Ledger::default(),
            target: Arc::new(dialled.target),
            kept: Kept::default(),
            binder,
            bound_with: None,
            retires: opened + spread(max_age)?,
            opened,
            shard,
            place,
        });
        core.binder.prepare(&mut core.outgoing);
        if !core.hear_posture(2).await? {
            core.binder.harden(&mut core.outgoing);
            core.acknowledge_in_time(|kind, _| kind == tag::READY_FOR_QUERY).await?;
        }
        Ok(Self(core))
    }

    /// The server process, which the seal is bound to.
    pub fn pid(&self) -> ServerPid {
        ServerPid(self.0.target.pid())
    }

    /// Where its socket is registered.
    pub fn shard(&self) -> Shard {
        self.0.shard
    }

    /// Asks a question of the proxy's own and gets the columns of the first row, as text. Not for clients' words. Takes the
    /// server, which is not ready to be bound any more.
    ///
    /// # Errors
    /// PostgreSQL refused it or is gone.
    pub async fn ask(mut self, sql: &str) -> Result<Vec<String>, Unclean> {
        speak::query(sql, &mut self.0.outgoing);
        let mut row = Vec::new();
        let asked = self.0.acknowledge_in_time(|kind, body| {
            if kind == tag::DATA_ROW {
                row = message::text_columns(body);
            }
            kind == tag::READY_FOR_QUERY
        });
        asked.await?;
        Ok(row)
    }

    /// Puts the server under a context: queues the binding, which leaves in the same write as the client's first bytes.
    /// Until it is acknowledged, nothing that comes back is passed on.
    ///
    /// # Errors
    /// The system has no random bytes.
    pub fn bind(mut self, sealed: Option<&SealedContext>, terms: &Terms) -> Result<BoundServer, Unclean> {
        let core = &mut *self.0;
        core.bound_with = Some(terms.settings_digest()).filter(|_| !terms.is_read_only());
        if terms.context().is_none() {
            // Clients without tenants share their plans, or have other settings: their texts are not looked at.
            core.ledger.is_loud();
        }
        if sealed.is_some() || !terms.settings().is_empty() {
            let bound = sealed.zip(terms.context()).map(|(sealed, context)| (sealed, context.payload()));
            let seed = (seed()?, "");
            core.binder.bind(statements::NAMED, bound, &terms.bound_settings(), seed, &mut core.outgoing);
        }
        if !core.outgoing.is_empty() {
            speak::sync(&mut core.outgoing);
            core.ledger.push(Due::Binding);
        }
        core.ledger.take_settled_unnamed();
        let is_read_only = terms.is_read_only();
        let lapse = sealed.map(SealedContext::lapse);
        let state = LeaseState { is_read_only, is_dirty: is_read_only, ..LeaseState::default() };
        Ok(BoundServer { core: self.0, digest: terms.digest(), lapse, state })
    }
}

/// A server under a client's context: the only thing that carries client bytes.
pub struct BoundServer {
    core: Box<Core>,
    digest: TermsDigest,
    lapse: Option<Lapse>,
    state: LeaseState,
}

impl BoundServer {
    /// Queues a client's bytes.
    pub fn carry(&mut self, bytes: &[u8]) {
        self.core.outgoing.extend_from_slice(bytes);
    }

    /// Notes that a message was queued whose answer is due.
    pub fn owe(&mut self, due: Due) {
        self.core.ledger.push(due);
    }

    /// The client was told this process id in place of the server's own.
    pub fn told_its_client(&mut self, pid: u32) {
        self.state.told_pid = pid;
    }

    /// Something may be left on it that its answers do not tell: it is cleaned before anyone else gets it.
    pub fn leaves_something(&mut self) {
        self.state.is_dirty = true;
    }

    /// Whether half a message has been passed to the client.
    pub fn is_mid_message(&self) -> bool {
        matches!(self.state.body, Some((_, true)))
    }

    /// Whether its binding is part of the client's first batch, and not answered yet.
    pub fn is_switching(&self) -> bool {
        self.core.ledger.switch().is_pending()
    }

    /// Whether the client's first batch failed, and its binding with it: it is under the context of whoever had it before,
    /// and good for nothing but a cleaning.
    pub fn is_undone(&self) -> bool {
        self.core.ledger.switch().is_undone()
    }

    /// Whether it must be closed: a refused seal, a FATAL error.
    pub fn is_doomed(&self) -> bool {
        self.state.is_doomed
    }

    /// After a COPY that failed, more answers may come than are due. Waits until they have, for the client that keeps
    /// the server.
    ///
    /// # Errors
    /// It did not answer and must be closed.
    pub async fn settle(&mut self, _over: &TransactionOver) -> Result<(), Unclean> {
        if self.core.ledger.has_strays() {
            let nonce = nonce()?;
            statements::probe(&nonce, &mut self.core.outgoing);
            self.core.prove(&nonce).await?;
        }
        Ok(())
    }

    /// The server process, which the seal is bound to.
    pub fn pid(&self) -> ServerPid {
        ServerPid(self.core.target.pid())
    }

    /// Where the proxy's own messages between the client's are queued.
    pub fn outgoing(&mut self) -> &mut BytesMut {
        &mut self.core.outgoing
    }

    /// What is outstanding.
    pub fn ledger(&mut self) -> &mut Ledger {
        &mut self.core.ledger
    }

    /// Whether the server has, or is about to have, this statement.
    pub fn has(&self, statement: &Statement) -> bool {
        self.core.kept.has(statement.id)
    }

    /// Whether the server has, or is about to have, this statement; notes that it will.
    pub fn will_have(&mut self, statement: &Arc<Statement>) -> bool {
        self.core.kept.will_have(statement)
    }

    /// Takes back that the server has a statement.
    pub fn lacks(&mut self, id: u64) {
        self.core.kept.lacks(id);
    }

    /// It is about to drop all its statements; tells which.
    pub fn drops_statements(&mut self) -> HashSet<u64> {
        self.core.kept.take()
    }

    /// Takes back that it dropped them.
    pub fn still_has(&mut self, ids: HashSet<u64>) {
        self.core.kept.still_has(ids);
    }

    /// Whether the unnamed statement on the server is this client's; what the server has is set by the caller.
    pub fn unnamed_is_ours(&mut self) -> &mut bool {
        &mut self.state.unnamed_is_ours
    }

    /// Closes the connection at once. PostgreSQL notices when it answers what it runs, and begins nothing of what was sent
    /// behind that.
    pub fn abort(&mut self) {
        self.core.stream.abort();
    }

    /// Where a cancel request reaches the server process.
    pub fn cancel_target(&self) -> &Arc<CancelTarget> {
        &self.core.target
    }

    /// Sends what is queued.
    pub fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.core.stream.poll_send(cx, &mut self.core.outgoing)
    }

    /// Reads once.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.core.incoming.poll_fill(&mut self.core.stream, cx)
    }

    /// Client's bytes that are ready to pass on.
    pub fn run(&self) -> &[u8] {
        &self.core.incoming.filled()[..self.state.run]
    }

    /// `count` bytes of the run were passed on.
    pub fn passed(&mut self, count: usize) {
        self.core.incoming.consume(count);
        self.state.run -= count;
    }

    pub(super) async fn acknowledge(
        &mut self,
        is_last: impl FnMut(u8, &[u8]) -> bool,
    ) -> Result<(), Unclean> {
        self.core.acknowledge_in_time(is_last).await
    }

    pub(super) fn redefine(&mut self, digest: TermsDigest) {
        self.digest = digest;
        self.state.has_set = false;
        self.core.bound_with = None;
    }

    pub(super) fn parts(&mut self) -> (&mut Buffer, &mut Ledger, &mut LeaseState, &mut Kept) {
        (&mut self.core.incoming, &mut self.core.ledger, &mut self.state, &mut self.core.kept)
    }

    /// Ends the lease; `TransactionOver` is the proof that nothing of the transaction is left.
    /// `None` for a server that must not be used again: dropping it closed it.
    pub fn release(self, _over: TransactionOver) -> Option<UsedServer> {
        let clean_exit =
            self.state.run == 0 && self.core.incoming.is_empty() && self.core.outgoing.is_empty();
        if self.state.is_doomed || self.core.ledger.has_strays() || !clean_exit {
            return None;
        }
        let is_dirty = self.state.is_dirty
            || self.state.has_set
            || self.core.ledger.switch().is_undone()
            || self.core.kept.len() > MAX_STATEMENTS;
        Some(UsedServer::new(self, is_dirty))
    }
}
