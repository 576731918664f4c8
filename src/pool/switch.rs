//! A server that is taken over from other terms in one batch with what its client sends.
//!
//! The cleaning, the binding and the client's messages up to its first Sync are one implicit transaction (PostgreSQL
//! documentation, 53.2.3): PostgreSQL skips all that follows a failure. So the client's own can run only after all of the
//! proxy's has succeeded; and if the client's own fails, the binding is undone with it.

use super::due::Due;

/// How far such a batch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Switch {
    /// There is none, or it has succeeded.
    No,
    /// It is under way: what is sent belongs to it.
    Open,
    /// Its Sync was sent: nothing more is, before it is answered.
    Sent,
    /// It failed, and with it what the binding did: the server is as it was before, under the context of whoever had it.
    /// Whether the batch's Sync was sent.
    Undone(bool),
}

impl Switch {
    /// A message leaves for the server.
    pub(super) fn sent(&mut self, due: &Due) {
        *self = match (due, *self) {
            (Due::Switch(_), _) => Self::Open,
            (Due::Sync, Self::Open) => Self::Sent,
            (Due::Sync, Self::Undone(_)) => Self::Undone(true),
            (_, other) => other,
        };
    }

    /// ReadyForQuery arrived.
    pub(super) fn answered(&mut self) {
        if *self == Self::Sent {
            *self = Self::No;
        }
    }

    /// An error arrived.
    pub(super) fn failed(&mut self) {
        *self = match *self {
            Self::Open => Self::Undone(false),
            Self::Sent => Self::Undone(true),
            other => other,
        };
    }

    /// Whether nothing more may be sent: until an answer comes, or at all.
    pub fn is_held(self) -> bool {
        matches!(self, Self::Sent | Self::Undone(true))
    }

    /// Whether it is not answered yet.
    pub fn is_pending(self) -> bool {
        matches!(self, Self::Open | Self::Sent)
    }

    /// Whether it failed.
    pub fn is_undone(self) -> bool {
        matches!(self, Self::Undone(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(dues: &[Due]) -> Switch {
        let mut switch = Switch::No;
        dues.iter().for_each(|due| switch.sent(due));
        switch
    }

    #[test]
    fn nothing_is_sent_behind_the_batch_until_it_is_answered() {
        assert!(!after(&[Due::Sync]).is_held());
        assert!(!after(&[Due::Switch(1), Due::Bind(None)]).is_held());
        let mut switch = after(&[Due::Switch(1), Due::Bind(None), Due::Sync]);
        assert!(switch.is_held() && switch.is_pending());
        switch.answered();
        assert_eq!(switch, Switch::No);
    }

    #[test]
    fn nothing_is_sent_behind_a_batch_that_failed() {
        let mut switch = after(&[Due::Switch(1), Due::Sync]);
        switch.failed();
        switch.answered();
        assert!(switch.is_held() && switch.is_undone() && !switch.is_pending());
        let mut switch = after(&[Due::Switch(1)]);
        switch.failed();
        assert!(!switch.is_held(), "its Sync is still to come");
        switch.sent(&Due::Sync);
        assert!(switch.is_held() && switch.is_undone());
    }
}
