//! The pool of one database and one role: leases, waiting, opening, cleaning, closing.

use std::collections::BTreeMap;
use std::future::pending;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use lru::LruCache;
use tokio::sync::Notify;

use super::patience::Patience;
use super::queue::{Queue, Unserved};
use super::server::{BoundServer, CleanServer, Idle, Resting, Shard, TermsDigest, UsedServer};
use super::statement::Registry;
use super::switch::First;
use super::terms::Terms;
use crate::config::{Limits, PoolLimits, PoolMode, SealKeyError};
use crate::net::dial::{DialError, Dialer};
use crate::net::watched::Watched;
use crate::observe::metrics::DatabaseMetrics;
use crate::tenancy::context::TenantContext;
use crate::tenancy::seal::{SealedContext, Sealer, ServerPid};
use crate::tenancy::settings::{READ_ONLY, Settings};
use crate::tenancy::statements::Binder;
use crate::wire::report::{Report, Sqlstate};

/// Kinds of settings at sign-in whose trial is remembered.
const MAX_TRIALS: usize = 256;

/// What a pool is made of.
pub struct PoolSettings {
    /// The client's name of the database, for messages.
    pub database: String,
    /// The role on the server.
    pub role: String,
    /// How to open a server; that may change.
    pub dialer: ArcSwap<Dialer>,
    /// How long a client keeps its server.
    pub mode: PoolMode,
    /// Its bounds; they may change.
    pub limits: ArcSwap<PoolLimits>,
    /// Rights of its organizations.
    pub organizations: Arc<ArcSwap<Limits>>,
    /// Makes the seals, with the key that is in its file now; none where no key is configured, and then no context can be
    /// bound.
    pub sealer: Option<Arc<Watched<Sealer, SealKeyError>>>,
    /// Writes what binds and cleans its servers.
    pub binder: Binder,
    /// Where it reports.
    pub metrics: Arc<DatabaseMetrics>,
}

/// Names and values of ParameterStatus.
type Told = Vec<(String, String)>;

/// Servers, and clients that wait for them.
pub struct Pool {
    /// What PostgreSQL reported of settings that clients brought, by their digest.
    trials: Mutex<LruCache<TermsDigest, Arc<Told>>>,
    pub(super) settings: PoolSettings,
    registry: Registry,
    state: Mutex<State>,
    /// A server was opened: who pauses before it tries again need not.
    pub(super) answers: Notify,
}

#[derive(Default)]
pub(super) struct State {
    /// Least recently used first.
    pub(super) idle: Vec<Idle>,
    pub(super) waiting: Queue,
    /// Places taken: servers in any state, those being opened or cleaned included.
    pub(super) open: usize,
    pub(super) opening: usize,
    /// Of those being opened, whose server has not answered for so long that others are tried beside them.
    pub(super) slow: usize,
    /// ParameterStatus of the newest server.
    pub(super) parameters: Option<Arc<BTreeMap<String, String>>>,
    /// Why the last attempt to open a server failed; none after a success.
    pub(super) trouble: Option<DialError>,
    /// When that was.
    pub(super) failed: Option<Instant>,
    /// How many clean servers were missed lately: as many are cleaned ahead of the next ones who want them.
    pub(super) clean_wanted: usize,
    /// No transaction begins.
    pub(super) is_paused: bool,
    /// Servers that were opened before are closed when they come back: they lead where nobody is to go any more.
    pub(super) reconnects: Option<Instant>,
    /// Since when they do again.
    pub(super) resumed: Option<Instant>,
    /// No configuration names it any more: it serves whoever is connected.
    pub(super) is_retired: bool,
    /// No more servers are opened: the process ends.
    pub(super) is_closing: bool,
}

/// A pool's numbers at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolCount {
    /// Servers that exist or are being opened.
    pub open: usize,
    /// Of them, on the shelf.
    pub idle: usize,
    /// Clients in line.
    pub waiting: usize,
    /// The bound.
    pub size: usize,
    /// How long the first of those in line has waited.
    pub oldest: Duration,
}

impl State {
    /// Servers being opened that count against [`MAX_OPENING`](super::supply::MAX_OPENING).
    pub(super) fn quick(&self) -> usize {
        self.opening - self.slow
    }
}

impl Pool {
    /// An empty pool; servers are opened when they are needed.
    pub fn new(settings: PoolSettings) -> Arc<Self> {
        let trials = Mutex::new(LruCache::new(NonZeroUsize::new(MAX_TRIALS).unwrap_or(NonZeroUsize::MIN)));
        Arc::new(Self {
            trials,
            settings,
            registry: Registry::default(),
            state: Mutex::default(),
            answers: Notify::new(),
        })
    }

    /// What PostgreSQL reported of these settings when a client brought them before, so that its kind need not wait for a
    /// server to sign in.
    pub fn tried(&self, settings: TermsDigest) -> Option<Arc<Told>> {
        self.trials.lock().unwrap_or_else(PoisonError::into_inner).get(&settings).cloned()
    }

    /// Remembers what PostgreSQL reported of settings that it accepted.
    pub fn remember_trial(&self, settings: TermsDigest, told: Told) {
        self.trials.lock().unwrap_or_else(PoisonError::into_inner).put(settings, Arc::new(told));
    }

