//! Cancel requests: keys of our own, and the certainty that a cancel never hits a server's next client.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::task::AtomicWaker;
use tokio::sync::Notify;

use crate::net::way::CancelTarget;
use crate::wire::report::{Report, Sqlstate};
use crate::wire::startup::CancelKey;

/// The minor version of the protocol that has room for more than four bytes.
const LONG_SECRETS_SINCE: u16 = 2;

/// As long as PostgreSQL 18's own.
const LONG_SECRET: usize = 32;

/// All that protocol 3.0 has room for.
const SHORT_SECRET: usize = 4;

/// All signed-in clients by their cancel key.
#[derive(Default)]
pub struct Cancels {
    clients: Mutex<HashMap<CancelKey, Arc<ClientHandle>>>,
}

/// How others reach a client: to cancel what it runs, or to wake it.
#[derive(Default)]
pub struct ClientHandle {
    /// Wakes the client's task.
    pub waker: AtomicWaker,
    running: Mutex<Running>,
    settled: Notify,
}

#[derive(Default)]
struct Running {
    target: Option<Arc<CancelTarget>>,
    /// What the client sent waits for a server.
    is_queued: bool,
    /// A cancel request is on its way to the target. One is enough: another would strike the same query.
    in_flight: bool,
    /// The target does the proxy's own work: nothing of the client's is there to be cancelled yet.
    is_binding: bool,
    /// A request came meanwhile.
    is_wanted: bool,
    /// A request came since the client was given its server.
    was_asked: bool,
    /// A request was given up on its way: it may still strike whatever the server does next.
    in_doubt: bool,
}

/// A client's entry; dropping it takes the key out.
pub struct Registered {
    cancels: Arc<super::Gate>,
    /// The key that the client was told.
    pub key: CancelKey,
    /// The client.
    pub handle: Arc<ClientHandle>,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.cancels.cancels.lock().remove(&self.key);
    }
}

impl Cancels {
    /// Gives a client a key that nobody else has: random to the last bit, also where PostgreSQL tells its process id.
    /// `None` when the system has no random bytes: then nobody could be kept from guessing.
    pub fn register(gate: &Arc<super::Gate>, minor: u16) -> Option<Registered> {
        let handle = Arc::new(ClientHandle::default());
        loop {
            let key = random_key(minor)?;
            if let Entry::Vacant(place) = gate.cancels.lock().entry(key.clone()) {
                place.insert(handle.clone());
                return Some(Registered { cancels: gate.clone(), key, handle });
            }
        }
    }

    /// Cancels what the client with this key runs, if anything. An unknown key is ignored, as PostgreSQL does.
    pub async fn cancel(&self, key: &CancelKey) {
        let Some(handle) = self.lock().get(key).cloned() else {
            tracing::debug!("a cancel request with a key that no client has");
            return;
        };
        let Some(in_flight) = InFlight::begin(handle) else { return };
        // On its own: whoever asked may not wait, but the request must not be forgotten on its way.
        // It panics never, and is not aborted but with the process.
        let _ = tokio::spawn(in_flight.send()).await;
    }

