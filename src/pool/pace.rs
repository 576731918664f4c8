//! How fast a line moves: what a new-comer has to expect before it waits.

use super::shares::Nanos;

/// Over what time hands are counted, each for less the longer ago it was: a pause of a second changes little, a standstill
/// of several seconds does.
const MEMORY: f64 = 2e9;

/// Hands before anything is foretold.
const KNOWN_AFTER: u32 = 16;

/// Of one organization's line, since it was last empty.
#[derive(Debug, Default)]
pub(super) struct Pace {
    begun: Nanos,
    last: Nanos,
    /// Hands, each weighed by e to the power of its age in [`MEMORY`].
    recent: f64,
    hands: u32,
}

impl Pace {
    /// The first of the line came.
    pub(super) fn starts(now: Nanos) -> Self {
        Self { begun: now, last: now, ..Self::default() }
    }

    /// One of them was served.
    pub(super) fn hands(&mut self, now: Nanos) {
        self.hands = self.hands.saturating_add(1);
        self.recent = self.recent_at(now) + 1.0;
        self.last = now;
    }

    /// In how many nanoseconds one would be served who stands behind so many; `None` while too little is known.
    pub(super) fn expects(&self, ahead: usize, now: Nanos) -> Option<Nanos> {
        let age = now.saturating_sub(self.begun) as f64;
        if self.hands < KNOWN_AFTER || age < MEMORY {
            return None;
        }
        // What a steady pace would have summed up to by now.
        let steady = MEMORY * (1.0 - (-age / MEMORY).exp());
        Some(((ahead + 1) as f64 * steady / self.recent_at(now)) as Nanos)
    }

    fn recent_at(&self, now: Nanos) -> f64 {
        self.recent * (-(now.saturating_sub(self.last) as f64) / MEMORY).exp()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const MS: Nanos = 1_000_000;

    #[test]
    fn a_steady_pace_is_known_after_a_while() {
        let mut pace = Pace::starts(0);
        for n in 1..=1_000 {
            assert_eq!(pace.expects(99, n * 10 * MS).is_some(), n >= 200);
            pace.hands(n * 10 * MS);
        }
        let expected = pace.expects(99, 10_000 * MS).unwrap();
        assert!((990..1_010).contains(&(expected / MS)), "{expected}");
    }

    #[test]
    fn a_pause_changes_little_and_a_standstill_much() {
        let mut pace = Pace::starts(0);
        (1..=1_000).for_each(|n| pace.hands(n * 10 * MS));
        let after = |pause: Nanos| pace.expects(99, (10_000 + pause) * MS).unwrap() / MS;
        assert!((1_000..1_100).contains(&after(100)), "{}", after(100));
        assert!(after(1_000) < 2_000 && after(10_000) > 100_000);
    }

    #[test]
    fn a_slower_pace_is_followed() {
        let mut pace = Pace::starts(0);
        (1..=1_000).for_each(|n| pace.hands(n * MS));
        (1..=100).for_each(|n| pace.hands(1_000 * MS + n * 100 * MS));
        let expected = pace.expects(99, 11_000 * MS).unwrap() / MS;
        assert!((7_000..11_000).contains(&expected), "{expected}");
    }
}
