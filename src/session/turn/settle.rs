//! A server without a client, on its way to rest; and what both kinds of turn need.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use bytes::BytesMut;

use super::SERVER_GONE;
use crate::pool::Pool;
use crate::pool::answers::{Broken, Heard};
use crate::pool::server::BoundServer;
use crate::wire::report::{Report, Sqlstate};

/// What a client is told when a server's answers cannot be followed: nothing of what the server said.
pub(super) fn binding_or_protocol(broken: &Broken) -> Report {
    let message = match broken {
        Broken::Binding(_) => "the server could not be put under your tenant context",
        Broken::Protocol(_) => "the server connection cannot be followed any further",
    };
    Report::new(Sqlstate::CONNECTION_FAILURE, message).hint("Connect again; the log of pgtenant says more.")
}

/// Brings a server whose binding is queued to rest, without a client: a trial of the client's settings.
/// Tells what PostgreSQL reported of them.
///
/// # Errors
/// PostgreSQL refused one of the settings, or the connection broke.
pub async fn settle(
    pool: &Arc<Pool>,
    mut server: BoundServer,
) -> Result<Option<Vec<(String, String)>>, Report> {
    let (mut heard, mut nothing) = (Heard::default(), BytesMut::new());
    let mut told = None;
    loop {
        if let Some(over) = server.ledger().over() {
            pool.release(server, over);
            return Ok(told);
        }
        let read = poll_fn(|cx| {
            if server.poll_send(cx).and_ready(|sent| sent.is_err()) {
                return Poll::Ready(Ok(0));
            }
            server.poll_fill(cx)
        });
        if !matches!(read.await, Ok(1..)) {
            return Err(Report::new(Sqlstate::CONNECTION_FAILURE, SERVER_GONE));
        }
        match server.hear(&mut nothing, &mut heard) {
            Ok(()) => told.get_or_insert_with(Vec::new).append(&mut heard.bound_settings),
            Err(Broken::Binding(refused)) => {
                return Err(Report::new(Sqlstate::INVALID_PARAMETER, refused.message)
                    .hint("Check the settings in the connection string."));
            }
            Err(broken) => return Err(binding_or_protocol(&broken)),
        }
    }
}

/// A test of what is ready, which the standard library does not have for `Poll`.
pub(super) trait ReadyAnd<T> {
    fn and_ready(self, test: impl FnOnce(T) -> bool) -> bool;
}

impl<T> ReadyAnd<T> for Poll<T> {
    fn and_ready(self, test: impl FnOnce(T) -> bool) -> bool {
        match self {
            Poll::Ready(value) => test(value),
            Poll::Pending => false,
        }
    }
}
