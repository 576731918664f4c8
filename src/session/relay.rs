//! A signed-in client: idle until it asks, then a turn on a server, transaction by transaction.

mod follow;
mod leasing;
mod leaving;
mod tokens;

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};

use bytes::BytesMut;

use super::accounts::Attendance;
use super::bar::Bar;
use super::cancel::{Registered, cancelled};
use super::client::Client;
use super::desk::{Desk, Standing};
use super::farewell;
use super::gate::Gate;
use super::permitted::HIGH_WATER;
use super::prepared::ClientStatements;
use super::reported::Reported;
use super::requests::{Requests, Wants};
use super::turn::{Changes, End, SERVER_GONE, Turn};
use crate::config::PoolMode;
use crate::net::buffer::Buffer;
use crate::net::stream::Stream;
use crate::pool::server::{BoundServer, Shard};
use crate::pool::{Pool, Terms, Unserved};
use crate::tenancy::settings::Settings;
use crate::wire::frame::peek;
use crate::wire::report::{Report, Sqlstate};
use crate::wire::{speak, tag};
use leaving::{client_left, shutting_down};
use tokens::Batch;

/// For so long a place in the pool waits until what ran there is cancelled. A PostgreSQL that says nothing is not waited for.
const CANCEL_HOLDS: Duration = Duration::from_secs(1);

/// A signed-in client and its connection.
pub struct Relay {
    gate: Arc<Gate>,
    pool: Arc<Pool>,
    shard: Shard,
    terms: Terms,
    /// Whether anything may run under them.
    standing: Standing,
    /// The batch under way, where it began with a switch of tokens.
    batch: Option<Batch>,
    /// What the client sends next brings a token within a transaction, and may do so without a context.
    brings_token: bool,
    /// Nothing of the batch under way has gone to a server.
    is_at_desk: bool,
    /// What it gave at start-up: what RESET goes back to.
    own_settings: Settings,
    registered: Registered,
    /// In session mode, the client's server between its transactions.
    held: Option<BoundServer>,
    /// Settings of its own that a RESET took from the server it holds.
    lost_settings: Settings,
    /// PostgreSQL ended the session, and the client heard it.
    told_fatal: bool,
    /// The client's end of the conversation.
    pub(super) client: Client,
}

/// Whom a client deals with.
pub(super) struct Parties {
    pub(super) gate: Arc<Gate>,
    pub(super) pool: Arc<Pool>,
    pub(super) shard: Shard,
    pub(super) registered: Registered,
}

/// Why an idle client's wait ended.
enum Next {
    /// Bytes arrived.
    Bytes,
    /// The server that the client keeps said something.
    Server,
    /// It closed.
    ServerGone,
    /// It is gone.
    Gone,
    /// The house is closing.
    Drain,
}

impl Relay {
    /// Goes on with what the client may have sent behind its password.
    pub(super) fn new(
        parties: Parties,
        (stream, incoming): (Stream, Buffer),
        terms: Terms,
        (reported, desk, attendance): (Reported, Desk, Option<Attendance>),
    ) -> Self {
        let Parties { gate, pool, shard, registered } = parties;
        let client = Client {
            stream,
            incoming,
            outgoing: BytesMut::new(),
            requests: Requests::new(pool.mode()).guarded_by(desk.guard()),
            statements: ClientStatements::default(),
            reported,
            desk,
            attendance,
            runs_again: false,
        };
        Self {
            gate,
            shard,
            own_settings: terms.settings().clone(),
            terms,
            standing: client.desk.at_sign_in().standing,
            batch: None,
            brings_token: false,
            is_at_desk: false,
            registered,
            held: None,
            lost_settings: Settings::new(),
            client,
            told_fatal: false,
            pool,
        }
    }