    /// The prepared statements that its clients share.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// How long its clients keep their servers.
    pub fn mode(&self) -> PoolMode {
        self.settings.mode
    }

    /// Where it reports.
    pub fn metrics(&self) -> &DatabaseMetrics {
        &self.settings.metrics
    }

    /// The same, to be shared with another role's pool.
    pub fn shared_metrics(&self) -> Arc<DatabaseMetrics> {
        self.settings.metrics.clone()
    }

    /// Its numbers now.
    pub fn count(&self) -> PoolCount {
        let mut state = self.lock();
        let (open, idle, waiting) = (state.open, state.idle.len(), state.waiting.len());
        let oldest = state.waiting.oldest();
        PoolCount { open, idle, waiting, size: self.limits().size, oldest }
    }

    /// Why it cannot serve, if the last attempt to open a server failed and none is open; new clients of one that is retired
    /// there are none.
    pub fn unready(&self) -> Option<DialError> {
        let state = self.lock();
        state.trouble.clone().filter(|_| state.open == state.opening && !state.is_retired)
    }

    /// What PostgreSQL reports at sign-in, asked of a server once.
    ///
    /// # Errors
    /// No server can be had.
    pub async fn parameters(self: &Arc<Self>, shard: Shard) -> Result<Arc<BTreeMap<String, String>>, Report> {
        let known = self.lock().parameters.clone();
        if let Some(parameters) = known {
            return Ok(parameters);
        }
        let nothing = Terms::new(None, Arc::default());
        match self.take(&nothing, shard, self.limits().wait_timeout, &mut pending()).await {
            Ok(server) => self.put_back(server),
            Err(Unserved::Refused(report)) => return Err(report),
            Err(Unserved::Gone) => {}
        }
        self.lock().parameters.clone().ok_or_else(|| Report::new(Sqlstate::INTERNAL, "no server parameters"))
    }

    /// Leases a server under `terms`: bound already, or with the binding queued ahead of whatever the client sends.
    /// `first`: what the client sends first.
    /// `gone` resolves when the client has left: then it is not waited for.
    ///
    /// # Errors
    /// None came free within `wait_timeout`, or none could be made ready within as much more (53300), PostgreSQL cannot be
    /// reached or refuses the role, or the client left.
    pub async fn lease(
        self: &Arc<Self>,
        terms: &Terms,
        shard: Shard,
        first: First,
        gone: &mut (impl Future<Output = ()> + Unpin),
    ) -> Result<BoundServer, Unserved> {
        let mut server = self.take(terms, shard, self.limits().wait_timeout, gone).await?;
        let mut patience = Patience::default();
        let metrics = &self.settings.metrics;
        let (mut was_cleaned, mut may_take_over) = (false, true);
        loop {
            match server {
                Idle::Used(used) if used.serves(terms.digest(), SystemTime::now()) => {
                    metrics.reused.increment(1);
                    return Ok(used.reuse());
                }
                Idle::Clean(clean, _) => {
                    let kind = if was_cleaned { &metrics.switched } else { &metrics.bound };
                    kind.increment(1);
                    return Ok(self.bind(clean, terms)?);
                }
                Idle::Used(used) if used.may_switch_with(first, terms) => {
                    return Ok(self.switch(used, terms, first)?);
                }
                Idle::Used(used)
                    if may_take_over && used.may_switch(terms) && !used.is_to_be_asked_for(first) =>
                {
                    let sealed = self.seal(used.pid(), terms)?;
                    let sealed = sealed.as_ref().map(|(sealed, _)| sealed);
                    match self.in_time(&mut patience, gone, used.take_over(sealed, terms)).await? {
                        Ok(bound) => {
                            metrics.switched.increment(1);
                            return Ok(bound);
                        }
                        Err(unclean) => {
                            // It may be the client's own settings: the next one is cleaned before it is bound to them.
                            tracing::warn!(pool = self.name(), reason = %unclean, "a server could not be taken over and was closed");
                            may_take_over = false;
                            server = self.take(terms, shard, patience.left(), gone).await?;
                        }
                    }
                }
                Idle::Used(used) => match self.in_time(&mut patience, gone, used.clean()).await? {
                    Ok(clean) => {
                        was_cleaned = true;
                        server = Idle::Clean(clean, Instant::now());
                    }
                    Err(unclean) => {
                        // Its place is free again; another server takes its part.
                        tracing::warn!(pool = self.name(), reason = %unclean, "a server could not be cleaned and was closed");
                        server = self.take(terms, shard, patience.left(), gone).await?;
                    }
                },
            }
        }
    }

