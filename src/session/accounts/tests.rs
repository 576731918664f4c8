//! Tests of what organizations use of their limits.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;
use crate::config::IdType;
use crate::tenancy::context::TenantId;

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn id(text: &str) -> TenantId {
    TenantId::parse(text, IdType::Text).unwrap()
}

fn accounts(usual: OrganizationLimits) -> (Accounts, Arc<ArcSwap<Limits>>) {
    let limits = Limits { usual, ..Limits::default() };
    let limits = Arc::new(ArcSwap::from_pointee(limits));
    (Accounts::new(limits.clone()), limits)
}

#[test]
fn a_second_is_asked_at_once_and_then_the_rate() {
    let bucket = Bucket::default();
    for _ in 0..10 {
        assert_eq!(bucket.wait(10, ms(5)), None);
        bucket.take(10, 1, ms(5));
    }
    assert_eq!(bucket.wait(10, ms(5)), Some(ms(100)));
    assert_eq!(bucket.wait(10, ms(104)), Some(ms(1)));
    assert_eq!(bucket.wait(10, ms(105)), None);
    assert_eq!(bucket.wait(0, ms(5)), None);
    assert!(!bucket.is_full(ms(1_004)) && bucket.is_full(ms(1_005)));
}

#[test]
fn a_long_transaction_is_paid_for_afterwards_but_not_for_ever() {
    let bucket = Bucket::default();
    bucket.take(10, 1_000_000, ms(0));
    assert_eq!(bucket.wait(10, ms(0)), Some(MAX_DEBT - ms(900)));
    assert_eq!(bucket.wait(10, MAX_DEBT), None);
}

proptest! {
    /// Whoever asks only when it may is never let through more than a second's worth and the rate.
    #[test]
    fn no_more_than_the_rate(rate in 1_u64..500, pauses in prop::collection::vec(0_u64..50, 1..400)) {
        let (bucket, mut now, mut passed) = (Bucket::default(), ms(0), 0_u64);
        for pause in pauses {
            now += ms(pause);
            if bucket.wait(rate, now).is_none() {
                bucket.take(rate, 1, now);
                passed += 1;
            }
        }
        prop_assert!(passed <= rate.max(1) + (now.as_secs_f64() * rate as f64).ceil() as u64 + 1, "{passed} in {now:?}");
    }
}

#[test]
fn clients_are_counted_and_let_in_up_to_the_limit() {
    let (accounts, limits) = accounts(OrganizationLimits { max_clients: 2, ..OrganizationLimits::default() });
    let first = accounts.enter(&id("a")).ok().unwrap();
    let _second = accounts.enter(&id("a")).ok().unwrap();
    let refused = accounts.enter(&id("a")).err().unwrap();
    assert_eq!(refused.code, Sqlstate::TOO_MANY_CONNECTIONS);
    assert!(accounts.enter(&id("b")).is_ok());
    // Who is there already may come by another token, and counts.
    drop(accounts.come_in(&id("a")));
    drop(first);
    let _third = accounts.enter(&id("a")).ok().unwrap();
    assert!(accounts.enter(&id("a")).is_err());
    limits.store(Arc::default());
    accounts.limits_changed();
    assert!(accounts.enter(&id("a")).is_ok());
}

#[test]
fn a_rate_outlives_its_clients_and_what_is_over_is_forgotten() {
    let (accounts, limits) =
        accounts(OrganizationLimits { queries_per_second: 1, ..OrganizationLimits::default() });
    let client = accounts.enter(&id("a")).ok().unwrap();
    assert!(client.may_begin().is_ok() && client.asked(30));
    drop(client);
    for n in 0..3 * MIN_KEPT {
        drop(accounts.enter(&id(&format!("org {n}"))).ok().unwrap());
    }
    assert!(accounts.book.lock().unwrap().by_organization.len() <= MIN_KEPT);
    let again = accounts.enter(&id("a")).ok().unwrap();
    let refused = again.may_begin().unwrap_err();
    assert_eq!(refused.code, Sqlstate::CONFIGURATION_LIMIT);
    assert!(refused.hint.unwrap().starts_with("Try again in "));
    // A rate that is lifted is lifted at once.
    limits.store(Arc::default());
    accounts.limits_changed();
    assert!(again.may_begin().is_ok() && !again.asked(1));
}
