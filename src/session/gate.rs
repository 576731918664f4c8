//! What every session is handed: who may sign in, the pools, and whether the house is closing.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

use super::accounts::Accounts;
use super::cancel::Cancels;
use super::throttle::Throttle;
use crate::auth::scram::{Strangers, Verifier};
use crate::auth::token::Keys;
use crate::config::{Database, Limits, Role};
use crate::net::tls::Shown;
use crate::net::watched::Watched;
use crate::pool::Pool;
use crate::tenancy::context::{Mapping, TenantContext};
use crate::tenancy::guard::Guard;
use crate::tenancy::revoked::{Revoked, RevokedError};

/// What a gate is made of; another configuration makes another one.
#[derive(Clone)]
pub struct GateSettings {
    /// The certificate shown to clients.
    pub tls: Option<Arc<Watched<Shown>>>,
    /// Refuse clients without TLS.
    pub tls_required: bool,
    /// From the first byte to ReadyForQuery.
    pub sign_in_timeout: Duration,
    /// What the first failed sign-in from an address costs.
    pub failed_sign_in_delay: Duration,
    /// From SIGTERM, when readiness turns off, until nobody is accepted any more.
    pub drain_delay: Duration,
    /// Clients at most.
    pub max_clients: usize,
    /// The databases by the name that clients use.
    pub databases: BTreeMap<String, Arc<Database>>,
    /// The users.
    pub roles: BTreeMap<String, Arc<Role>>,
    /// SCRAM verifiers of the roles that sign in so.
    pub verifiers: BTreeMap<String, Verifier>,
    /// Keys of the token issuers.
    pub keys: Arc<Keys>,
    /// Where the context is in a token.
    pub mapping: Mapping,
    /// Whose tokens do not hold any more.
    pub revoked: Option<Arc<Watched<Revoked, RevokedError>>>,
    /// What clients with a context may not change.
    pub guard: Arc<Guard>,
    /// What organizations may take.
    pub limits: Arc<ArcSwap<Limits>>,
    /// A pool for each database and role.
    pub pools: HashMap<(String, String), Arc<Pool>>,
}

/// Hashing a password takes milliseconds of a core: strangers who send many must not get all of them.
const MAX_HASHING: usize = 2;

/// Clients beyond `max_clients` that are told so; more are closed without a word.
const MAX_TURNED_AWAY: usize = 64;

/// Shared by all sessions.
pub struct Gate {
    settings: ArcSwap<GateSettings>,
    /// Who may cancel what.
    pub cancels: Cancels,
    /// What users that do not exist are asked with.
    pub strangers: Strangers,
    /// Clients that are told at this moment that there is no room.
    pub turned_away: Semaphore,
    /// Who failed to sign in lately, and from where.
    pub throttle: Throttle,
    /// What organizations take of it.
    pub accounts: Accounts,
    /// Passwords in clear that are hashed at the same time.
    pub hashing: Semaphore,
    revocations: AtomicU64,
    unready: AtomicBool,
    draining: AtomicBool,
    drain: Notify,
    clients: AtomicUsize,
}

impl Gate {
    /// Opens for business.
    pub fn new(settings: GateSettings) -> Arc<Self> {
        Arc::new(Self {
            throttle: Throttle::new(settings.failed_sign_in_delay),
            accounts: Accounts::new(settings.limits.clone()),
            settings: ArcSwap::from_pointee(settings),
            cancels: Cancels::default(),
            strangers: Strangers::default(),
            turned_away: Semaphore::new(MAX_TURNED_AWAY),
            hashing: Semaphore::new(MAX_HASHING),
            revocations: AtomicU64::new(0),
            unready: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            drain: Notify::new(),
            clients: AtomicUsize::new(0),
        })
    }

    /// What it is made of now.
    pub fn settings(&self) -> Arc<GateSettings> {
        self.settings.load_full()
    }

    /// Another configuration is in force, for whoever comes.
    pub fn is_changed(&self, settings: GateSettings) {
        self.settings.store(Arc::new(settings));
        self.revocations_changed();
    }

    /// The pool that serves a database and a role.
    pub fn pool(&self, database: &str, role: &str) -> Option<Arc<Pool>> {
        self.settings.load().pools.get(&(database.to_owned(), role.to_owned())).cloned()
    }

    /// The end is near: balancers are to send nobody here any more. Who comes all the same is served.
    pub fn is_ending(&self) {
        self.unready.store(true, Ordering::SeqCst);
    }

    /// Whether balancers are to send clients here.
    pub fn wants_clients(&self) -> bool {
        !self.unready.load(Ordering::Relaxed)
    }

    /// Whether idle clients are to leave and no transaction is to begin.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Asks all clients to leave: idle ones now, others when their transaction is over.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
        self.drain.notify_waiters();
        self.cancels.wake_all();
    }

    /// What of a context is revoked, if anything; and whether what runs under it is to end.
    pub fn revocation(&self, context: &TenantContext) -> Option<(&'static str, bool)> {
        let settings = self.settings.load();
        let revoked = settings.revoked.as_ref()?.borrow();
        Some((revoked.concerns(context)?, revoked.kills))
    }

    /// Something was revoked: clients whose transactions are to end see it at once.
    pub fn revocations_changed(&self) {
        self.revocations.fetch_add(1, Ordering::Release);
        self.cancels.wake_all();
    }

    /// How often something was revoked.
    pub fn revocations(&self) -> u64 {
        self.revocations.load(Ordering::Acquire)
    }

    /// Resolves when the house is closing.
    pub async fn drained(&self) {
        let drain = self.drain.notified();
        if !self.is_draining() {
            drain.await;
        }
    }

    /// Connected clients, signed in or not.
    pub fn clients(&self) -> usize {
        self.clients.load(Ordering::Relaxed)
    }

    /// Counts a client in, until the guard is dropped.
    pub fn enter(self: &Arc<Self>) -> Presence {
        self.clients.fetch_add(1, Ordering::Relaxed);
        Presence(self.clone())
    }

    /// When a client that connects now must have signed in.
    pub fn sign_in_deadline(&self) -> Instant {
        Instant::now() + self.settings.load().sign_in_timeout
    }
}

/// A client that is counted.
pub struct Presence(Arc<Gate>);

impl Drop for Presence {
    fn drop(&mut self) {
        self.0.clients.fetch_sub(1, Ordering::Relaxed);
    }
}
