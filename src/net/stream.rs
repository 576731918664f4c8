//! A connection, plain or TLS, polled by hand: the relay watches two of them in one task.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsStream;

use super::end_point::end_point;

/// How long what was sent to a server may stay unacknowledged by its machine.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);

/// A TCP or Unix socket that can move between the threads' reactors, also from below a TLS session.
#[derive(Debug)]
pub struct Socket(Option<Kind>);

#[derive(Debug)]
enum Kind {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A connected socket that no reactor knows: on its way from one thread to another.
#[derive(Debug)]
pub enum Detached {
    /// Over the network, or the loopback.
    Tcp(std::net::TcpStream),
    /// From a process of this machine.
    Unix(std::os::unix::net::UnixStream),
}

impl Socket {
    /// Takes a connected TCP socket: no Nagle delay, and a peer that vanished is noticed.
    ///
    /// # Errors
    /// The socket refuses an option, which means that it is closed already.
    pub fn tcp(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        let keepalive =
            TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(10));
        SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
        Ok(Self(Some(Kind::Tcp(stream))))
    }

    /// The same of one to a server, which acknowledges what it is sent, or is gone: its machine may have vanished without a
    /// word (tcp(7), `TCP_USER_TIMEOUT`).
    ///
    /// # Errors
    /// The socket refuses an option, which means that it is closed already.
    pub fn to_server(stream: TcpStream) -> io::Result<Self> {
        #[cfg(target_os = "linux")]
        SockRef::from(&stream).set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
        Self::tcp(stream)
    }

    /// Takes a connected Unix socket: the system itself tells when the peer is gone.
    pub fn unix(stream: UnixStream) -> Self {
        Self(Some(Kind::Unix(stream)))
    }

    /// A socket that leads nowhere.
    #[cfg(fuzzing)]
    pub fn nowhere() -> Self {
        Self(None)
    }

    /// Waits for the first byte and leaves it where it is; none from a Unix socket, or at the end of the stream.
    ///
    /// # Errors
    /// The peer is gone.
    pub async fn peek(&self) -> io::Result<Option<u8>> {
        let Some(Kind::Tcp(stream)) = &self.0 else { return Ok(None) };
        let mut first = [0];
        Ok((stream.peek(&mut first).await? == 1).then_some(first[0]))
    }

    fn peer_addr(&self) -> Option<SocketAddr> {
        match &self.0 {
            Some(Kind::Tcp(stream)) => stream.peer_addr().ok(),
            Some(Kind::Unix(_)) | None => None,
        }
    }

    fn kind(&mut self) -> io::Result<&mut Kind> {
        self.0.as_mut().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Closes it at once, by an RST over TCP (RFC 9293 section 3.5.2): the peer's next write fails.
    fn abort(&mut self) {
        if let Some(Kind::Tcp(stream)) = self.0.take() {
            // Where it cannot be set, a FIN has to do.
            let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
        }
    }

    /// Registers the socket with the reactor of the thread that calls.
    fn rehome(&mut self) -> io::Result<()> {
        self.0 = Some(match self.0.take() {
            Some(Kind::Tcp(stream)) => Kind::Tcp(TcpStream::from_std(stream.into_std()?)?),
            Some(Kind::Unix(stream)) => Kind::Unix(UnixStream::from_std(stream.into_std()?)?),
            None => return Err(io::ErrorKind::NotConnected.into()),
        });
        Ok(())
    }
}

impl Detached {
    /// Registers the socket with the reactor of the thread that calls.
    ///
    /// # Errors
    /// The reactor does not take it, or it is closed already.
    pub fn attach(self) -> io::Result<Socket> {
        match self {
            Self::Tcp(stream) => Socket::tcp(TcpStream::from_std(stream)?),
            Self::Unix(stream) => Ok(Socket::unix(UnixStream::from_std(stream)?)),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.kind()? {
            Kind::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Kind::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.kind()? {
            Kind::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Kind::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }
    // The last words of a failed handshake are written once only: without this, just the first record of them.
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.kind()? {
            Kind::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, parts),
            Kind::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, parts),
        }
    }
    fn is_write_vectored(&self) -> bool {
        true
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(())) // neither kind holds anything back
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.kind()? {
            Kind::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Kind::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// Plain or TLS.
#[derive(Debug)]
pub enum Stream {
    /// Bytes as they are.
    Plain(Socket),
    /// Encrypted; boxed because the session is a kilobyte that plain connections need not carry.
    Tls(Box<TlsStream<Socket>>),
}

impl Stream {
    /// Whether bytes are encrypted.
    pub fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// The protocol that TLS agreed on (RFC 7301), if it did.
    pub fn alpn(&self) -> Option<&[u8]> {
        match self {
            Self::Plain(_) => None,
            Self::Tls(tls) => tls.get_ref().1.alpn_protocol(),
        }
    }

    /// The peer's address; none of a Unix socket, which has its path.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Plain(socket) => socket.peer_addr(),
            Self::Tls(tls) => tls.get_ref().0.peer_addr(),
        }
    }