    /// Serves the client until it leaves. Boxed: a future holds what it takes by value twice.
    pub async fn run(mut self: Box<Self>) {
        let pool = self.pool.clone();
        let _arrived = pool.metrics().arrive();
        let end = self.serve().await;
        if let Some(server) = self.held.take() {
            Box::pin(self.let_go(server)).await;
        }
        match end {
            Ok(()) => farewell::close(self.client.stream, self.client.outgoing).await,
            Err(report) => farewell::fatal(self.client.stream, self.client.outgoing, &report).await,
        }
    }

    /// Turn after turn; an error is the client's last word from us.
    async fn serve(&mut self) -> Result<(), Report> {
        loop {
            match self.client.requests.wants(&mut self.client.incoming)? {
                Wants::Goodbye => return Ok(()),
                Wants::Server => {
                    // What has not begun does not begin any more.
                    if self.gate.is_draining() {
                        return Err(shutting_down());
                    }
                    if self.client.outgoing.len() >= HIGH_WATER {
                        self.is_taken().await?;
                    }
                    if let Some((header, meaning)) = self.desk_matter()? {
                        // Boxed: most messages are no such thing.
                        Box::pin(self.at_desk(header, meaning)).await?;
                        continue;
                    }
                    // Who does not take its results keeps no server waiting.
                    self.is_taken().await?;
                    self.turn().await?;
                }
                Wants::More => match self.next().await {
                    Next::Bytes => {}
                    Next::Gone => return Ok(()),
                    other => self.is_disturbed(&other)?,
                },
            }
            if self.client.requests.is_terminated() || self.told_fatal {
                return Ok(());
            }
        }
    }

