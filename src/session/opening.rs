//! The first packets: TLS or not, a cancel request, or a StartupMessage.

use std::future::poll_fn;
use std::sync::Arc;

use bytes::{BufMut, BytesMut};
use tokio_rustls::{TlsAcceptor, TlsStream};

use super::farewell;
use super::gate::Gate;
use super::login::Login;
use crate::net::buffer::Buffer;
use crate::net::listen::Peer;
use crate::net::stream::{Socket, Stream};
use crate::net::tls::{self, Shown};
use crate::observe::log;
use crate::pool::server::Shard;
use crate::wire::report::{Report, Sqlstate};
use crate::wire::startup::{self, StartupMessage};
use crate::wire::violation::Violation;

/// The first byte of a TLS handshake (RFC 8446 section 5.1); as the first byte of a length it would be 352 MiB.
const TLS_HANDSHAKE: u8 = 0x16;

/// A connection of which nothing is known yet.
pub struct Opening {
    pub(super) gate: Arc<Gate>,
    pub(super) stream: Stream,
    pub(super) incoming: Buffer,
    pub(super) peer: Peer,
    pub(super) shard: Shard,
    /// What it was shown in the handshake, which may be replaced for those who come later.
    pub(super) shown: Option<Arc<Shown>>,
    /// It came when `max_clients` was reached.
    is_beyond_limit: bool,
}

impl Opening {
    /// Takes an accepted socket.
    pub fn new(gate: Arc<Gate>, socket: Socket, peer: Peer, shard: Shard) -> Self {
        Self {
            gate,
            stream: Stream::Plain(socket),
            incoming: Buffer::default(),
            peer,
            shard,
            shown: None,
            is_beyond_limit: false,
        }
    }

    /// The same for one that there is no room for: it is told so once it can be, and may cancel before.
    pub fn beyond_limit(gate: Arc<Gate>, socket: Socket, peer: Peer) -> Self {
        Self { is_beyond_limit: true, ..Self::new(gate, socket, peer, Shard(0)) }
    }

    /// Goes through the opening packets to a StartupMessage; `None` when the connection has ended.
    pub async fn run(mut self) -> Option<Login> {
        if self.is_direct_tls().await {
            self = self.direct_tls().await?;
        }
        let (mut asked_tls, mut asked_gss) = (false, false);
        loop {
            match self.packet().await {
                Ok(startup::Opening::Ssl) if !asked_tls => {
                    asked_tls = true;
                    self = self.answer_ssl().await?;
                }
                Ok(startup::Opening::GssEnc) if !asked_gss => {
                    asked_gss = true;
                    self.answer(b'N').await?;
                }
                Ok(startup::Opening::Ssl | startup::Opening::GssEnc) => {
                    return self.refuse(&Violation::Startup("encryption was asked for twice").into()).await;
                }
                Ok(startup::Opening::Cancel(key)) => {
                    // The answer is the close, once the server has been told.
                    self.gate.cancels.cancel(&key).await;
                    return None;
                }
                Ok(startup::Opening::Startup(message)) => return self.admit(message).await,
                Err(Halt::Gone) => return None,
                Err(Halt::Violation(violation)) => return self.refuse(&violation.into()).await,
            }
        }
    }

    async fn packet(&mut self) -> Result<startup::Opening, Halt> {
        loop {
            let bytes = self.incoming.filled();
            if let Some(length) = startup::length(bytes)?
                && let Some(packet) = bytes.get(..length)
            {
                let opening = startup::parse(packet)?;
                self.incoming.consume(length);
                return Ok(opening);
            }
            match poll_fn(|cx| self.incoming.poll_fill(&mut self.stream, cx)).await {
                Ok(0) | Err(_) => return Err(Halt::Gone),
                Ok(_) => {}
            }
        }
    }

