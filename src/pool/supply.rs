//! Servers come and go: opened when somebody waits or `min_idle` asks for them, closed by age and idleness.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::holder::Holder;
use super::lease::{Pool, State, refused};
use super::server::{CleanServer, Idle, Place, Resting, Shard, Unclean, jittered};
use crate::net::dial::{DialError, Dialer, Dialled};
use crate::wire::report::Report;

/// How long to wait before trying again to open a server, after the first failure and at most.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MOST: Duration = Duration::from_secs(1);

/// A server that has not answered for so long may never: others are tried beside it.
const SLOW: Duration = Duration::from_secs(1);

/// For how long nobody tries again after PostgreSQL has refused the role: all are told what it said.
const REFUSED: Duration = Duration::from_millis(500);

/// So long after PostgreSQL has refused the role it is asked again, where no client comes to ask: the pool is not ready, and nobody is sent.
const ASKED_AGAIN: Duration = Duration::from_secs(3);

/// Servers that may be signing in at the same time in one pool: more would only slow each other down.
pub(super) const MAX_OPENING: usize = 4;

impl Pool {
    /// Opens one more server in the background.
    pub(super) fn open(self: &Arc<Self>, state: &mut State, shard: Shard) {
        state.open += 1;
        state.opening += 1;
        let pool = self.clone();
        let vacate = Arc::downgrade(self);
        let place = Place::new(move |holder| {
            if let Some(pool) = vacate.upgrade() {
                pool.vacated(shard, holder);
            }
        });
        tokio::spawn(async move { pool.open_one(shard, place).await });
    }

    async fn open_one(self: &Arc<Self>, shard: Shard, place: Place) {
        let max_age = self.limits().max_age;
        let mut pause = RETRY_FIRST;
        loop {
            let (began, dialer) = (Instant::now(), self.dialer());
            let error = match self.dial(&dialer, shard).await {
                Ok(dialled) => {
                    let parameters = Arc::new(dialled.parameters.clone());
                    match CleanServer::prepare(
                        dialled,
                        shard,
                        place,
                        (began, max_age),
                        self.settings.binder.clone(),
                    )
                    .await
                    {
                        Ok(server) => self.opened(parameters, server),
                        Err(unclean) => {
                            tracing::warn!(pool = self.name(), reason = %unclean, "a new server failed at once");
                            if self.goes_on_opening(&unprepared(&dialer, &unclean)) {
                                tokio::time::sleep(jittered(pause)).await;
                                self.lock().opening -= 1;
                                self.open_for_waiting(&mut self.lock(), shard);
                            }
                        }
                    }
                    return;
                }
                Err(error) => error,
            };
            tracing::warn!(pool = self.name(), reason = %error, "cannot open a server");
            if !self.goes_on_opening(&error) {
                return;
            }
            // Proxies that lost the same server do not come back together. Once it answers one of us, nobody waits.
            tokio::select! {
                () = tokio::time::sleep(jittered(pause)) => {}
                () = self.answers.notified() => {}
            }
            pause = (pause * 2).min(RETRY_MOST);
        }
    }

    /// Signs in; after a while, others are tried beside it.
    async fn dial(self: &Arc<Self>, dialer: &Dialer, shard: Shard) -> Result<Dialled, DialError> {
        let mut dialling = std::pin::pin!(dialer.dial());
        if let Ok(outcome) = tokio::time::timeout(SLOW, &mut dialling).await {
            return outcome;
        }
        {
            let mut state = self.lock();
            state.slow += 1;
            self.open_for_waiting(&mut state, shard);
        }
        let outcome = tokio::select! {
            outcome = &mut dialling => outcome,
            // Others are answered: what is said on this connection nobody hears.
            () = self.answers.notified() => {
                dialling.set(dialer.dial());
                dialling.await
            }
        };
        self.lock().slow -= 1;
        outcome
    }

    /// What PostgreSQL said to the role a moment ago, if it refused it.
    pub(super) fn was_refused(&self, state: &State) -> Option<Report> {
        let trouble = state.trouble.as_ref().filter(|trouble| !trouble.is_passing())?;
        state.failed.is_some_and(|failed| failed.elapsed() < REFUSED).then(|| refused(trouble))
    }

    /// After a failure: whether it is worth trying again, which is as long as it may pass and somebody waits.
    fn goes_on_opening(&self, error: &DialError) -> bool {
        let mut state = self.lock();
        (state.trouble, state.failed) = (Some(error.clone()), Some(Instant::now()));
        if !error.is_passing() {
            state.waiting.refuse_all(|| refused(error));
        }
        if state.waiting.is_empty() {
            state.opening -= 1;
            return false;
        }
        true
    }

