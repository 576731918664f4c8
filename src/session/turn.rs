//! One client's turn on one server: both sockets in one task, bytes both ways until the transaction is over.

mod again;
mod clock;
mod limits;
mod outcome;
mod settle;
mod silence;
mod tokens;
mod visits;

use std::collections::BTreeMap;
use std::future::{Future as _, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use tokio::time::Sleep;

use super::cancel::ClientHandle;
use super::client::Client;
use super::desk::Held;
use super::permitted::{self, HIGH_WATER};
use super::plain;
use crate::config::PoolMode;
use crate::pool::Pool;
use crate::pool::answers::{Broken, Heard};
use crate::pool::due::Skipped;
use crate::pool::ledger::TransactionOver;
use crate::pool::server::{BoundServer, CLEAN_TIMEOUT};
use crate::pool::switch::Switch;
use crate::tenancy::context::TenantContext;
use crate::wire::report::Report;
use crate::wire::speak;
use clock::Clock;
use limits::TimeLimits;
pub use outcome::SERVER_GONE;
pub use settle::settle;
use settle::{ReadyAnd as _, binding_or_protocol};
use visits::Visits;

/// Reported settings that are remembered of a turn; PostgreSQL has about fifteen.
const MAX_REPORTED: usize = 64;

/// A turn in progress.
pub struct Turn<'a> {
    pool: &'a Arc<Pool>,
    client: &'a mut Client,
    handle: &'a Arc<ClientHandle>,
    server: BoundServer,
    heard: Heard,
    changes: Changes,
    told_fatal: bool,
    /// The client's Terminate was passed on.
    said_goodbye: bool,
    clock: Clock,
    /// The client's first batch, while it depends on its binding.
    first: Option<Vec<u8>>,
    /// When a binding that is a batch of its own is given up.
    late: Option<Pin<Box<Sleep>>>,
    /// What runs here runs under these.
    under: Vec<Arc<TenantContext>>,
    /// How often something had been revoked when that was last looked at.
    revocations: u64,
    limits: Option<Box<TimeLimits>>,
    /// When the transaction that runs began.
    begun: Instant,
}

/// What a turn's answers tell of the client's settings.
#[derive(Default)]
pub struct Changes {
    /// Settings that PostgreSQL reported as changed.
    pub reported: BTreeMap<String, String>,
    /// How often SET was answered.
    pub sets: usize,
    /// RESET or DISCARD ALL was answered.
    pub resets: bool,
    /// The first batch failed.
    pub first_failed: bool,
    /// Contexts that token commands put the server under for the session, each with its seal; PostgreSQL knows which holds.
    pub switched: Vec<(String, Held)>,
    /// A token was refused.
    pub refused: bool,
    /// The database refused the seal.
    pub seal_refused: bool,
    /// Other organizations that the transaction was brought to.
    visits: Visits,
    readies: usize,
}

/// How a turn ended.
pub enum End {
    /// The transaction is over; the server may serve someone else.
    Over(TransactionOver),
    /// The client is gone.
    Abandoned {
        /// PostgreSQL is still at work for it.
        still_runs: bool,
    },
    /// There is nothing more to be said: PostgreSQL's FATAL report has gone to the client, or half a message.
    Closed,
    /// Both connections must close; the client is told why.
    Failed(Report),
    /// The server could not be taken over, and closes. Nothing of the client's ran on it, and all that it sent is there
    /// again for the next turn.
    Again,
}

/// What woke the turn.
enum Event {
    /// The client sent bytes, or there is room again for those that it sent.
    Client,
    /// The server sent bytes.
    Server,
    /// The client closed, or does not take what it asked for.
    ClientGone,
    /// The server closed.
    ServerGone,
    /// What runs here is to end.
    Ends(Report),
}

impl<'a> Turn<'a> {
    /// Begins a turn under a context or none, which was looked at when so much had been revoked; `started` is when the client's first byte was seen.
    pub fn new(
        pool: &'a Arc<Pool>,
        (client, handle): (&'a mut Client, &'a Arc<ClientHandle>),
        mut server: BoundServer,
        (context, revocations): (Option<Arc<TenantContext>>, u64),
        started: Instant,
    ) -> Self {
        let clock = Clock::start(started);
        let first = server.is_switching().then(|| client.first_batch().to_vec());
        let is_apart = server.ledger().switch() == Switch::Ahead;
        let late = is_apart.then(|| Box::pin(tokio::time::sleep(CLEAN_TIMEOUT)));
        client.runs_again = false;
        if !client.has_standard_strings() {
            server.ledger().is_loud(); // its texts are read as if it had
        }
        let (limits, begun) = (client.attendance.as_ref(), clock.times.leased);
        let limits = limits.and_then(|attendance| TimeLimits::of(&attendance.limits(), begun));
        Self {
            limits,
            begun,
            pool,
            under: context.into_iter().collect(),
            revocations,
            client,
            handle,
            server,
            heard: Heard::default(),
            changes: Changes::default(),
            told_fatal: false,
            said_goodbye: false,
            clock,
            first,
            late,
        }
    }

