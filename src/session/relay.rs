//! A signed-in client: idle until it asks, then a turn on a server, transaction by transaction.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::{Instant, SystemTime};

use bytes::BytesMut;

use super::cancel::Registered;
use super::client::Client;
use super::farewell;
use super::gate::Gate;
use super::prepared::ClientStatements;
use super::requests::{Requests, Wants};
use super::turn::{Changes, End, Turn};
use crate::net::buffer::Buffer;
use crate::net::stream::Stream;
use crate::pool::ledger::TransactionOver;
use crate::pool::server::{BoundServer, Shard};
use crate::pool::{Pool, Terms, Unserved};
use crate::tenancy::settings::{self, Settings};
use crate::wire::frame::peek;
use crate::wire::report::{Report, Sqlstate};
use crate::wire::{speak, tag};

/// A signed-in client and its connection.
pub struct Relay {
    gate: Arc<Gate>,
    pool: Arc<Pool>,
    shard: Shard,
    terms: Terms,
    /// What it gave at start-up: what RESET goes back to.
    own_settings: Settings,
    registered: Registered,
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
    /// It is gone.
    Gone,
    /// The house is closing.
    Drain,
}

impl Relay {
    /// Goes on with what the client may have sent behind its password.
    pub(super) fn new(parties: Parties, stream: Stream, incoming: Buffer, terms: Terms) -> Self {
        let client = Client {
            stream,
            incoming,
            outgoing: BytesMut::new(),
            requests: Requests::default(),
            statements: ClientStatements::default(),
        };
        let Parties { gate, pool, shard, registered } = parties;
        let own_settings = terms.settings().clone();
        Self { gate, pool, shard, terms, own_settings, registered, client, told_fatal: false }
    }

    /// Serves the client until it leaves.
    pub async fn run(mut self) {
        let pool = self.pool.clone();
        let _arrived = pool.metrics().arrive();
        match self.serve().await {
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
                    // Who does not take its results keeps no server waiting.
                    if self.client.stream.send(&mut self.client.outgoing).await.is_err() {
                        return Ok(());
                    }
                    self.turn().await?;
                }
                Wants::More => match self.next().await {
                    Next::Bytes => {}
                    Next::Gone => return Ok(()),
                    Next::Drain => {
                        return Err(Report::new(Sqlstate::ADMIN_SHUTDOWN, "pgtenant is shutting down"));
                    }
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
            match client.incoming.poll_fill(&mut client.stream, cx) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(Ok(0) | Err(_)) => Poll::Ready(Next::Gone),
                Poll::Ready(Ok(_)) => Poll::Ready(Next::Bytes),
            }
        })
        .await
    }

    /// One turn on a server: from a client's first bytes to the end of its transaction.
    async fn turn(&mut self) -> Result<(), Report> {
        let started = Instant::now();
        if self.terms.context().is_some_and(|context| !context.is_current(SystemTime::now())) {
            let report = Report::new(Sqlstate::INVALID_AUTHORIZATION, "token expired")
                .hint("Connect again with a current token.");
            return self.refuse(&report).await;
        }
        let server = match self.lease().await {
            Ok(server) => server,
            Err(Unserved::Refused(report)) => return self.refuse(&report).await,
            Err(Unserved::Gone) => {
                return Err(Report::new(Sqlstate::CONNECTION_FAILURE, "the client left"));
            }
        };
        let handle = self.registered.handle.clone();
        handle.runs_on(&self.pool, server.cancel_key());
        let standard = self.terms.settings().get("standard_conforming_strings").is_none_or(|on| on != "off");
        self.client.requests.begin(standard);
        let mut turn = Turn::new(&self.pool, &mut self.client, server, started);
        let end = turn.run().await;
        let (server, changes) = turn.finish();
        match end {
            End::Over(over) => {
                handle.runs_nothing().await;
                if let Some(server) = self.follow(server, &over, &changes).await {
                    self.pool.release(server, over);
                }
                Ok(())
            }
            End::Abandoned { still_runs } => {
                handle.runs_nothing().await;
                if still_runs {
                    self.cancel_and_close(server);
                }
                Err(Report::new(Sqlstate::CONNECTION_FAILURE, "the client left"))
            }
            End::Closed => {
                handle.runs_nothing().await;
                self.told_fatal = true;
                Ok(())
            }
            End::Failed(report) => {
                handle.runs_nothing().await;
                Err(report)
            }
        }
    }

    /// Waits for a server, but not for a client that has left meanwhile: nobody would take the results.
    async fn lease(&mut self) -> Result<BoundServer, Unserved> {
        let Client { stream, incoming, .. } = &mut self.client;
        let mut gone = poll_fn(|cx| {
            while !incoming.is_full() {
                if let Ok(0) | Err(_) = ready!(incoming.poll_fill(stream, cx)) {
                    return Poll::Ready(());
                }
            }
            // What else it sent waits in its socket, and whether it left shows later.
            Poll::Pending
        });
        self.pool.lease(&self.terms, self.shard, &mut gone).await
    }

    /// The client's settings follow it to its next server, when it changed some. `None` when the server was lost.
    async fn follow(
        &mut self,
        mut server: BoundServer,
        over: &TransactionOver,
        changes: &Changes,
    ) -> Option<BoundServer> {
        let touched = self.client.requests.touched();
        // What SET LOCAL changed, and PostgreSQL reported, is undone.
        let is_local = changes.sets <= touched.local && !touched.session && !changes.resets;
        if is_local && changes.sets > 0 {
            server.is_known_as(self.terms.digest());
            return Some(server);
        }
        let is_new = |(name, value): &(String, String)| self.terms.settings().get(name) != Some(value);
        let is_hidden = is_local && changes.reported.iter().any(is_new);
        if is_local && !is_hidden {
            return Some(server);
        }
        match server.settings(over, &touched.names).await {
            Ok(None) => Some(server),
            Ok(Some(found)) => {
                // A SET that was prepared in an earlier turn, or cannot be read, may have changed more than is told.
                let is_told = touched.session && !touched.opaque && changes.sets <= touched.seen();
                let Some(settings) = settings::following(&self.own_settings, found) else {
                    tracing::warn!("a client's settings are too many or too long to follow it");
                    return Some(server);
                };
                self.terms = self.terms.with_settings(settings);
                // PostgreSQL would end such a session while nobody uses it.
                let may_rest = !self.terms.settings().contains_key("idle_session_timeout");
                if is_told && !is_hidden && may_rest {
                    server.is_known_as(self.terms.digest());
                }
                Some(server)
            }
            Err(unclean) => {
                tracing::warn!(reason = %unclean, "a client's settings could not be asked for; the server is closed");
                None
            }
        }
    }

    /// The client is gone while its query runs: PostgreSQL is told to stop it, then the connection closes.
    fn cancel_and_close(&self, server: BoundServer) {
        let pool = self.pool.clone();
        tokio::spawn(async move {
            if let Err(error) = pool.dialer().cancel(server.cancel_key()).await {
                tracing::warn!(reason = %error, "what a vanished client ran could not be cancelled");
            }
            drop(server);
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
        match self.next().await {
            Next::Bytes => Ok(()),
            Next::Gone => Err(Report::new(Sqlstate::CONNECTION_FAILURE, "the client left")),
            Next::Drain => Err(Report::new(Sqlstate::ADMIN_SHUTDOWN, "pgtenant is shutting down")),
        }
    }
}
