//! One single-threaded runtime per core, each with its own clients: no task ever crosses threads.
//!
//! Clients are dealt to the shard with the fewest. Servers belong to one pool for all shards, prefer the shard where
//! they are, and move when another one is short of them (ARCHITECTURE.md has the measurements).

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::net::listen::{Listener, Peer};
use crate::net::stream::Detached;
use crate::pool::server::Shard;
use crate::session::{self, Gate, Presence};

/// How long nobody is accepted after one could not be.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How long until the log says so again.
const TELLS_AGAIN: Duration = Duration::from_secs(10);

/// The threads that serve clients.
pub(super) struct Shards(Vec<ShardThread>);

/// A client on its way to a shard; it is counted already.
struct Arrival {
    socket: Detached,
    peer: Peer,
    presence: Presence,
}

struct ShardThread {
    clients: mpsc::UnboundedSender<Arrival>,
    load: Arc<AtomicUsize>,
}

impl Shards {
    /// Starts a thread per core (as many as the process may use).
    pub(super) fn start(gate: &Arc<Gate>) -> io::Result<Self> {
        let count = std::thread::available_parallelism().map_or(1, usize::from);
        (0..count)
            .map(|index| ShardThread::start(Shard(index), gate.clone()))
            .collect::<io::Result<_>>()
            .map(Self)
    }

    /// Deals a client to the shard with the fewest.
    fn deal(&self, arrival: Arrival) {
        let least = self.0.iter().min_by_key(|shard| shard.load.load(Ordering::Relaxed));
        if let Some(shard) = least {
            shard.load.fetch_add(1, Ordering::Relaxed);
            // The thread is gone only when the process ends.
            let _ = shard.clients.send(arrival);
        }
    }
}

impl ShardThread {
    fn start(shard: Shard, gate: Arc<Gate>) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        // Unbounded, but for max_clients: whoever deals has counted the client in.
        let (clients, mut arriving) = mpsc::unbounded_channel::<Arrival>();
        let load = Arc::new(AtomicUsize::new(0));
        let shown = load.clone();
        std::thread::Builder::new().name(format!("shard-{}", shard.0)).spawn(move || {
            runtime.block_on(async move {
                while let Some(Arrival { socket, peer, presence }) = arriving.recv().await {
                    let (gate, load) = (gate.clone(), load.clone());
                    tokio::spawn(async move {
                        let _load = Load(load);
                        let _presence = presence;
                        match socket.attach() {
                            Ok(socket) => session::serve(gate, socket, peer, shard).await,
                            Err(error) => {
                                tracing::warn!(%peer, reason = %error, "a client was lost while it connected");
                            }
                        }
                    });
                }
            });
        })?;
        Ok(Self { clients, load: shown })
    }
}

struct Load(Arc<AtomicUsize>);

impl Drop for Load {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Accepts clients until it is aborted.
pub(super) async fn accept(listener: Listener, gate: Arc<Gate>, shards: Arc<Shards>) {
    let mut told: Option<Instant> = None;
    loop {
        match listener.accept().await {
            Ok((socket, peer)) if gate.clients() >= gate.settings().max_clients => {
                tracing::warn!(%peer, "max_clients is reached");
                if let Ok(socket) = socket.attach() {
                    tokio::spawn(session::turn_away(gate.clone(), socket, peer));
                }
            }
            // Registered anew by the shard that gets it.
            Ok((socket, peer)) => shards.deal(Arrival { socket, peer, presence: gate.enter() }),
            Err(error) => {
                // Out of descriptors, or the client left already. A pause keeps this from spinning.
                if told.is_none_or(|told| told.elapsed() > TELLS_AGAIN) {
                    told = Some(Instant::now());
                    tracing::warn!(
                        reason = %error,
                        "cannot accept a client; if it is for want of file descriptors, raise the limit (LimitNOFILE, ulimit -n)"
                    );
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