    /// The server and what the client changed, when the turn has ended.
    pub fn finish(self) -> (BoundServer, Changes) {
        (self.server, self.changes)
    }

    /// Carries bytes both ways until the transaction is over or one side fails.
    pub async fn run(&mut self) -> End {
        loop {
            if let Err(report) = self.carry() {
                return self.failed(report);
            }
            if let Some(end) = self.ended() {
                return end;
            }
            match poll_fn(|cx| self.poll_event(cx)).await {
                Event::Client => {
                    if let Some(limits) = &mut self.limits {
                        limits.client_spoke();
                    }
                    self.clock.client_spoke(self.server.ledger().is_waiting());
                }
                Event::Server => match self.hear() {
                    Ok(()) => {}
                    Err(_) if self.takes_back() => return End::Again,
                    Err(report) => return self.failed(report),
                },
                Event::ClientGone => {
                    return End::Abandoned { still_runs: self.server.ledger().is_waiting() };
                }
                Event::ServerGone if self.takes_begin_back() => {
                    tracing::warn!(
                        pool = self.pool.name(),
                        "a server did not acknowledge its binding and was closed"
                    );
                    return End::Again;
                }
                Event::ServerGone if self.said_goodbye => return End::Abandoned { still_runs: false },
                Event::ServerGone if self.told_fatal => return End::Closed,
                Event::ServerGone => {
                    tracing::warn!(
                        pool = self.pool.name(),
                        "the connection to PostgreSQL was lost while a client used it"
                    );
                    let report = self.server_gone();
                    return self.failed(report);
                }
                Event::Ends(report) if self.asks_for_answers(&report) => {}
                Event::Ends(report) => {
                    let report = self.ends(report);
                    return self.failed(report);
                }
            }
        }
    }

    /// The client is told why, unless half a message of the server's has gone to it: what we say would be taken for the
    /// rest of it.
    fn failed(&mut self, report: Report) -> End {
        if !self.server.is_mid_message() {
            return End::Failed(report);
        }
        self.client.outgoing.extend_from_slice(self.server.run());
        self.server.passed(self.server.run().len());
        End::Closed
    }

    /// The client's messages to the server's queue, and the proxy's own answers that need no server.
    fn carry(&mut self) -> Result<(), Report> {
        let registry = self.pool.registry();
        loop {
            let client = &mut *self.client;
            client.requests.carry(
                &mut client.incoming,
                &mut self.server,
                &mut client.statements,
                registry,
            )?;
            if let Some(asked) = client.requests.asked.take() {
                self.switch_token(&asked)?;
                continue;
            }
            let outstanding = self.server.ledger().outstanding();
            self.server.say(&mut client.outgoing);
            // What waited for our own answers goes on: nobody else would wake it.
            if self.server.ledger().outstanding() == outstanding || client.outgoing.len() >= HIGH_WATER {
                return Ok(());
            }
        }
    }

    /// Whether the turn is over: nothing outstanding, and the client between messages.
    fn ended(&mut self) -> Option<End> {
        let requests = &self.client.requests;
        if requests.is_terminated() && self.server.ledger().is_waiting() {
            // Where it waits for what the client will never send, PostgreSQL deals with what is there and closes.
            if self.server.ledger().awaits_client() && !self.said_goodbye {
                speak::terminate(self.server.outgoing());
                self.said_goodbye = true;
            }
            return None;
        }
        if requests.is_terminated() {
            return Some(match self.server.ledger().over() {
                // What it said goodbye to is closing.
                Some(_) if self.said_goodbye => End::Abandoned { still_runs: false },
                Some(over) => self.over(over),
                // It left inside a transaction: closing the server rolls it back.
                None => End::Abandoned { still_runs: false },
            });
        }
        if !requests.is_between_messages() {
            return None;
        }
        let over = self.server.ledger().over()?;
        Some(self.over(over))
    }