    async fn answer_ssl(mut self) -> Option<Self> {
        if !self.incoming.is_empty() {
            // Bytes sent before the answer were sent in clear: whoever injected them must not be taken for the client
            // behind the handshake (the class of CVE-2021-23214).
            return self.refuse(&Violation::Startup("bytes behind the request for TLS").into()).await;
        }
        match self.certificate() {
            // What is encrypted already needs no more.
            Some(shown) if !self.stream.is_tls() => {
                self.answer(b'S').await?;
                self.handshake(shown).await
            }
            _ => {
                self.answer(b'N').await?;
                Some(self)
            }
        }
    }

    /// A ClientHello comes first from clients that ask for nothing (PostgreSQL 17, `sslnegotiation=direct`). Only looked
    /// at: the handshake reads it. What is no TLS here is read as a startup packet, whose length it cannot be.
    async fn is_direct_tls(&self) -> bool {
        let Stream::Plain(socket) = &self.stream else { return false };
        self.certificate().is_some() && matches!(socket.peek().await, Ok(Some(TLS_HANDSHAKE)))
    }

    /// The client must say by ALPN that it means PostgreSQL: otherwise what somebody made a browser or another program
    /// send to this port could be taken for a client's words.
    async fn direct_tls(self) -> Option<Self> {
        let shown = self.certificate()?;
        let peer = self.peer;
        let opening = self.handshake(shown).await?;
        if opening.stream.alpn() == Some(tls::ALPN) {
            return Some(opening);
        }
        tracing::info!(target: log::SECURITY, event = "connection_refused", %peer, reason = "direct TLS without ALPN", "a connection was refused");
        None
    }

    /// What is shown to this client. A Unix socket has no TLS, here as in PostgreSQL: nobody is in between.
    fn certificate(&self) -> Option<Arc<Shown>> {
        self.gate.settings().tls.as_ref().filter(|_| !self.peer.is_unix()).map(|tls| tls.current())
    }

    async fn handshake(self, shown: Arc<Shown>) -> Option<Self> {
        let Stream::Plain(socket) = self.stream else { return None };
        match TlsAcceptor::from(shown.config.clone()).accept(socket).await {
            Ok(stream) => {
                let stream = Stream::Tls(Box::new(TlsStream::Server(stream)));
                Some(Self { stream, shown: Some(shown), ..self })
            }
            Err(error) => {
                tracing::info!(peer = %self.peer, reason = %error, "TLS handshake failed");
                None
            }
        }
    }

    async fn answer(&mut self, byte: u8) -> Option<()> {
        let mut out = BytesMut::with_capacity(1);
        out.put_u8(byte);
        self.stream.send(&mut out).await.ok()
    }

    async fn admit(self, message: StartupMessage) -> Option<Login> {
        let settings = self.gate.settings();
        if settings.tls_required && !self.stream.is_tls() && !self.peer.is_unix() {
            let report = Report::new(Sqlstate::INVALID_AUTHORIZATION, "pgtenant requires TLS")
                .hint("Add sslmode=require (better: verify-full) to the connection string.");
            return self.refuse(&report).await;
        }
        if self.is_beyond_limit {
            let report = Report::new(Sqlstate::TOO_MANY_CONNECTIONS, "sorry, too many clients already")
                .detail("listen.max_clients of pgtenant is reached.")
                .hint("Raise listen.max_clients, or let applications keep fewer connections.");
            return self.refuse(&report).await;
        }
        if self.gate.is_draining() {
            let report = Report::new(Sqlstate::CANNOT_CONNECT_NOW, "pgtenant is shutting down");
            return self.refuse(&report).await;
        }
        Some(Login::new(self, message))
    }

    async fn refuse<T>(self, report: &Report) -> Option<T> {
        tracing::info!(target: log::SECURITY, event = "connection_refused", peer = %self.peer, reason = report.message.as_str(), "a connection was refused");
        farewell::fatal(self.stream, BytesMut::new(), report).await;
        None
    }
}

enum Halt {
    Gone,
    Violation(Violation),
}

impl From<Violation> for Halt {
    fn from(violation: Violation) -> Self {
        Self::Violation(violation)
    }
}
