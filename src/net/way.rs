//! The way to a PostgreSQL server, whoever enters it there: its socket, TLS; and cancel requests, which go where the connection
//! leads that they are for.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::BytesMut;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::{TlsConnector, TlsStream};

use super::buffer::Buffer;
use super::dial::{CONNECT_TIMEOUT, DialError};
use super::listen::socket_path;
use super::stream::{Socket, Stream};
use super::tls::ALPN;
use super::watched::Watched;
use crate::config::{Server, SslMode};
use crate::wire::speak;
use crate::wire::startup::CancelKey;

/// How to reach a server.
#[derive(Clone)]
pub(super) struct Way {
    server: Arc<Server>,
    tls: Option<Arc<Watched<ClientConfig>>>,
    /// The address behind the server's name, where it is that of one connection.
    at: Option<SocketAddr>,
}

/// Where a connection leads, and its key there. By the time that it is to be cancelled, the pool may lead elsewhere (another
/// configuration) and the name too, and the same key may be another connection's there.
pub struct CancelTarget {
    key: CancelKey,
    way: Way,
}

impl CancelTarget {
    /// The server process.
    pub fn pid(&self) -> u32 {
        self.key.pid
    }

    /// Asks the server to cancel what the connection runs, and waits until it has dealt with it.
    ///
    /// # Errors
    /// The server cannot be reached.
    pub async fn cancel(&self) -> Result<(), DialError> {
        let ask = async {
            let mut stream = self.way.connect().await?;
            let mut out = BytesMut::new();
            speak::cancel_request(&self.key, &mut out);
            stream.send(&mut out).await.map_err(|e| self.way.unreachable(e))?;
            // PostgreSQL closes the connection once the signal is sent.
            let mut answer = Buffer::default();
            let _ = std::future::poll_fn(|cx| answer.poll_fill(&mut stream, cx)).await;
            Ok(())
        };
        match tokio::time::timeout(CONNECT_TIMEOUT, ask).await {
            Ok(outcome) => outcome,
            Err(_) => Err(self.way.unreachable("no answer to a cancel request within 10 s")),
        }
    }

    /// Of a server that nobody dialled.
    #[cfg(fuzzing)]
    pub fn nowhere() -> Self {
        let server = Server {
            name: String::new(),
            host: String::new(),
            port: 0,
            tls: SslMode::Disable,
            tls_directly: false,
            ca: None,
            identity: None,
        };
        Self { key: CancelKey { pid: 0, secret: vec![0; 4] }, way: Way::new(Arc::new(server), None) }
    }
}

impl Way {
    pub(super) fn new(server: Arc<Server>, tls: Option<Arc<Watched<ClientConfig>>>) -> Self {
        Self { server, tls, at: None }
    }

    /// Whether it leads to the same place.
    pub(super) fn leads_as(&self, other: &Self) -> bool {
        self.server == other.server
    }

    /// What cancels on a connection that was made this way.
    pub(super) fn target(&self, key: CancelKey, stream: &Stream) -> CancelTarget {
        // Where the system does not tell, its name has to do.
        CancelTarget { key, way: Self { at: stream.peer_addr(), ..self.clone() } }
    }

    /// The server's address, for messages.
    pub(super) fn address(&self) -> String {
        match self.server.socket_directory() {
            Some(directory) => socket_path(directory, self.server.port).display().to_string(),
            None => format!("{}:{}", self.server.host, self.server.port),
        }
    }

    /// Connects, and agrees on TLS.
    ///
    /// # Errors
    /// Nothing answers, or not as PostgreSQL does.
    pub(super) async fn connect(&self) -> Result<Stream, DialError> {
        let mut socket = self.reach().await.map_err(|e| self.unreachable(e))?;
        let Some(tls) = &self.tls else {
            return Ok(Stream::Plain(socket));
        };
        if self.server.tls_directly {
            return self.shake_hands(tls, socket).await;
        }
        let mut out = BytesMut::new();
        speak::ssl_request(&mut out);
        socket.write_all(&out).await.map_err(|e| self.unreachable(e))?;
        // One byte exactly: whatever follows in clear would be read as the server's first encrypted words.
        let answer = socket.read_u8().await.map_err(|e| self.unreachable(e))?;
        match (answer, self.server.tls) {
            (b'S', _) => self.shake_hands(tls, socket).await,
            (b'N', SslMode::Prefer) => Ok(Stream::Plain(socket)),
            (b'N', _) => Err(self.unsupported(
                "it does not offer TLS; turn ssl on there, or set tls = \"prefer\" or \"disable\" for this server",
            )),
            _ => Err(self.unsupported("it answered a request for TLS with neither yes nor no; is it PostgreSQL?")),
        }
    }

    async fn shake_hands(&self, tls: &Watched<ClientConfig>, socket: Socket) -> Result<Stream, DialError> {
        let name = ServerName::try_from(self.server.host.clone())
            .map_err(|e| self.unsupported(format!("{e}; TLS needs a host name or an address")))?;
        let stream = TlsConnector::from(tls.current()).connect(name, socket).await;
        let stream = stream.map_err(|e| match self.server.tls_directly {
            true => self.unsupported(format!(
                "TLS handshake failed: {e}; tls_negotiation = \"direct\" needs PostgreSQL 17 or later, with ssl on"
            )),
            // A connection that broke: PostgreSQL may be on its way down, and comes back.
            false if e.get_ref().is_none_or(|inner| !inner.is::<rustls::Error>()) => {
                self.unreachable(format!("TLS handshake: {e}"))
            }
            false => self.unsupported(format!("TLS handshake failed: {e}")),
        })?;
        // Without a request for it, ALPN is what shows that the other side speaks this protocol, and not another one to
        // whom these bytes mean something else (ALPACA).
        if self.server.tls_directly && stream.get_ref().1.alpn_protocol() != Some(ALPN) {
            return Err(self.unsupported("it did not agree on the protocol postgresql in the TLS handshake"));
        }
        Ok(Stream::Tls(Box::new(TlsStream::Client(stream))))
    }

    /// A socket to the server on which nothing was said yet.
    pub(super) async fn reach(&self) -> io::Result<Socket> {
        if let Some(at) = self.at {
            return Socket::to_server(TcpStream::connect(at).await?);
        }
        let Server { host, port, .. } = &*self.server;
        match self.server.socket_directory() {
            Some(directory) => Ok(Socket::unix(UnixStream::connect(socket_path(directory, *port)).await?)),
            None => Socket::to_server(TcpStream::connect((host.as_str(), *port)).await?),
        }
    }

    pub(super) fn unreachable(&self, reason: impl ToString) -> DialError {
        DialError::Unreachable { address: self.address(), reason: reason.to_string() }
    }

    pub(super) fn unsupported(&self, reason: impl ToString) -> DialError {
        DialError::Unsupported { address: self.address(), reason: reason.to_string() }
    }
}
