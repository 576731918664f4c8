//! What each organization uses of what it may: its clients, and how fast it asks.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use crate::config::{Limits, OrganizationLimits};
use crate::tenancy::context::TenantId;
use crate::wire::report::{Report, Sqlstate};

/// Accounts that are kept though nobody is connected, before they are looked through for those that can go.
const MIN_KEPT: usize = 1_024;

/// How much later an organization is served for what it asked within transactions, which are not interrupted, at most.
const MAX_DEBT: Duration = Duration::from_secs(60);

/// All organizations that have been seen, and what they may.
pub struct Accounts {
    limits: Arc<ArcSwap<Limits>>,
    book: Mutex<Book>,
    epoch: Instant,
}

struct Book {
    by_organization: HashMap<TenantId, Arc<Account>>,
    /// At so many it is looked through.
    full_at: usize,
}

/// One organization's.
pub struct Account {
    organization: TenantId,
    limits: ArcSwap<OrganizationLimits>,
    clients: AtomicUsize,
    bucket: Bucket,
    epoch: Instant,
}

/// A client of an organization; it is counted until this is dropped.
pub struct Attendance(Arc<Account>);

impl Accounts {
    /// Nobody has been seen yet.
    pub fn new(limits: Arc<ArcSwap<Limits>>) -> Self {
        let book = Book { by_organization: HashMap::new(), full_at: MIN_KEPT };
        Self { limits, book: Mutex::new(book), epoch: Instant::now() }
    }

    /// Counts a client in.
    ///
    /// # Errors
    /// Its organization has as many as it may (53300).
    pub fn enter(&self, organization: &TenantId) -> Result<Attendance, Report> {
        let attendance = self.come_in(organization);
        let most = attendance.limits().max_clients;
        // Counted before it is compared: of two at once, at least one sees the other.
        if most > 0 && attendance.0.clients.load(Ordering::SeqCst) as u64 > most {
            let message = "sorry, too many clients of this organization already";
            return Err(Report::new(Sqlstate::TOO_MANY_CONNECTIONS, message)
                .detail(format!("It may have {most} (limits.max_clients)."))
                .hint("Close connections that are not used, or have the limit raised."));
        }
        Ok(attendance)
    }

    /// Counts one in that is there already, and comes by another token.
    pub fn come_in(&self, organization: &TenantId) -> Attendance {
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(account) = book.by_organization.get(organization) {
            return Attendance::new(account.clone());
        }
        if book.by_organization.len() >= book.full_at {
            let now = self.epoch.elapsed();
            book.by_organization.retain(|_, account| account.matters(now));
            book.full_at = (book.by_organization.len() * 2).max(MIN_KEPT);
        }
        let account = Arc::new(Account {
            organization: organization.clone(),
            limits: ArcSwap::from_pointee(self.limits.load().of(organization.as_str()).clone()),
            clients: AtomicUsize::new(0),
            bucket: Bucket::default(),
            epoch: self.epoch,
        });
        book.by_organization.insert(organization.clone(), account.clone());
        Attendance::new(account)
    }

    /// Other limits are in force from now on, also for those who are there.
    pub fn limits_changed(&self) {
        let limits = self.limits.load();
        let book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        for (organization, account) in &book.by_organization {
            account.limits.store(Arc::new(limits.of(organization.as_str()).clone()));
        }
    }
}

impl Account {
    /// Whether it has to be remembered.
    fn matters(&self, now: Duration) -> bool {
        self.clients.load(Ordering::SeqCst) > 0 || !self.bucket.is_full(now)
    }
}

impl Attendance {
    fn new(account: Arc<Account>) -> Self {
        account.clients.fetch_add(1, Ordering::SeqCst);
        Self(account)
    }

    /// Whether it is this organization's.
    pub fn is_of(&self, organization: &TenantId) -> bool {
        self.0.organization == *organization
    }

    /// What its organization may take now. Borrowed: all its clients ask for each of their transactions.
    pub fn limits(&self) -> impl Deref<Target = Arc<OrganizationLimits>> + '_ {
        self.0.limits.load()
    }

    /// Whether it asks too fast to begin a transaction.
    ///
    /// # Errors
    /// It does (53400); when to come again.
    pub fn may_begin(&self) -> Result<(), Report> {
        let limits = self.0.limits.load();
        let rate = limits.queries_per_second;
        let Some(wait) = self.0.bucket.wait(rate, self.0.epoch.elapsed()) else { return Ok(()) };
        let wait = wait.as_millis().max(1);
        let message = format!("this organization asks more than {rate} queries per second");
        Err(Report::new(Sqlstate::CONFIGURATION_LIMIT, message).hint(format!("Try again in {wait} ms.")))
    }

    /// Takes note of queries that were answered. Whether the next transaction is to be looked at before it is sent.
    pub fn asked(&self, queries: usize) -> bool {
        let limits = self.0.limits.load();
        match limits.queries_per_second {
            0 => false,
            rate => {
                self.0.bucket.take(rate, queries, self.0.epoch.elapsed());
                true
            }
        }
    }
}

impl Drop for Attendance {
    fn drop(&mut self) {
        self.0.clients.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A token bucket that holds a second's worth, as the generic cell rate algorithm (ITU-T I.371): one number, the time at
/// which it will be full again.
#[derive(Default)]
struct Bucket(AtomicU64);

impl Bucket {
    /// How long until a query may begin; none if it may now. Times are since some moment in the past, rates per second;
    /// rate 0 is any.
    fn wait(&self, rate: u64, now: Duration) -> Option<Duration> {
        let interval = 1_000_000_000_u64.checked_div(rate)?;
        let depth = 1_000_000_000_u64.max(interval);
        let full_at = self.0.load(Ordering::Relaxed);
        let over = (full_at + interval).saturating_sub(nanos(now) + depth);
        (over > 0).then(|| Duration::from_nanos(over))
    }

    fn take(&self, rate: u64, queries: usize, now: Duration) {
        let Some(interval) = 1_000_000_000_u64.checked_div(rate) else { return };
        let now = nanos(now);
        let most = now + MAX_DEBT.as_nanos() as u64;
        let taken = |full_at: u64| full_at.max(now).saturating_add(interval.saturating_mul(queries as u64));
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| {
            Some(taken(full_at).min(most.max(full_at)))
        });
    }

    fn is_full(&self, now: Duration) -> bool {
        self.0.load(Ordering::Relaxed) <= nanos(now)
    }
}

fn nanos(since: Duration) -> u64 {
    since.as_nanos() as u64
}

#[cfg(test)]
#[path = "accounts/tests.rs"]
mod tests;
