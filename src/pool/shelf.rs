//! Which idle server a client gets: pure decisions over what the shelf holds.

/// What matters of one idle server to one who wants a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    /// Bound to equal terms, fresh and not dirty.
    pub serves: bool,
    /// With nothing of anyone on it.
    pub is_clean: bool,
    /// Registered with the reactor of the thread that asks.
    pub is_home: bool,
}

/// How a client gets its server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// The one at this place on the shelf.
    Take {
        /// Index on the shelf.
        index: usize,
        /// Another server should be opened meanwhile, so that next time a better one is there.
        grow: bool,
    },
    /// Open one and wait: for it, or for one that comes back sooner.
    Open,
    /// Wait for one that comes back.
    Wait,
}

/// Chooses among the idle servers, least recently used first in `shelf`.
///
/// In order: bound to equal terms, clean, used by others (which costs a cleaning first); within each, the one on the
/// caller's own thread, then the most recently used (its caches are warm, and the tail can age out).
pub fn choose(shelf: impl DoubleEndedIterator<Item = Offer> + ExactSizeIterator, has_room: bool) -> Choice {
    let mut best: Option<(u8, usize)> = None;
    for (index, offer) in shelf.enumerate().rev() {
        let rank = rank(offer);
        if best.is_none_or(|(least, _)| rank < least) {
            best = Some((rank, index));
            if rank == 0 {
                break;
            }
        }
    }
    match best {
        Some((rank, index)) => Choice::Take { index, grow: has_room && rank > 1 },
        None if has_room => Choice::Open,
        None => Choice::Wait,
    }
}

/// Lower is better. A clean one at home beats an equal one elsewhere: binding costs less than crossing threads.
fn rank(offer: Offer) -> u8 {
    match (offer.serves, offer.is_clean, offer.is_home) {
        (true, _, true) => 0,
        (_, true, true) => 1,
        (true, _, false) => 2,
        (_, true, false) => 3,
        (false, false, true) => 4,
        (false, false, false) => 5,
    }
}

/// Which idle server to clean in the background, given which of them are clean, least recently used first: the
/// oldest used one when no clean one is left, so that those used most recently may still serve the same terms again. A
/// server that is alone was used by who is likely to be next.
pub fn to_clean(mut is_clean: impl ExactSizeIterator<Item = bool>) -> Option<usize> {
    (is_clean.len() > 1 && is_clean.all(|clean| !clean)).then_some(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EQUAL: Offer = Offer { serves: true, is_clean: false, is_home: true };
    const CLEAN: Offer = Offer { serves: false, is_clean: true, is_home: true };
    const OTHERS: Offer = Offer { serves: false, is_clean: false, is_home: true };
    const AWAY: Offer = Offer { serves: true, is_clean: false, is_home: false };

    fn pick(shelf: &[Offer], has_room: bool) -> Choice {
        choose(shelf.iter().copied(), has_room)
    }

    #[test]
    fn an_equal_server_beats_a_clean_one_beats_one_to_be_cleaned() {
        assert_eq!(pick(&[CLEAN, EQUAL, OTHERS], true), Choice::Take { index: 1, grow: false });
        assert_eq!(pick(&[OTHERS, CLEAN, OTHERS], true), Choice::Take { index: 1, grow: false });
        assert_eq!(pick(&[AWAY, CLEAN], true), Choice::Take { index: 1, grow: false });
        assert_eq!(pick(&[OTHERS, AWAY], true), Choice::Take { index: 1, grow: true });
        assert_eq!(pick(&[OTHERS], false), Choice::Take { index: 0, grow: false });
    }

    #[test]
    fn among_equals_the_most_recently_used_is_taken() {
        assert_eq!(pick(&[EQUAL, EQUAL, EQUAL], true), Choice::Take { index: 2, grow: false });
    }

    #[test]
    fn an_empty_shelf_opens_or_waits() {
        assert_eq!(pick(&[], true), Choice::Open);
        assert_eq!(pick(&[], false), Choice::Wait);
    }

    #[test]
    fn the_oldest_used_server_is_cleaned_when_no_clean_one_is_left() {
        assert_eq!(to_clean([false, false].into_iter()), Some(0));
        assert_eq!(to_clean([false, true].into_iter()), None);
        assert_eq!(to_clean([false].into_iter()), None);
        assert_eq!(to_clean([].into_iter()), None);
    }
}