    /// What the certificate that the peer showed binds a SCRAM exchange to.
    pub fn peer_end_point(&self) -> Option<Vec<u8>> {
        match self {
            Self::Plain(_) => None,
            Self::Tls(tls) => end_point(tls.get_ref().1.peer_certificates()?.first()?),
        }
    }

    /// Moves to the reactor of the thread that calls (two `epoll_ctl`).
    ///
    /// # Errors
    /// The socket could not be registered; it is closed then.
    pub fn rehome(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.rehome(),
            Self::Tls(tls) => match &mut **tls {
                TlsStream::Client(stream) => stream.get_mut().0.rehome(),
                TlsStream::Server(stream) => stream.get_mut().0.rehome(),
            },
        }
    }

    /// Closes the socket in the middle of whatever goes on.
    pub fn abort(&mut self) {
        match self {
            Self::Plain(socket) => socket.abort(),
            Self::Tls(tls) => match &mut **tls {
                TlsStream::Client(stream) => stream.get_mut().0.abort(),
                TlsStream::Server(stream) => stream.get_mut().0.abort(),
            },
        }
    }

    /// Reads once.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>, space: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(socket) => Pin::new(socket).poll_read(cx, space),
            Self::Tls(tls) => Pin::new(&mut **tls).poll_read(cx, space),
        }
    }

    /// Writes from `bytes`, as much as the socket takes at once.
    pub fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = match self {
            Self::Plain(socket) => Pin::new(socket).poll_write(cx, bytes),
            Self::Tls(tls) => Pin::new(&mut **tls).poll_write(cx, bytes),
        };
        match ready!(written)? {
            0 => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            count => Poll::Ready(Ok(count)),
        }
    }

    /// Pushes out what TLS holds back; nothing to do on a plain socket.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(_) => Poll::Ready(Ok(())),
            Self::Tls(tls) => Pin::new(&mut **tls).poll_flush(cx),
        }
    }

    /// Writes all of `out` and flushes; ready when `out` is empty and everything left.
    pub fn poll_send(&mut self, cx: &mut Context<'_>, out: &mut BytesMut) -> Poll<io::Result<()>> {
        while !out.is_empty() {
            let count = ready!(self.poll_write(cx, out))?;
            out.advance(count);
        }
        self.poll_flush(cx)
    }

    /// Sends all of `out`.
    ///
    /// # Errors
    /// The peer is gone.
    pub async fn send(&mut self, out: &mut BytesMut) -> io::Result<()> {
        std::future::poll_fn(|cx| self.poll_send(cx, out)).await
    }

    /// Tells the peer that nothing more comes (FIN, or TLS close_notify and FIN).
    pub async fn shut_down(&mut self) {
        // The peer may be gone already: there is nothing left to tell it then.
        let _ = std::future::poll_fn(|cx| match self {
            Self::Plain(socket) => Pin::new(socket).poll_shutdown(cx),
            Self::Tls(tls) => Pin::new(&mut **tls).poll_shutdown(cx),
        })
        .await;
    }
}
