//! The clock of server time, which stands still while PostgreSQL answers nobody. Pure: time is an argument.
//!
//! While PostgreSQL or the network to it is frozen, whoever holds a server has nothing of it. Charged for that, an organization
//! that held one by chance would wait for everybody else afterwards.

use super::shares::Nanos;

/// What has passed of the time in which PostgreSQL answered.
#[derive(Debug, Default)]
pub struct Clock {
    /// When a transaction was over last, or the first of several began.
    stirred: Nanos,
    /// For how long it has stood still, until then.
    stood: Nanos,
}

/// For how long it stands still at most, in one silence: what is longer may be long transactions that nobody knew of.
const LONGEST: Nanos = 1_500_000_000;

impl Clock {
    /// For how long nothing has happened.
    pub fn silence(&self, now: Nanos) -> Nanos {
        now.saturating_sub(self.stirred)
    }

    /// What it shows: it stands still for a while when nothing has happened for longer than `patience`.
    pub fn shows(&self, now: Nanos, patience: Nanos) -> Nanos {
        let silence = self.silence(now);
        self.stirred + silence.min(patience.max(silence.saturating_sub(LONGEST))) - self.stood
    }

    /// Something happens, and it goes on.
    pub fn stirs(&mut self, now: Nanos, patience: Nanos) {
        let shows = self.shows(now, patience);
        self.stirred = self.stirred.max(now);
        self.stood = self.stirred - shows;
    }
}

#[cfg(test)]
mod tests {
    use super::{Clock, LONGEST};

    #[test]
    fn it_never_goes_back_and_stands_still_only_in_silence() {
        let mut clock = Clock::default();
        assert_eq!(clock.shows(5, 10), 5);
        clock.stirs(5, 10);
        assert_eq!([14, 15, 16, 99].map(|now| clock.shows(now, 10)), [14, 15, 15, 15]);
        clock.stirs(100, 10);
        assert_eq!([100, 101, 110, 120].map(|now| clock.shows(now, 10)), [15, 16, 25, 25]);
        // Who is late tells nothing new.
        clock.stirs(90, 10);
        assert_eq!(clock.shows(100, 10), 15);
        clock.stirs(200, u64::MAX);
        assert_eq!(clock.shows(200, 10), 115);
        // But not for ever.
        assert_eq!(
            [210, 200 + LONGEST, 210 + LONGEST, 220 + LONGEST].map(|now| clock.shows(now, 10)),
            [125, 125, 125, 135]
        );
    }
}