    /// Wakes every client, to see that the house is closing.
    pub fn wake_all(&self) {
        for handle in self.lock().values() {
            handle.waker.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<CancelKey, Arc<ClientHandle>>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a client is told whose query was cancelled before PostgreSQL had it.
pub fn cancelled() -> Report {
    Report::new(Sqlstate::QUERY_CANCELED, "canceling statement due to user request")
}

fn random_key(minor: u16) -> Option<CancelKey> {
    let mut pid = [0; 4];
    aws_lc_rs::rand::fill(&mut pid).ok()?;
    // PostgreSQL's process ids are positive; some drivers read this one as a signed number.
    let pid = (u32::from_be_bytes(pid) & 0x7fff_ffff).max(1);
    let mut secret = vec![0; if minor >= LONG_SECRETS_SINCE { LONG_SECRET } else { SHORT_SECRET }];
    aws_lc_rs::rand::fill(&mut secret).ok()?;
    Some(CancelKey { pid, secret })
}

/// A cancel request on its way, until it is dropped, however that comes about.
struct InFlight {
    handle: Arc<ClientHandle>,
    target: Arc<CancelTarget>,
    /// PostgreSQL has dealt with it.
    is_settled: bool,
}

impl InFlight {
    fn begin(handle: Arc<ClientHandle>) -> Option<Self> {
        let target = {
            let mut running = handle.lock();
            running.was_asked = true;
            if running.in_flight {
                tracing::debug!("a cancel request while one is on its way");
                return None;
            }
            if running.is_binding || running.is_queued {
                tracing::debug!(
                    is_queued = running.is_queued,
                    "a cancel request is kept until there is something to cancel"
                );
                running.is_wanted = true;
                drop(running);
                handle.waker.wake();
                return None;
            }
            let Some(target) = running.target.clone() else {
                tracing::debug!("a cancel request while nothing runs");
                return None;
            };
            running.in_flight = true;
            target
        };
        Some(Self { handle, target, is_settled: false })
    }

    async fn send(mut self) {
        match self.target.cancel().await {
            // PostgreSQL has dealt with it.
            Ok(()) => {
                tracing::debug!(server = self.target.pid(), "a cancel request was delivered");
                self.is_settled = true;
            }
            Err(error) => tracing::warn!(reason = %error, "a cancel request was not delivered"),
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        {
            let mut running = self.handle.lock();
            running.in_flight = false;
            running.in_doubt |= !self.is_settled;
        }
        self.handle.settled.notify_one();
    }
}

impl ClientHandle {
    /// What the client sent waits for a server from now on: a request to cancel it is remembered, and wakes the client's task.
    pub fn is_queued(&self) {
        let mut running = self.lock();
        (running.is_queued, running.is_wanted) = (true, false);
    }

    /// Whether a request came while it waited.
    pub fn is_cancelled(&self) -> bool {
        let running = self.lock();
        running.is_queued && running.is_wanted
    }

    /// It waits no longer. Whether a request came.
    pub fn is_served(&self) -> bool {
        let mut running = self.lock();
        running.is_queued = false;
        running.is_wanted
    }

    /// From now on a cancel request goes to this server; while that `is_binding`, as soon as it has done so.
    pub fn runs_on(&self, server: &Arc<CancelTarget>, is_binding: bool) {
        let mut running = self.lock();
        running.target = Some(server.clone());
        (running.is_binding, running.was_asked) = (is_binding, false);
    }

    /// Whether a request came since the client was given its server.
    pub fn was_asked(&self) -> bool {
        self.lock().was_asked
    }

    /// What the client sent runs from now on, and a request that came early is sent on.
    pub fn is_bound(self: &Arc<Self>) {
        let is_wanted = {
            let mut running = self.lock();
            running.is_binding = false;
            std::mem::take(&mut running.is_wanted)
        };
        if is_wanted && let Some(in_flight) = InFlight::begin(self.clone()) {
            tokio::spawn(in_flight.send());
        }
    }

    /// What the client sent ran as soon as its server was bound: a request that came early has nothing to strike.
    pub fn has_nothing_to_cancel(&self) {
        let mut running = self.lock();
        (running.is_binding, running.is_wanted) = (false, false);
    }

    /// From now on there is nothing to cancel. Waits for requests that are on their way to the server: it must not
    /// go to its next client while one of them may still strike. Whether one may strike all the same, because it is not
    /// known what became of it: then the server must be closed.
    #[must_use]
    pub async fn runs_nothing(&self) -> bool {
        loop {
            {
                let mut running = self.lock();
                running.target = None;
                (running.is_binding, running.is_wanted) = (false, false);
                if !running.in_flight {
                    return std::mem::take(&mut running.in_doubt);
                }
            }
            self.settled.notified().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
