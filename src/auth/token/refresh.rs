//! When an issuer's keys are fetched anew: who asks for it, and who is told that it was done.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};

use super::keys::Keys;
use crate::config::KeySource;

/// A token that names an unknown key has the issuer's keys fetched at most this often, whoever sends such tokens.
pub const COOL_DOWN: Duration = Duration::from_secs(30);

/// How long whoever brings such a token waits for the keys.
const PATIENCE: Duration = Duration::from_secs(5);

/// One issuer's.
pub(super) struct Refresh {
    asked: Notify,
    /// How many fetches have ended.
    done: watch::Sender<u64>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// A fetch is in flight, or about to be.
    is_under_way: bool,
    /// When a token last had them fetched.
    asked: Option<Instant>,
    /// When the last good set came.
    good: Option<Instant>,
    /// Why the last fetch failed, if it did.
    trouble: Option<String>,
}

impl Default for Refresh {
    fn default() -> Self {
        Self { asked: Notify::new(), done: watch::Sender::new(0), state: Mutex::default() }
    }
}

impl Refresh {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for a fetch, unless somebody did lately. Whether one is under way.
    fn ask(&self) -> bool {
        let mut state = self.lock();
        if state.is_under_way {
            return true;
        }
        if state.asked.is_some_and(|asked| asked.elapsed() < COOL_DOWN) {
            return false;
        }
        (state.is_under_way, state.asked) = (true, Some(Instant::now()));
        self.asked.notify_one();
        true
    }
}

/// What is known of an issuer's keys that are fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Freshness {
    /// Since the last good set came; none came yet.
    pub age: Option<Duration>,
    /// Why the last fetch failed, if it did.
    pub trouble: Option<String>,
}

impl Keys {
    /// A token named a key that its issuer is not known to have: waits for the issuer's keys to be fetched anew. Whether
    /// they were; not where that was done lately, or they come from a file.
    pub async fn refreshed(&self, issuer: usize) -> bool {
        let Some(refresh) = self.fetched(issuer) else { return false };
        let mut done = refresh.done.subscribe();
        if !refresh.ask() {
            return false;
        }
        matches!(tokio::time::timeout(PATIENCE, done.changed()).await, Ok(Ok(())))
    }

    /// Whether any issuer's keys are fetched.
    pub fn are_fetched(&self) -> bool {
        self.issuers().any(|issuer| matches!(issuer.keys, KeySource::JwksUrl(_)))
    }

    /// The same without waiting: who comes next finds them.
    pub fn wants_refresh(&self, issuer: usize) {
        if let Some(refresh) = self.fetched(issuer) {
            refresh.ask();
        }
    }

    /// Resolves when an issuer's keys are to be fetched before their time.
    pub async fn asked(&self, issuer: usize) {
        match self.fetched(issuer) {
            Some(refresh) => refresh.asked.notified().await,
            None => std::future::pending().await,
        }
    }

    /// A fetch begins.
    pub fn fetch_begins(&self, issuer: usize) {
        if let Some(refresh) = self.fetched(issuer) {
            refresh.lock().is_under_way = true;
        }
    }

    /// A fetch has ended, and why it failed if it did. Whoever waits for it goes on.
    pub fn fetch_ends(&self, issuer: usize, trouble: Option<String>) {
        let Some(refresh) = self.fetched(issuer) else { return };
        let now = Instant::now();
        let mut state = refresh.lock();
        state.is_under_way = false;
        if trouble.is_none() {
            state.good = Some(now);
        }
        state.trouble = trouble;
        drop(state);
        refresh.done.send_modify(|count| *count += 1);
    }

    /// How old an issuer's keys are; none where they are not fetched.
    pub fn freshness(&self, issuer: usize) -> Option<Freshness> {
        let state = self.fetched(issuer)?.lock();
        Some(Freshness { age: state.good.map(|good| good.elapsed()), trouble: state.trouble.clone() })
    }

    fn fetched(&self, issuer: usize) -> Option<&Refresh> {
        let issuer = self.at(issuer)?;
        matches!(issuer.config.keys, KeySource::JwksUrl(_)).then_some(&issuer.refresh)
    }
}