    /// Waits for the client; while it says nothing, it holds no buffer.
    async fn next(&mut self) -> Next {
        poll_fn(|cx| {
            let client = &mut self.client;
            // What is left of the last results goes out while we wait.
            if !client.outgoing.is_empty() && client.stream.poll_send(cx, &mut client.outgoing).is_ready() {
                // Capacity of a large result is not kept for an idle client.
                client.outgoing = BytesMut::new();
            }
            self.registered.handle.waker.register(cx.waker());
            if self.gate.is_draining() {
                return Poll::Ready(Next::Drain);
            }
            if client.outgoing.is_empty()
                && let Some(server) = &mut self.held
            {
                match server.poll_fill(cx) {
                    Poll::Pending => {}
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Next::ServerGone),
                    Poll::Ready(Ok(_)) => return Poll::Ready(Next::Server),
                }
            }
            match client.incoming.poll_fill(&mut client.stream, cx) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(Ok(0) | Err(_)) => Poll::Ready(Next::Gone),
                Poll::Ready(Ok(_)) => Poll::Ready(Next::Bytes),
            }
        })
        .await
    }

    /// What else may happen while the client says nothing.
    fn is_disturbed(&mut self, by: &Next) -> Result<(), Report> {
        match by {
            Next::Bytes => Ok(()),
            Next::Server => self.overhear(),
            Next::ServerGone => Err(Report::new(Sqlstate::CONNECTION_FAILURE, SERVER_GONE)
                .hint("Connect again; what the session held is gone.")),
            Next::Gone => Err(client_left()),
            Next::Drain => Err(shutting_down()),
        }
    }

    /// The server that the client keeps said something while nobody asked it: the client hears it, unless its context
    /// has ended.
    fn overhear(&mut self) -> Result<(), Report> {
        let Some(server) = self.held.take() else { return Ok(()) };
        let is_current = self.is_current();
        let mut turn = Turn::new(
            &self.pool,
            (&mut self.client, &self.registered.handle),
            server,
            (None, 0),
            Instant::now(),
        );
        let heard = turn.overhear(is_current);
        let (server, _) = turn.finish();
        self.told_fatal = heard?;
        self.held = Some(server);
        Ok(())
    }

    /// Whether the client's token has not expired.
    fn is_current(&self) -> bool {
        self.terms.context().is_none_or(|context| self.client.desk.is_current(context))
    }

    /// One turn on a server: from a client's first bytes to the end of its transaction.
    async fn turn(&mut self) -> Result<(), Report> {
        let started = Instant::now();
        // Before it is looked at whether the client's context holds: nothing can be revoked unnoticed in between.
        let revocations = self.client.desk.revocations();
        self.is_at_desk = false;
        let brings_token = std::mem::take(&mut self.brings_token);
        let refusal = self.refusal().filter(|_| !brings_token).or_else(|| self.asks_too_fast());
        if let Some(report) = refusal {
            self.batch_over(true);
            return Box::pin(self.refuse(&report)).await;
        }
        let server = match self.held.take() {
            Some(mut server) => {
                self.pool.renew(&mut server, &self.terms, &self.lost_settings)?;
                self.lost_settings.clear();
                server
            }
            None => match self.lease_at_once() {
                Ok(server) => server,
                // Boxed: most of the time there is no waiting.
                Err(first) => match Box::pin(self.lease(first)).await {
                    Ok(server) => server,
                    Err(Unserved::Refused(report)) => {
                        self.batch_over(true);
                        return Box::pin(self.refuse(&report)).await;
                    }
                    Err(Unserved::Gone) => return Err(self.waits_no_longer()),
                },
            },
        };
        // In a block of its own: nothing of the turn is kept while its end is dealt with.
        let (end, (server, changes)) = {
            let mut turn = self.begin(server, revocations, started);
            (turn.run().await, turn.finish())
        };
        self.ended(end, server, &changes).await
    }

    /// Whether its organization is over its rate.
    fn asks_too_fast(&self) -> Option<Report> {
        self.client.attendance.as_ref()?.may_begin().err()
    }

    fn begin(&mut self, mut server: BoundServer, revocations: u64, started: Instant) -> Turn<'_> {
        server.told_its_client(self.registered.key.pid);
        // A request to cancel a batch that the binding shares strikes either, and neither runs then.
        let is_binding = server.ledger().is_binding() && !server.ledger().switch().shares_batch();
        self.registered.handle.runs_on(server.cancel_target(), is_binding);
        self.client.requests.begin(self.client.has_standard_strings(), self.batch.is_some());
        let reported = &self.client.reported;
        self.client.requests.is_encoded(|| reported.get("client_encoding"));
        self.client.requests.bar((self.standing != Standing::Good).then_some(Bar::Missing));
        let context = self.terms.shared_context().cloned();
        self.client.requests.is_read_only(self.terms.is_read_only());
        if let Some(context) = context.as_deref().filter(|context| context.actor().is_some()) {
            self.client.desk.acts(context);
            self.client.requests.ends_turn();
        }
        if context.as_ref().is_some_and(|context| context.is_late(SystemTime::now())) {
            self.client.requests.ends_turn();
        }
        Turn::new(
            &self.pool,
            (&mut self.client, &self.registered.handle),
            server,
            (context, revocations),
            started,
        )
    }

    /// What becomes of the server, and of the client, when a turn has ended.
    async fn ended(&mut self, end: End, mut server: BoundServer, changes: &Changes) -> Result<(), Report> {
        let handle = self.registered.handle.clone();
        if changes.seal_refused {
            self.client.desk.seal_refused(self.terms.context());
        }
        match end {
            End::Over(over)
                if self.pool.mode() == PoolMode::Session && !self.client.requests.is_terminated() =>
            {
                // What the proxy itself asks is not to be cancelled. A request that comes late strikes its own client.
                let _ = handle.runs_nothing().await;
                let found = self.settled(&mut server, &over, changes, false).await;
                self.held = Box::pin(self.keep(server, &over, changes)).await;
                if self.held.is_none() {
                    let report =
                        Report::new(Sqlstate::CONNECTION_FAILURE, "the session's server had to be closed");
                    return Err(report.hint("Connect again; the log of pgtenant says more."));
                }
                self.turn_over(found, changes.first_failed);
                Ok(())
            }
            End::Over(_) if self.pool.mode() == PoolMode::Session => {
                Box::pin(self.let_go(server)).await;
                Ok(())
            }
            End::Over(over) => {
                let in_doubt = handle.runs_nothing().await;
                let found = self.settled(&mut server, &over, changes, in_doubt).await;
                if !in_doubt && let Some(server) = self.follow(server, &over, changes).await {
                    self.pool.release(server, over);
                }
                self.turn_over(found, changes.first_failed);
                Ok(())
            }
            End::Abandoned { still_runs } => {
                let _ = handle.runs_nothing().await;
                if still_runs {
                    self.cancel_and_close(server);
                }
                Err(client_left())
            }
            End::Closed => {
                let _ = handle.runs_nothing().await;
                self.told_fatal = true;
                self.close(server);
                Ok(())
            }
            End::Again => {
                let _ = handle.runs_nothing().await;
                if handle.was_asked() {
                    self.batch_over(true);
                    return Box::pin(self.refuse(&cancelled())).await;
                }
                Ok(())
            }
            End::Failed(report) => {
                let _ = handle.runs_nothing().await;
                self.close(server);
                Err(report)
            }
        }
    }

    /// A client that kept its server leaves: whatever it left there is cleaned before anyone else gets it.
    async fn let_go(&mut self, mut server: BoundServer) {
        let in_doubt = self.registered.handle.runs_nothing().await;
        server.leaves_something();
        if !in_doubt && let Some(over) = server.ledger().over() {
            self.pool.release(server, over);
        }
    }

    /// Closes a server that nobody can use any more. What still runs there is stopped first: its place is free at once.
    fn close(&self, mut server: BoundServer) {
        if server.ledger().is_waiting() {
            self.cancel_and_close(server);
        }
    }

    /// The client is gone while its query runs, or none may begin behind it: the connection closes, and PostgreSQL is told
    /// to stop what runs. In this order: it would go on with what is in its buffer.
    fn cancel_and_close(&self, mut server: BoundServer) {
        server.abort();
        self.pool.ends_charge(&mut server);
        tokio::spawn(async move {
            let target = server.cancel_target().clone();
            let mut cancelling = std::pin::pin!(target.cancel());
            let cancelled = match tokio::time::timeout(CANCEL_HOLDS, &mut cancelling).await {
                Ok(cancelled) => cancelled,
                Err(_) => {
                    drop(server);
                    cancelling.await
                }
            };
            if let Err(error) = cancelled {
                // Where PostgreSQL is gone, so is what it ran.
                tracing::debug!(reason = %error, "what ran for a client could not be cancelled");
            }
        });
    }

    /// Answers an idle client with an error in a server's place: one ErrorResponse, and ReadyForQuery where the
    /// server's would stand (after a Query, or after the Sync of an extended batch).
    async fn refuse(&mut self, report: &Report) -> Result<(), Report> {
        report.error(&mut self.client.outgoing);
        loop {
            while let Some(header) = peek(self.client.incoming.filled())? {
                let ends = matches!(header.tag, tag::QUERY | tag::SYNC);
                if header.tag == tag::TERMINATE {
                    return Err(report.clone());
                }
                self.discard(header.frame()).await?;
                if ends {
                    speak::ready_for_query(&mut self.client.outgoing);
                    return Ok(());
                }
            }
            self.more().await?;
        }
    }

    /// Drops `count` bytes of the client's, those that are still to come included.
    async fn discard(&mut self, mut count: usize) -> Result<(), Report> {
        loop {
            let here = self.client.incoming.filled().len().min(count);
            self.client.incoming.consume(here);
            count -= here;
            if count == 0 {
                return Ok(());
            }
            self.more().await?;
        }
    }

    async fn more(&mut self) -> Result<(), Report> {
        let next = self.next().await;
        self.is_disturbed(&next)
    }
}
