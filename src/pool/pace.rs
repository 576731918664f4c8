//! How fast a line moves: what a new-comer has to expect before it waits.

use super::shares::Nanos;

/// Hands that are averaged (exponentially): enough to smooth single long transactions, few enough to follow a change.
const AVERAGED: f64 = 16.0;

/// Hands before anything is foretold.
const KNOWN_AFTER: u32 = 16;

/// Of one organization's line, since it was last empty.
#[derive(Debug, Default)]
pub(super) struct Pace {
    last: Nanos,
    interval: f64,
    hands: u32,
}

impl Pace {
    /// The first of the line came.
    pub(super) fn starts(now: Nanos) -> Self {
        Self { last: now, ..Self::default() }
    }

    /// One of them was served.
    pub(super) fn hands(&mut self, now: Nanos) {
        let since = now.saturating_sub(self.last) as f64;
        self.hands = self.hands.saturating_add(1);
        let share = 1.0 / AVERAGED.min(f64::from(self.hands));
        self.interval += share * (since - self.interval);
        self.last = now;
    }

    /// In how many nanoseconds one would be served who stands behind so many; `None` while too little is known.
    pub(super) fn expects(&self, ahead: usize, now: Nanos) -> Option<Nanos> {
        if self.hands < KNOWN_AFTER {
            return None;
        }
        // Where nobody has been served for longer than usual, it is slower by now.
        let interval = self.interval.max(now.saturating_sub(self.last) as f64);
        Some((interval * (ahead + 1) as f64) as Nanos)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn it_is_known_after_a_few_and_follows() {
        let mut pace = Pace::starts(1_000);
        for n in 1..=20_u64 {
            assert_eq!(pace.expects(9, 1_000 + n as Nanos).is_some(), n > 16);
            pace.hands((1_000 + n * 100) as Nanos);
        }
        assert_eq!(pace.expects(9, 3_000), Some(1_000));
        // Nobody has been served for ten times as long as usual.
        assert_eq!(pace.expects(9, 4_000), Some(10_000));
        for n in 1..=100_u64 {
            pace.hands((3_000 + n * 10) as Nanos);
        }
        let expected = pace.expects(9, 4_000).unwrap();
        assert!((100..120).contains(&expected), "{expected}");
    }
}
