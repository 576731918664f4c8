//! A client that leaves, or has to: the house is closing.

use std::future::poll_fn;
use std::task::Poll;

use super::Relay;
use crate::wire::report::{Report, Sqlstate};

/// What a client is told that nothing of it may begin any more.
pub(super) fn shutting_down() -> Report {
    Report::new(Sqlstate::ADMIN_SHUTDOWN, "pgtenant is shutting down")
}

/// What nobody hears.
pub(super) fn client_left() -> Report {
    Report::new(Sqlstate::CONNECTION_FAILURE, "the client left")
}

impl Relay {
    /// Waits until the client has taken what it was answered, or is to leave.
    ///
    /// # Errors
    /// It is gone, or the house is closing.
    pub(super) async fn is_taken(&mut self) -> Result<(), Report> {
        poll_fn(|cx| {
            let client = &mut self.client;
            if let Poll::Ready(sent) = client.stream.poll_send(cx, &mut client.outgoing) {
                return Poll::Ready(sent.map_err(|_| client_left()));
            }
            self.registered.handle.waker.register(cx.waker());
            // Looked at behind the registration: whoever closes the house wakes all afterwards.
            if self.gate.is_draining() { Poll::Ready(Err(shutting_down())) } else { Poll::Pending }
        })
        .await
    }

    /// Why a client gets no server that did not wait for one to the end.
    pub(super) fn waits_no_longer(&self) -> Report {
        if self.gate.is_draining() { shutting_down() } else { client_left() }
    }
}