    fn over(&mut self, over: TransactionOver) -> End {
        // What the client has not taken yet is kept for it; the server need not wait.
        if !self.server.run().is_empty() {
            self.client.outgoing.extend_from_slice(self.server.run());
            self.server.passed(self.server.run().len());
        }
        // PostgreSQL ended the session behind the last answer: it would be taken for the answer to what comes next.
        if self.told_fatal { End::Closed } else { End::Over(over) }
    }

    /// Moves what can be moved and tells what arrived. Towards the client comes first: its next query waits for it.
    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        self.handle.waker.register(cx.waker());
        if let Some(report) = self.is_revoked() {
            return Poll::Ready(Event::Ends(report));
        }
        if let Some(late) = &mut self.late
            && late.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Event::ServerGone);
        }
        let was_full = self.server.outgoing().len() >= HIGH_WATER;
        // Where writing fails, the server's last words may still be there to be read.
        let is_closing = self.server.poll_send(cx).and_ready(|sent| sent.is_err());
        // What waits for room may be all that the client has to say: nobody else would wake it.
        if was_full && self.server.outgoing().len() < HIGH_WATER {
            return Poll::Ready(Event::Client);
        }
        // Only now: whose turn it is to speak depends on what PostgreSQL has got.
        if let Poll::Ready(report) = self.poll_limits(cx) {
            return Poll::Ready(Event::Ends(report));
        }
        let was_kept = self.client.outgoing.len() >= HIGH_WATER;
        match self.poll_send_client(cx) {
            // The same for what waited until it took our own answers.
            Poll::Ready(Ok(())) if was_kept => return Poll::Ready(Event::Client),
            Poll::Ready(Ok(())) => {
                self.clock.client_took();
                // Only now: a client that does not read must not fill our memory.
                match self.server.poll_fill(cx) {
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Event::ServerGone),
                    Poll::Ready(Ok(_)) => return Poll::Ready(Event::Server),
                    Poll::Pending if is_closing => return Poll::Ready(Event::ServerGone),
                    Poll::Pending => {}
                }
            }
            Poll::Ready(Err(_)) => return Poll::Ready(Event::ClientGone),
            Poll::Pending => self.clock.client_blocks(),
        }
        // Who does not take what it asked for is not asked what else it wants.
        if self.client.outgoing.len() >= HIGH_WATER {
            return Poll::Pending;
        }
        if self.client.requests.is_terminated()
            || !self.server.outgoing().is_empty()
            || self.client.incoming.is_full()
        {
            return Poll::Pending;
        }
        // Until its first batch is known to run here, there must be room to put it back.
        let kept = self.first.as_ref().map_or(0, Vec::len);
        match ready!(self.client.incoming.poll_fill_beside(kept, &mut self.client.stream, cx)) {
            // It said goodbye behind its first batch: that is done first.
            Ok(0) | Err(_) if kept > 0 && plain::says_goodbye(self.client.incoming.filled()) => Poll::Pending,
            Ok(0) | Err(_) => Poll::Ready(Event::ClientGone),
            Ok(_) => Poll::Ready(Event::Client),
        }
    }

    /// Something was revoked since this was last asked, and what runs here is to end by it: what the client is told.
    fn is_revoked(&mut self) -> Option<Report> {
        let revocations = self.client.desk.revocations();
        if std::mem::replace(&mut self.revocations, revocations) == revocations {
            return None;
        }
        self.client.desk.ends_under(&self.under)
    }

    /// Sends what is the client's: our own words first, then the server's bytes straight from where they were read.
    fn poll_send_client(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let client = &mut *self.client;
        if !client.outgoing.is_empty() {
            ready!(client.stream.poll_send(cx, &mut client.outgoing))?;
        }
        let mut wrote = false;
        while !self.server.run().is_empty() {
            let count = ready!(client.stream.poll_write(cx, self.server.run()))?;
            self.server.passed(count);
            wrote = true;
        }
        if wrote || client.stream.is_tls() { client.stream.poll_flush(cx) } else { Poll::Ready(Ok(())) }
    }

    /// Goes through what the server sent, and acts on what it means.
    fn hear(&mut self) -> Result<(), Report> {
        let switch = self.server.ledger().switch();
        let heard = self.server.hear(&mut self.client.outgoing, &mut self.heard);
        heard.map_err(|broken| self.broken(&broken))?;
        // PostgreSQL answers a batch as a whole: when it was bound is not known then.
        if self.heard.bound && !switch.shares_batch() {
            self.clock.times.bound = Instant::now();
        }
        self.told_fatal |= self.heard.fatal;
        if self.heard.seal_refused {
            self.pool.metrics().seal_refusals.increment(1);
            self.changes.seal_refused = true;
        }
        self.undo_skipped();
        if self.heard.bound {
            match switch {
                // Its BEGIN is over as soon: a request to cancel that must not strike what follows.
                Switch::Followed => self.handle.has_nothing_to_cancel(),
                _ => self.handle.is_bound(),
            }
            (self.first, self.late) = (None, None);
        }
        if let Some(unnamed) = self.server.ledger().take_unnamed() {
            self.client.statements.remember_unnamed(unnamed);
        }
        for code in self.heard.errors.drain(..) {
            self.pool.metrics().error(&code);
        }
        for (name, value) in self.heard.bound_settings.drain(..) {
            self.client.reported.correct(name, value, &mut self.client.outgoing);
        }
        for (name, value) in self.heard.settings.drain(..) {
            self.client.reported.note(name.clone(), value.clone());
            if self.changes.reported.len() < MAX_REPORTED {
                self.changes.reported.insert(name, value);
            }
        }
        if self.heard.alters {
            self.pool.registry().schema_changed();
        }
        let (registry, statements) = (self.pool.registry(), &mut self.client.statements);
        self.heard
            .outdated
            .drain(..)
            .filter_map(|id| statements.outdate(id))
            .for_each(|old| registry.doubt(&old));
        let named = |id: u64| statements.numbered(id);
        self.heard.misread.drain(..).filter_map(named).for_each(|statement| registry.forget(statement));
        self.changes.first_failed |= self.heard.failed && self.changes.readies == 0;
        self.changes.readies += self.heard.readies;
        if self.heard.failed || self.heard.readies > 0 {
            self.client.requests.is_answered(self.heard.failed);
        }
        self.changes.sets += self.heard.sets;
        self.changes.resets |= self.heard.resets;
        let asked = self.heard.readies + self.heard.further;
        let is_apart = self.charge(asked);
        if self.heard.readies > 0 {
            let goes_on = self.server.ledger().is_waiting();
            if is_apart || self.client.desk.is_draining() {
                self.client.requests.ends_turn();
            }
            if goes_on {
                self.goes_on()?;
            }
            for times in self.clock.ready(self.heard.readies, goes_on) {
                self.pool.metrics().query(&times);
            }
            // What began one out of our sight.
            let is_statement = self.client.requests.mode() == PoolMode::Statement;
            if is_statement && self.server.ledger().is_in_transaction() {
                return Err(self.ends(permitted::block_refused()));
            }
        }
        Ok(())
    }

    /// What messages did that the server skipped is undone.
    fn undo_skipped(&mut self) {
        // The last first: a name may have been closed and given anew in the same batch.
        for skipped in self.heard.skipped.drain(..).rev() {
            match skipped {
                Skipped::Parse(name) => drop(self.client.statements.close(&name)),
                Skipped::Close(name, statement) => self.client.statements.put_back(name, statement),
                Skipped::NotOnServer(id) => self.server.lacks(id),
                Skipped::OnServer(ids) => self.server.still_has(ids),
                Skipped::ToSync => self.client.requests.skip_to_sync(),
            }
        }
    }

    /// Passes on what a server says of itself while its client is idle: notifications, notices, settings, its end.
    /// `is_current`: the client may still hear it. Whether PostgreSQL ended the session.
    ///
    /// # Errors
    /// The server does not keep to the protocol.
    pub fn overhear(&mut self, is_current: bool) -> Result<bool, Report> {
        self.hear()?;
        if is_current || self.told_fatal {
            self.client.outgoing.extend_from_slice(self.server.run());
        }
        self.server.passed(self.server.run().len());
        Ok(self.told_fatal)
    }

    fn broken(&mut self, broken: &Broken) -> Report {
        match broken {
            Broken::Binding(refused) if !self.server.is_switching() || refused.is_fatal() => {
                self.pool.metrics().bind_failures.increment(1);
            }
            // What the client sent may run elsewhere.
            Broken::Binding(_) | Broken::Protocol(_) => {}
        }
        tracing::warn!(reason = %broken, "a server was closed");
        let report = binding_or_protocol(broken);
        if matches!(broken, Broken::Protocol(_)) { self.ends(report) } else { report }
    }
}
