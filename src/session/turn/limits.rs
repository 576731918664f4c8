//! How long an organization's transaction may have a server, and let it wait. Kept here, where no SET lifts it.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::time::Sleep;

use crate::config::OrganizationLimits;
use crate::wire::report::{Report, Sqlstate};

/// The limits of a turn, and when what they limit began.
pub(super) struct TimeLimits {
    /// None is `Duration::MAX`.
    transaction: Duration,
    idle: Duration,
    begun: Instant,
    idle_since: Option<Instant>,
    /// Bytes of the client's arrived since it was last looked at whether it is idle.
    has_spoken: bool,
    /// PostgreSQL was asked for the answers that it may keep back, since its client spoke last.
    pub(super) has_asked: bool,
    /// When this is looked at again, at the latest.
    alarm: Option<Pin<Box<Sleep>>>,
}

impl TimeLimits {
    /// A turn begins; `None` where nothing is limited, as nearly everywhere.
    pub(super) fn of(limits: &OrganizationLimits, now: Instant) -> Option<Box<Self>> {
        let or_none = |time: Duration| if time.is_zero() { Duration::MAX } else { time };
        let (transaction, idle) =
            (or_none(limits.transaction_time), or_none(limits.idle_in_transaction_time));
        let is_limited = transaction.min(idle) < Duration::MAX;
        is_limited.then(|| {
            Box::new(Self {
                transaction,
                idle,
                begun: now,
                idle_since: None,
                has_spoken: false,
                has_asked: false,
                alarm: None,
            })
        })
    }

    /// What runs since `begun` has these limits as well.
    pub(super) fn narrow(limits: &mut Option<Box<Self>>, further: &OrganizationLimits, begun: Instant) {
        let Some(further) = Self::of(further, begun) else { return };
        match limits {
            None => *limits = Some(further),
            Some(limits) => {
                limits.transaction = limits.transaction.min(further.transaction);
                limits.idle = limits.idle.min(further.idle);
            }
        }
    }

    /// What is sent behind a transaction begins another.
    pub(super) fn begins(&mut self, now: Instant) {
        (self.begun, self.idle_since) = (now, None);
    }

    /// Bytes of the client's arrived.
    pub(super) fn client_spoke(&mut self) {
        (self.has_spoken, self.has_asked) = (true, false);
    }

    /// Whether the server waits for what its client will say; and whether that counts as going on, where it says something.
    pub(super) fn is_idle(&mut self, is_idle: bool, goes_on: bool) {
        let is_again = std::mem::take(&mut self.has_spoken) && goes_on;
        self.idle_since = match self.idle_since {
            since @ Some(_) if is_idle && !is_again => since,
            _ => is_idle.then(Instant::now),
        };
    }

    /// What is over its limit by now; or when something will be.
    fn judge(&self, now: Instant) -> Result<Option<Instant>, Report> {
        let transaction = self.begun.checked_add(self.transaction);
        let idle = self.idle_since.and_then(|since| since.checked_add(self.idle));
        if transaction.is_some_and(|end| now >= end) {
            return Err(over(
                Sqlstate::TRANSACTION_TIMEOUT,
                "terminating connection due to transaction timeout",
                ("transaction_time", self.transaction),
            ));
        }
        if idle.is_some_and(|end| now >= end) {
            return Err(over(
                Sqlstate::IDLE_IN_TRANSACTION,
                "terminating connection due to idle-in-transaction timeout",
                ("idle_in_transaction_time", self.idle),
            ));
        }
        Ok([transaction, idle].into_iter().flatten().min())
    }

    /// Ready when the transaction has taken too long: what its client is told.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Report> {
        loop {
            let next = match self.judge(Instant::now()) {
                Err(report) => return Poll::Ready(report),
                Ok(None) => return Poll::Pending,
                Ok(Some(next)) => tokio::time::Instant::from_std(next),
            };
            let alarm = self.alarm.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(next)));
            // Too early does no harm.
            if next < alarm.deadline() || alarm.is_elapsed() {
                alarm.as_mut().reset(next);
            }
            ready!(alarm.as_mut().poll(cx));
        }
    }
}

fn over(code: Sqlstate, message: &str, (name, limit): (&str, Duration)) -> Report {
    Report::new(code, message)
        .detail(format!("Transactions of this organization have limits.{name} ({limit:?})."))
        .hint("Make transactions shorter, or have the limit raised.")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn each_is_over_when_its_time_is() {
        let limits = |transaction, idle| OrganizationLimits {
            transaction_time: Duration::from_secs(transaction),
            idle_in_transaction_time: Duration::from_secs(idle),
            ..OrganizationLimits::default()
        };
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(TimeLimits::of(&limits(0, 0), start).is_none());
        let mut both = TimeLimits::of(&limits(10, 3), start).unwrap();
        assert_eq!(both.judge(at(4)), Ok(Some(at(10))));
        assert_eq!(both.judge(at(10)).unwrap_err().code, Sqlstate::TRANSACTION_TIMEOUT);
        both.begins(at(9));
        assert_eq!(both.judge(at(10)), Ok(Some(at(19))));
        both.idle_since = Some(at(11));
        assert_eq!(both.judge(at(12)), Ok(Some(at(14))));
        assert_eq!(both.judge(at(14)).unwrap_err().code, Sqlstate::IDLE_IN_TRANSACTION);
        // It goes on waiting from when it began to.
        both.is_idle(true, true);
        assert_eq!(both.idle_since, Some(at(11)));
        both.is_idle(false, false);
        assert_eq!(both.judge(at(14)), Ok(Some(at(19))));
        // Only who goes on is idle anew.
        both.idle_since = Some(at(11));
        both.client_spoke();
        both.is_idle(true, false);
        assert_eq!(both.idle_since, Some(at(11)));
        both.client_spoke();
        both.is_idle(true, true);
        assert_ne!(both.idle_since, Some(at(11)));
        // Under several, the stricter of each.
        let mut several = None;
        TimeLimits::narrow(&mut several, &limits(0, 0), start);
        assert!(several.is_none());
        TimeLimits::narrow(&mut several, &limits(10, 0), start);
        TimeLimits::narrow(&mut several, &limits(20, 3), start);
        let several = several.unwrap();
        assert_eq!((several.transaction, several.idle), (Duration::from_secs(10), Duration::from_secs(3)));
        let idle = TimeLimits::of(&limits(0, 3), start).unwrap();
        assert_eq!(idle.judge(at(1_000)), Ok(None));
    }
}
