//! Assembly: from a configuration to a running proxy, and its orderly end.

mod assemble;
mod files;
mod jwks;
mod keeper;
mod reload;
mod renewal;
mod shards;
mod shutdown;

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use listenfd::ListenFd;
use tokio::net::TcpListener;

use crate::admin::http::{self, Endpoints};
use crate::auth::token::Keys;
use crate::config::{Config, Listen};
use crate::net::listen::{Listener, socket_path};
use crate::session::Gate;
use reload::Reloader;
use shards::Shards;

/// How long transactions may go on after SIGTERM before the process ends anyway; below Kubernetes' default
/// `terminationGracePeriodSeconds` of 30 s.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(25);

/// What a Unix socket is named by where there is no TCP address (PgBouncer's port).
const DEFAULT_PORT: u16 = 6432;

/// Why the proxy could not start or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// An address is taken or not ours.
    #[error("cannot listen on {address}: {reason}")]
    Listen {
        /// host:port, or a socket's path.
        address: String,
        /// What the system said, and what to do.
        reason: String,
    },
    /// Something the configuration names cannot be used.
    #[error("{0}")]
    Configuration(String),
    /// The system gives no thread, or no signal handler.
    #[error("cannot start: {0}")]
    System(#[from] std::io::Error),
}

/// A proxy that listens and is ready to serve.
pub struct Proxy {
    gate: Arc<Gate>,
    listeners: Vec<Listener>,
    http: Option<TcpListener>,
    endpoints: Arc<Endpoints>,
    reloader: Reloader,
}

impl Proxy {
    /// Loads keys and certificates and binds the addresses; nothing is served yet.
    ///
    /// # Errors
    /// See [`ServeError`].
    pub async fn bind(config: &Config) -> Result<Self, ServeError> {
        let assembled = assemble::assemble(config)?;
        jwks::fetch_all(&assembled.gate.settings().keys).await;
        files::raise_limit(config);
        let passed = passed()?;
        let listeners = if passed.is_empty() { listen(&config.listen)? } else { passed };
        let http = match config.admin_http {
            Some(address) => Some(TcpListener::bind(address).await.map_err(|e| cannot_listen(&address, &e))?),
            None => None,
        };
        let endpoints = Arc::new(assembled.endpoints);
        let assemble::Assembled { gate, pools, watches, lasting, .. } = assembled;
        let watches = renewal::Watches::new(watches);
        let reloader = Reloader::new(config.clone(), (gate.clone(), pools), (watches, lasting));
        Ok(Self { gate, listeners, http, endpoints, reloader })
    }

    /// SIGHUP, and a change of this file, put what is in it in force.
    #[must_use]
    pub fn reloaded_from(mut self, file: &Path) -> Self {
        self.reloader.file = Some(file.to_owned());
        self
    }

    /// Where clients connect by TCP, with the ports that were taken.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners.iter().filter_map(Listener::local_addr).collect()
    }

    /// Where HTTP is served.
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.http.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// Serves until `stop` is ready, then lets transactions finish and clients leave.
    ///
    /// # Errors
    /// No thread could be started.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Result<(), ServeError> {
        let shards = Arc::new(Shards::start(&self.gate)?);
        let http_address = self.http_address();
        let (pools, watches) = (self.reloader.pools.clone(), self.reloader.watches.clone());
        let pausing = tokio::spawn(shutdown::pause_by_signals(pools.clone())?);
        let reloading = tokio::spawn(self.reloader.run()?);
        for listener in &self.listeners {
            announce(&format!("listening for clients on {listener}"));
        }
        if let Some(address) = http_address {
            announce(&format!("serving http on {address}"));
        }
        let http = self.http.map(|listener| tokio::spawn(http::serve(listener, self.endpoints.clone())));
        let keeper = tokio::spawn(keeper::keep(pools.clone(), self.endpoints.metrics.clone()));
        let renewal = tokio::spawn(renewal::watch(watches));
        let accepting: Vec<_> = self
            .listeners
            .into_iter()
            .map(|listener| tokio::spawn(shards::accept(listener, self.gate.clone(), shards.clone())))
            .collect();
        stop.await;
        // Balancers take a while to notice; who still comes is served.
        self.gate.is_ending();
        tokio::time::sleep(self.gate.settings().drain_delay).await;
        for listener in accepting {
            listener.abort();
            let _ = listener.await; // a socket's file goes with it
        }
        shutdown::drain(&self.gate, SHUTDOWN_GRACE).await;
        for task in [keeper, renewal, pausing] {
            task.abort();
        }
        reloading.abort();
        pools.close();
        if let Some(http) = http {
            http.abort();
        }
        announce("stopped");
        Ok(())
    }
}