    fn opened(self: &Arc<Self>, parameters: Arc<BTreeMap<String, String>>, server: CleanServer) {
        {
            let mut state = self.lock();
            state.opening -= 1;
            (state.trouble, state.failed) = (None, None);
            state.parameters = Some(parameters);
        }
        self.answers.notify_waiters();
        let shard = server.shard();
        self.put_back(Idle::Clean(server, Instant::now()));
        // Those who came while as many as may were being opened.
        self.open_for_waiting(&mut self.lock(), shard);
    }

    /// Opens as many servers as clients wait for, within bounds.
    pub(super) fn open_for_waiting(self: &Arc<Self>, state: &mut State, shard: Shard) {
        while state.waiting.servable() > state.quick()
            && state.open < self.limits().size
            && state.quick() < MAX_OPENING
            && !state.is_closing
            && !state.is_paused
        {
            self.open(state, shard);
        }
    }

    /// A server is gone; if clients wait, another is opened for them.
    fn vacated(self: &Arc<Self>, shard: Shard, holder: Option<Holder>) {
        let mut state = self.lock();
        state.open -= 1;
        if let Some(holder) = holder {
            state.waiting.gives_back(holder, Instant::now());
        }
        // Outside a runtime (the process ends) nothing more is opened.
        if tokio::runtime::Handle::try_current().is_ok() {
            self.open_for_waiting(&mut state, shard);
        }
    }

    /// Closes idle servers that are too old, or idle for too long and more than are kept. Called by the keeper once a
    /// second.
    pub fn close_expired(&self, now: Instant) {
        let limits = self.limits();
        let expired: Vec<Idle> = {
            let mut state = self.lock();
            let mut spare = state.open.saturating_sub(limits.min_idle);
            let is_expired = |idle: &mut Idle| {
                let is_unused =
                    now.saturating_duration_since(idle.since()) > limits.idle_timeout && spare > 0;
                let expired = is_unused || now >= idle.retires();
                spare -= usize::from(expired && spare > 0);
                expired
            };
            state.idle.extract_if(.., is_expired).collect()
        };
        // Outside the lock: closing gives the places back, which takes it.
        expired.into_iter().for_each(Resting::close);
    }

    /// Opens servers up to `min_idle`, so that the first clients need not wait; none while the last attempt failed.
    /// Called by the keeper once a second.
    pub fn keep_stocked(self: &Arc<Self>, shard: Shard) {
        let mut state = self.lock();
        while state.open < self.limits().min_idle
            && state.quick() < MAX_OPENING
            && state.trouble.is_none()
            && !state.is_closing
            && !state.is_paused
        {
            self.open(&mut state, shard);
        }
    }

    /// Looks whether PostgreSQL answers, while no server is open that would show it: readiness must not depend on
    /// clients coming first. Called by the keeper once a second.
    pub async fn check(self: &Arc<Self>, shard: Shard) {
        {
            let mut state = self.lock();
            if state.open > 0 || state.is_retired {
                return;
            }
            // Whoever is refused is not told by a probe when it no longer is.
            if state.trouble.as_ref().is_some_and(|trouble| !trouble.is_passing()) {
                let is_due = state.failed.is_none_or(|failed| failed.elapsed() >= ASKED_AGAIN);
                if is_due && !state.is_closing && !state.is_paused {
                    self.open(&mut state, shard);
                }
                return;
            }
        }
        let outcome = self.dialer().probe().await;
        let mut state = self.lock();
        if state.open == 0 {
            state.trouble = outcome.err();
        }
    }

    /// Closes every idle server, at the end of the process.
    pub fn close_idle(&self) {
        let idle = {
            let mut state = self.lock();
            state.is_closing = true;
            state.waiting.dismiss();
            std::mem::take(&mut state.idle)
        };
        idle.into_iter().for_each(Resting::close);
    }
}

/// Why a server that signed in could not be made ready.
fn unprepared(dialer: &Dialer, unclean: &Unclean) -> DialError {
    let (address, reason) = (dialer.address(), unclean.to_string());
    match unclean {
        Unclean::Gone(_) => DialError::Unreachable { address, reason },
        // On its way down: it may come back.
        Unclean::Refused(report) if report.code.starts_with("57P") => {
            DialError::Unreachable { address, reason }
        }
        _ => DialError::Unsupported { address, reason },
    }
}
