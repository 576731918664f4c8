//! Failed sign-ins are answered later each time, by address: guessing is slow, and nobody else waits.

use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use lru::LruCache;

use crate::net::listen::Peer;

/// Addresses that are remembered; those that failed longest ago are forgotten first.
const MAX_ADDRESSES: usize = 10_000;

/// No answer is held back longer than this.
const MAX_DELAY: Duration = Duration::from_secs(5);

/// Failures are forgotten when none came for this long.
const FORGOTTEN: Duration = Duration::from_secs(300);

/// What is known of each address.
pub struct Throttle {
    /// What the first failure costs; each further one costs twice as much.
    first: Duration,
    failures: Mutex<LruCache<IpAddr, (u32, Instant)>>,
}

/// What a failed sign-in costs.
#[derive(Debug, PartialEq, Eq)]
pub struct Cost {
    /// How many there were lately from this address, this one included.
    pub failures: u32,
    /// For how long its answer is held back.
    pub delay: Duration,
}

impl Throttle {
    /// `first` is what the first failure costs; zero: none costs anything.
    pub fn new(first: Duration) -> Self {
        Self {
            first,
            failures: Mutex::new(LruCache::new(
                NonZeroUsize::new(MAX_ADDRESSES).unwrap_or(NonZeroUsize::MIN),
            )),
        }
    }

    /// A sign-in has failed. Over a Unix socket there is no address, and no delay.
    pub fn failed(&self, peer: Peer, now: Instant) -> Cost {
        let Peer::Tcp(address) = peer else { return Cost { failures: 1, delay: Duration::ZERO } };
        let mut known = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let (failures, last) = known.get_or_insert_mut(network(address.ip()), || (0, now));
        if now.saturating_duration_since(*last) > FORGOTTEN {
            *failures = 0;
        }
        (*failures, *last) = (failures.saturating_add(1), now);
        let doubled = self.first.saturating_mul(1 << (*failures - 1).min(16));
        Cost { failures: *failures, delay: doubled.min(MAX_DELAY) }
    }
}

/// Whoever has an IPv6 address has a network of them.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let prefix = u128::from(address) & (u128::MAX << 64);
            IpAddr::V6(prefix.into())
        }
        four => four,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn peer(address: &str) -> Peer {
        Peer::Tcp(format!("{address}:1").parse().unwrap())
    }

    #[test]
    fn each_failure_costs_twice_as_much_up_to_a_limit_until_it_is_forgotten() {
        let throttle = Throttle::new(Duration::from_millis(100));
        let start = Instant::now();
        let cost =
            |address: &str, at: u64| throttle.failed(peer(address), start + Duration::from_secs(at)).delay;
        let delays: Vec<u128> = (0..8).map(|_| cost("192.0.2.1", 0).as_millis()).collect();
        assert_eq!(delays, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(cost("192.0.2.2", 0).as_millis(), 100, "another address");
        assert_eq!(cost("192.0.2.1", 300).as_millis(), 5000);
        assert_eq!(cost("192.0.2.1", 601).as_millis(), 100);
        assert_eq!(cost("[2001:db8::1]", 0).as_millis(), 100);
        assert_eq!(cost("[2001:db8::ffff:0:1]", 0).as_millis(), 200, "the same network");
        assert_eq!(cost("[2001:db8:0:1::1]", 0).as_millis(), 100);
        assert_eq!(cost("[::ffff:192.0.2.2]", 0).as_millis(), 200, "the same address");
    }

    #[test]
    fn nothing_is_held_back_where_it_is_turned_off_or_there_is_no_address() {
        let throttle = Throttle::new(Duration::ZERO);
        for n in 1..100 {
            let cost = throttle.failed(peer("192.0.2.1"), Instant::now());
            assert_eq!(cost, Cost { failures: n, delay: Duration::ZERO });
        }
        let throttle = Throttle::new(Duration::from_secs(1));
        assert_eq!(throttle.failed(Peer::Unix, Instant::now()).delay, Duration::ZERO);
    }
}
