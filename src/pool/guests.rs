//! Whether an organization whose turn it is waits a moment longer, so that a server stays with whom it served. Pure: time is an
//! argument.
//!
//! Servers of equally long transactions come free in waves. If each of a wave goes to somebody else with a short transaction, all
//! of these run at once, on processors that cannot run them at once, and each keeps its server for as long as all of them
//! take; one after the other on a few servers, they take less of them, and fewer servers change hands. So while some have a
//! server as guests, the next such one lets a server pass that goes on with whom it served: for a bounded time, once for as
//! long as its organization has somebody waiting, and not if it has waited for longer than one of these transactions takes.
//! This is delay scheduling (M. Zaharia et al., "Delay Scheduling: A Simple Technique for Achieving Locality and Fairness in
//! Cluster Scheduling", EuroSys 2010).

use super::shares::Nanos;

/// For how long one lets servers pass. What is expected to take no longer is short; whoever takes longer is no guest any more.
pub const DELAY: Nanos = 5_000_000;

/// While so many are guests, others wait for their places: one of them gives its answer while the next one's query runs.
const PLACES: usize = 2;

/// Those with short transactions who have servers that others had before.
#[derive(Debug, Default)]
pub struct Guests {
    came: Vec<Nanos>,
}

impl Guests {
    /// One comes, where it usually has short transactions. Since when it is one.
    pub fn comes(&mut self, usual: Nanos, now: Nanos) -> Option<Nanos> {
        (usual <= DELAY).then(|| {
            self.came.push(now);
            now
        })
    }

    /// One that came at `since` leaves.
    pub fn leaves(&mut self, since: Nanos) {
        if let Some(at) = self.came.iter().position(|came| *came == since) {
            self.came.swap_remove(at);
        }
    }

    /// Whether the one whose turn it is lets this server pass. `usual`: what its transactions take, and those of whom the
    /// server served; `waits`: since when it waits; `passing`: since when it lets servers pass.
    pub fn lets_pass(
        &self,
        usual: (Nanos, Nanos),
        waits: Nanos,
        passing: &mut Option<Nanos>,
        now: Nanos,
    ) -> bool {
        let (short, long) = usual;
        let is_young = |since: Nanos| now.saturating_sub(since) < DELAY;
        let places = self.came.iter().filter(|came| is_young(**came)).count();
        short <= DELAY
            && long >= 2 * DELAY
            && places >= PLACES
            // Whoever has waited for longer than one wave is not asked to wait for more.
            && now.saturating_sub(waits) <= long + DELAY
            && is_young(*passing.get_or_insert(now))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::{DELAY, Guests};

    const LONG: u64 = 4 * DELAY;

    #[test]
    fn while_there_are_guests_the_next_lets_servers_pass_but_not_for_long() {
        let mut guests = Guests::default();
        let lets =
            |guests: &Guests, passing: &mut Option<u64>, now| guests.lets_pass((1, LONG), 10, passing, now);
        let since = guests.comes(0, 10).unwrap();
        assert!(!lets(&guests, &mut None, 11), "one may come");
        guests.comes(1, 12).unwrap();
        let mut passing = None;
        assert!(lets(&guests, &mut passing, 13) && lets(&guests, &mut passing, 9 + DELAY));
        assert_eq!(passing, Some(13));
        guests.comes(1, DELAY).unwrap();
        assert!(!lets(&guests, &mut passing, 13 + DELAY), "not for ever");
        assert!(!guests.lets_pass((1, LONG), 0, &mut None, LONG + DELAY + 1), "who has waited long");
        guests.leaves(since);
        assert!(!lets(&guests, &mut None, 12 + DELAY), "who stays long is no guest");
    }

    #[test]
    fn only_who_is_short_waits_and_only_for_who_is_long() {
        let mut guests = Guests::default();
        assert_eq!(guests.comes(LONG, 0), None);
        guests.comes(0, 0).unwrap();
        guests.comes(0, 0).unwrap();
        for (usual, lets) in
            [((0, LONG), true), ((DELAY, 2 * DELAY), true), ((0, DELAY), false), ((LONG, LONG), false)]
        {
            assert_eq!(guests.lets_pass(usual, 0, &mut None, 1), lets, "{usual:?}");
        }
    }
}