    /// The same where nothing has to be waited for: a server that serves these terms, or a clean one, is idle, or one that
    /// can be taken over with what the client sends first.
    pub fn lease_at_once(
        self: &Arc<Self>,
        terms: &Terms,
        shard: Shard,
        first: impl FnOnce() -> First,
    ) -> Option<BoundServer> {
        let now = SystemTime::now();
        let (mut server, first) = match self.take_ready(terms, shard, First::Apart, now) {
            Some(server) => (server, First::Apart),
            // What the client sends is read only where it matters, and while nobody waits for the pool.
            None => match first() {
                First::Apart => return None,
                first => (self.take_ready(terms, shard, first, now)?, first),
            },
        };
        let alive = server.is_alive(&mut Context::from_waker(Waker::noop()));
        if !alive || server.rehome(shard).is_err() {
            return None;
        }
        let metrics = &self.settings.metrics;
        match server {
            Idle::Used(used) if used.serves(terms.digest(), now) => {
                metrics.reused.increment(1);
                Some(used.reuse())
            }
            Idle::Used(used) => self.switch(used, terms, first).ok(),
            Idle::Clean(clean, _) => {
                metrics.bound.increment(1);
                self.bind(clean, terms).ok()
            }
        }
    }

    fn bind(&self, server: CleanServer, terms: &Terms) -> Result<BoundServer, Report> {
        let sealed = self.seal(server.pid(), terms)?;
        let sealed = sealed.as_ref().map(|(sealed, _)| sealed);
        server.bind(sealed, terms).map_err(|unclean| Report::new(Sqlstate::INTERNAL, unclean.to_string()))
    }

    /// Takes a server over from other terms, with what the client sends first.
    fn switch(&self, server: UsedServer, terms: &Terms, first: First) -> Result<BoundServer, Report> {
        let sealed = self.seal(server.pid(), terms)?;
        let sealed = sealed.as_ref().map(|(sealed, _)| sealed);
        self.settings.metrics.switched.increment(1);
        server
            .switch(sealed, terms, first)
            .map_err(|unclean| Report::new(Sqlstate::INTERNAL, unclean.to_string()))
    }

    /// Binds a server anew for the client that keeps it, where that is due: its seal lapses, or a RESET undid what was
    /// bound. `settings` are the client's own that the RESET took.
    ///
    /// # Errors
    /// There is no key to seal with.
    pub fn renew(&self, server: &mut BoundServer, terms: &Terms, settings: &Settings) -> Result<(), Report> {
        if server.needs_binding(SystemTime::now())
            && let Some(over) = server.ledger().over()
        {
            let sealed = self.seal(server.pid(), terms)?;
            let sealed = sealed.as_ref().map(|(sealed, context)| (sealed, *context));
            let mut settings = settings.clone();
            // What a context made of its transactions goes with it.
            if terms.is_read_only() || server.is_read_only() {
                let own = terms.bound_settings().get(READ_ONLY).cloned();
                settings.insert(READ_ONLY.to_owned(), own.unwrap_or_else(|| "off".to_owned()));
            }
            server.rebind(&over, sealed, &settings);
            self.settings.metrics.bound.increment(1);
        }
        Ok(())
    }

    /// Puts a server under another context, or none, within a transaction; with `is_local` until that ends. `answer` is what
    /// the client gets for it. Returns the seal, by which the context can be known again.
    ///
    /// # Errors
    /// There is no key to seal with.
    pub fn put_under(
        &self,
        server: &mut BoundServer,
        context: Option<&TenantContext>,
        is_local: bool,
        answer: &[u8],
    ) -> Result<String, Report> {
        let sealed = self.seal_context(server.pid(), context)?;
        let bound = sealed.as_ref().map(|(sealed, context)| (sealed, context.payload()));
        self.settings.metrics.bound.increment(1);
        server.put_under(bound, is_local, answer);
        Ok(sealed.map_or_else(String::new, |(sealed, _)| sealed.text().to_owned()))
    }

    fn seal<'t>(
        &self,
        pid: ServerPid,
        terms: &'t Terms,
    ) -> Result<Option<(SealedContext, &'t TenantContext)>, Report> {
        self.seal_context(pid, terms.context())
    }

    fn seal_context<'t>(
        &self,
        pid: ServerPid,
        context: Option<&'t TenantContext>,
    ) -> Result<Option<(SealedContext, &'t TenantContext)>, Report> {
        match (context, &self.settings.sealer) {
            (None, _) => Ok(None),
            (Some(context), Some(sealer)) => {
                Ok(Some((sealer.borrow().seal(context, pid, SystemTime::now()), context)))
            }
            (Some(_), None) => {
                Err(Report::new(Sqlstate::INTERNAL, "a context cannot be sealed without context.seal_key"))
            }
        }
    }

    /// How servers are opened now.
    pub fn dialer(&self) -> Arc<Dialer> {
        self.settings.dialer.load_full()
    }

    /// Its bounds now.
    pub(super) fn limits(&self) -> PoolLimits {
        **self.settings.limits.load()
    }

    /// Its name in the log.
    pub fn name(&self) -> String {
        format!("{}/{}", self.settings.database, self.settings.role)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while it was held cannot have left it inconsistent in a way that matters more than serving on.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells a client why no server could be opened.
pub(super) fn refused(error: &DialError) -> Report {
    let code = match error {
        DialError::Unreachable { .. } => Sqlstate::CANNOT_CONNECT,
        DialError::Refused { .. } | DialError::Unsupported { .. } => Sqlstate::SERVER_REJECTED,
    };
    Report::new(code, error.to_string())
}