/// Fetches the keys of every issuer that publishes them by HTTPS. Why they could not be fetched, by issuer.
pub async fn fetch_keys(keys: &Arc<Keys>) -> Vec<(String, String)> {
    jwks::fetch_all(keys).await;
    let issuers = keys.issuers().enumerate();
    let troubles =
        issuers.filter_map(|(index, issuer)| Some((issuer.issuer.clone(), keys.freshness(index)?.trouble?)));
    troubles.collect()
}

/// Waits for SIGTERM or SIGINT; a second one ends the process at once.
///
/// # Errors
/// The handlers cannot be installed.
pub fn stop_signal() -> Result<impl Future<Output = ()>, ServeError> {
    Ok(shutdown::stop_signal()?)
}

/// Sockets that a service manager passes on (sd_listen_fds(3)) take the place of those in `[listen]`.
fn passed() -> Result<Vec<Listener>, ServeError> {
    let mut given = ListenFd::from_env();
    let mut listeners = Vec::new();
    for index in 0..given.len() {
        let listener = match given.take_tcp_listener(index) {
            Ok(Some(tcp)) => Listener::passed_tcp(tcp),
            Ok(None) => continue,
            Err(_) => given.take_unix_listener(index).and_then(|unix| match unix {
                Some(unix) => Listener::passed_unix(unix),
                None => Err(std::io::ErrorKind::NotFound.into()),
            }),
        };
        let listener = listener.map_err(|error| ServeError::Listen {
            address: format!("passed socket {index}"),
            reason: format!("{error}; pass stream sockets that listen"),
        })?;
        listeners.push(listener);
    }
    Ok(listeners)
}

/// TCP first: sockets are named by the port of the first address, whichever was free.
fn listen(listen: &Listen) -> Result<Vec<Listener>, ServeError> {
    let mut listeners = Vec::new();
    for address in &listen.tcp {
        listeners.push(Listener::tcp(*address).map_err(|e| cannot_listen(address, &e))?);
    }
    let port = listeners.first().and_then(Listener::local_addr).map_or(DEFAULT_PORT, |a| a.port());
    for directory in &listen.unix {
        let listener = Listener::unix(directory, port).map_err(|error| {
            let address = socket_path(directory, port).display().to_string();
            ServeError::Listen { address, reason: error.to_string() }
        })?;
        listeners.push(listener);
    }
    Ok(listeners)
}

fn cannot_listen(address: &SocketAddr, error: &std::io::Error) -> ServeError {
    let what_to_do = match error.kind() {
        std::io::ErrorKind::AddrInUse => "; another process has this port: stop it, or choose another port",
        std::io::ErrorKind::PermissionDenied => "; choose a port above 1023",
        std::io::ErrorKind::AddrNotAvailable => "; this machine does not have that address",
        _ => "",
    };
    ServeError::Listen { address: address.to_string(), reason: format!("{error}{what_to_do}") }
}

/// A line that scripts wait for: always on standard error, whatever the log's level or form.
fn announce(line: &str) {
    // Nobody reads it if standard error is closed.
    let _ = writeln!(std::io::stderr(), "{line}");
}
