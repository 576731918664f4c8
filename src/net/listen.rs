//! Where clients come in: TCP addresses, and Unix sockets as PostgreSQL names them.

use std::fmt;
use std::fs::{File, Permissions};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, SockRef, Type};
use tokio::net::{TcpListener, TcpSocket, UnixListener};

use super::stream::Detached;

/// Whoever may enter the directory may connect, as with PostgreSQL's own `unix_socket_permissions`: who comes in has
/// still to sign in.
const SOCKET_MODE: u32 = 0o777;

/// Connections that the system accepts ahead of us (what tokio itself asks for).
const BACKLOG: u32 = 1024;

/// One address that clients may connect to.
#[derive(Debug)]
pub enum Listener {
    /// An address and port.
    Tcp(TcpListener),
    /// A socket in the file system, removed with the value, unless somebody else made it.
    Unix(UnixListener, Option<SocketFile>),
}

/// Who connected.
#[derive(Debug, Clone, Copy)]
pub enum Peer {
    /// From this address.
    Tcp(SocketAddr),
    /// A process of this machine, over a Unix socket.
    Unix,
}

impl Peer {
    /// Whether what it sends does not leave this machine.
    pub fn is_local(self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().to_canonical().is_loopback(),
            Self::Unix => true,
        }
    }

    /// Whether it came over a Unix socket, where PostgreSQL has no TLS.
    pub fn is_unix(self) -> bool {
        matches!(self, Self::Unix)
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix => f.write_str("[local]"), // PostgreSQL's word for it
        }
    }
}

impl Listener {
    /// Listens on an address; port 0 takes a free one. `[::]` is IPv6 alone, as in PostgreSQL, so that `0.0.0.0` may
    /// stand beside it.
    ///
    /// # Errors
    /// It is taken, or not ours.
    pub fn tcp(address: SocketAddr) -> io::Result<Self> {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => {
                let socket = TcpSocket::new_v6()?;
                SockRef::from(&socket).set_only_v6(true)?;
                socket
            }
        };
        // A restart finds the port in TIME_WAIT.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        Ok(Self::Tcp(socket.listen(BACKLOG)?))
    }

    /// Listens on PostgreSQL's socket for `port` in `directory`. One that a dead process left there is replaced; one
    /// on which somebody answers is not, nor is anything that is no socket.
    ///
    /// # Errors
    /// The place is taken, or not ours.
    pub fn unix(directory: &Path, port: u16) -> io::Result<Self> {
        let path = socket_path(directory, port);
        // Two processes that both find a dead socket would take each other's new one for it.
        let lock = File::open(directory)?;
        lock.try_lock().map_err(|_| in_use("another process is just listening there"))?;
        let listener = match UnixListener::bind(&path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                remove_dead(&path)?;
                UnixListener::bind(&path)?
            }
            bound => bound?,
        };
        std::fs::set_permissions(&path, Permissions::from_mode(SOCKET_MODE))?;
        Ok(Self::Unix(listener, Some(SocketFile::of(path)?)))
    }

    /// One that a service manager passed on, which keeps it through our restart: nobody is refused meanwhile.
    ///
    /// # Errors
    /// The reactor does not take it.
    pub fn passed_tcp(listener: std::net::TcpListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self::Tcp(TcpListener::from_std(listener)?))
    }

    /// The same of a Unix socket.
    ///
    /// # Errors
    /// The reactor does not take it.
    pub fn passed_unix(listener: std::os::unix::net::UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self::Unix(UnixListener::from_std(listener)?, None))
    }

    /// The port, if it has one.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok(),
            Self::Unix(..) => None,
        }
    }

    /// Waits for a client.
    ///
    /// # Errors
    /// The process has no descriptors left, or the client left already.
    pub async fn accept(&self) -> io::Result<(Detached, Peer)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok((Detached::Tcp(stream.into_std()?), Peer::Tcp(peer)))
            }
            Self::Unix(listener, _) => {
                let (stream, _) = listener.accept().await?;
                Ok((Detached::Unix(stream.into_std()?), Peer::Unix))
            }
        }
    }
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(listener) => match listener.local_addr() {
                Ok(address) => address.fmt(f),
                Err(error) => error.fmt(f),
            },
            Self::Unix(_, Some(file)) => file.path.display().fmt(f),
            Self::Unix(listener, None) => {
                let address = listener.local_addr().ok();
                let path = address.as_ref().and_then(|address| address.as_pathname());
                path.unwrap_or(Path::new("a Unix socket")).display().fmt(f)
            }
        }
    }
}

/// Where PostgreSQL and libpq look for a server's socket.
pub fn socket_path(directory: &Path, port: u16) -> PathBuf {
    directory.join(format!(".s.PGSQL.{port}"))
}

/// A socket's file; dropped, it is removed, unless somebody else has put another one in its place.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    identity: Identity,
}

impl SocketFile {
    fn of(path: PathBuf) -> io::Result<Self> {
        let identity = identity(&path)?;
        Ok(Self { path, identity })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|now| now == self.identity) {
            // A directory that is read-only by now keeps it; the next start replaces it.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Device, inode, and when that was last changed: numbers of inodes are used again at once.
type Identity = (u64, u64, i64, i64);

fn identity(path: &Path) -> io::Result<Identity> {
    let metadata = std::fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino(), metadata.ctime(), metadata.ctime_nsec()))
}

fn remove_dead(path: &Path) -> io::Result<()> {
    if !std::fs::symlink_metadata(path)?.file_type().is_socket() {
        return Err(in_use("something that is no socket is in its place; move it away"));
    }
    // Whoever lives but accepts nobody any more must not hold us up.
    let probe = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
    probe.set_nonblocking(true)?;
    match probe.connect(&SockAddr::unix(path)?) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
        _ => Err(in_use("another process answers there; stop it, or choose another directory or port")),
    }
}

fn in_use(reason: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::AlreadyExists, reason)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn only_a_dead_socket_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = socket_path(folder.path(), 6432);
        let first = Listener::unix(folder.path(), 6432).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, SOCKET_MODE);
        let taken = Listener::unix(folder.path(), 6432).unwrap_err();
        assert!(taken.to_string().contains("another process answers"), "{taken}");
        assert!(Listener::unix(folder.path(), 6433).is_ok(), "another port");
        // A process that was killed leaves its socket: the descriptor is closed, the file stays.
        let Listener::Unix(dead, file) = first else { panic!() };
        drop(dead);
        let second = Listener::unix(folder.path(), 6432).unwrap();
        drop(file);
        assert!(path.exists(), "what belongs to the second one is not the first one's to remove");
        drop(second);
        assert!(!path.exists());
        std::fs::write(&path, "mine").unwrap();
        let refused = Listener::unix(folder.path(), 6432).unwrap_err();
        assert!(refused.to_string().contains("no socket"), "{refused}");
        assert_eq!(std::fs::read(&path).unwrap(), b"mine");
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(folder.path().join("elsewhere"), &path).unwrap();
        assert!(Listener::unix(folder.path(), 6432).is_err(), "a link is not followed");
    }

    #[test]
    fn loopback_is_local_in_every_form() {
        for (address, is_local) in [
            ("127.0.0.1:1", true),
            ("[::1]:1", true),
            ("[::ffff:127.0.0.1]:1", true),
            ("[::ffff:10.0.0.1]:1", false),
            ("10.0.0.1:1", false),
        ] {
            assert_eq!(Peer::Tcp(address.parse().unwrap()).is_local(), is_local, "{address}");
        }
        assert!(Peer::Unix.is_local());
    }
}
