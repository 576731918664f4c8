//! How a client's turn gets its server.

use std::future::poll_fn;
use std::task::{Poll, ready};

use super::Relay;
use crate::config::PoolMode;
use crate::pool::Unserved;
use crate::pool::server::BoundServer;
use crate::pool::switch::First;
use crate::session::cancel::cancelled;
use crate::session::client::Client;

impl Relay {
    /// What the client sends first.
    fn first(&self) -> First {
        if self.pool.mode() == PoolMode::Session {
            return First::Apart; // a server that is kept must not lose its binding with what failed
        }
        self.client.first(self.pool.registry().generation())
    }

    /// A server for which nothing has to be waited; or what the client sends first, which is read once.
    pub(super) fn lease_at_once(&self) -> Result<BoundServer, First> {
        let mut first = None;
        let server = self.pool.lease_at_once(&self.terms, self.shard, || *first.insert(self.first()));
        server.ok_or_else(|| first.unwrap_or_else(|| self.first()))
    }

    /// Waits for a server, but not for a client that has left meanwhile: nobody would take the results.
    pub(super) async fn lease(&mut self, first: First) -> Result<BoundServer, Unserved> {
        let handle = &self.registered.handle;
        handle.is_queued();
        let (gate, pool) = (&self.gate, &self.pool);
        let Client { stream, incoming, .. } = &mut self.client;
        let mut gone = poll_fn(|cx| {
            handle.waker.register(cx.waker());
            // While the pool is paused and the house closes, no server comes any more.
            if handle.is_cancelled() || gate.is_draining() && pool.is_paused() {
                return Poll::Ready(());
            }
            while !incoming.is_full() {
                if let Ok(0) | Err(_) = ready!(incoming.poll_fill(stream, cx)) {
                    return Poll::Ready(());
                }
            }
            // What else it sent waits in its socket, and whether it left shows later.
            Poll::Pending
        });
        let leased = self.pool.lease(&self.terms, self.shard, first, &mut gone).await;
        let is_cancelled = handle.is_served();
        if leased.is_err() || is_cancelled {
            let _ = handle.runs_nothing().await;
        }
        match leased {
            Err(Unserved::Gone) if is_cancelled => Err(Unserved::Refused(cancelled())),
            // It came free in that moment. Sent on now, the request would be there before the query.
            Ok(mut server) if is_cancelled => {
                if let Some(over) = server.ledger().over() {
                    self.pool.release(server, over);
                }
                Err(Unserved::Refused(cancelled()))
            }
            other => other,
        }
    }
}
