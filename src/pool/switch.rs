//! A server that is taken over from other terms without a round trip of its own: in one batch with what its client sends,
//! or in one write with its BEGIN.
//!
//! The cleaning, the binding and the client's messages up to its first Sync are one implicit transaction (PostgreSQL
//! documentation, 53.2.3): PostgreSQL skips all that follows a failure. So the client's own can run only after all of the
//! proxy's has succeeded; and if the client's own fails, the binding is undone with it.
//!
//! A BEGIN cannot be part of that, and follows it. It is harmless wherever it runs: nothing is sent behind it before the
//! binding was acknowledged.

use super::due::Due;

/// What a client sends first, as far as it matters to how its server changes hands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum First {
    /// What can share nothing with the binding: that is a step of its own.
    Apart,
    /// A batch of the extended protocol that may run in the binding's transaction.
    Batch,
    /// A simple query that may, and that has the same answers in the extended protocol.
    Read,
    /// The same, unless there are rules: those of a simple query may return rows of their own.
    Write,
    /// A simple query that begins a transaction block and does nothing else.
    Begin,
}

/// How far such a batch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Switch {
    /// There is none, or it has succeeded.
    No,
    /// It is under way: what is sent belongs to it.
    Open,
    /// Its Sync was sent: nothing more is, before it is answered.
    Sent,
    /// The binding is a batch of its own and complete; the client's BEGIN was not sent yet.
    Ahead,
    /// The client's BEGIN was sent behind it: nothing more is, before the binding is answered.
    Followed,
    /// It failed, and with it what the binding did: the server is as it was before, under the context of whoever had it.
    /// Whether the batch's Sync was sent.
    Undone(bool),
}

impl Switch {
    /// A message leaves for the server.
    pub(super) fn sent(&mut self, due: &Due) {
        *self = match (due, *self) {
            (Due::Switch(_), _) => Self::Open,
            (Due::Sync | Due::Query(_), Self::Open) => Self::Sent,
            (Due::Query(_), Self::Ahead) => Self::Followed,
            (Due::Sync, Self::Undone(_)) => Self::Undone(true),
            (_, other) => other,
        };
    }

    /// ReadyForQuery arrived.
    pub(super) fn answered(&mut self) {
        if self.is_pending() && *self != Self::Open {
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
        matches!(self, Self::Sent | Self::Followed | Self::Undone(true))
    }

    /// Whether the binding's answers come with those to what the client sent.
    pub fn shares_batch(self) -> bool {
        matches!(self, Self::Open | Self::Sent)
    }

    /// Whether it is not answered yet.
    pub fn is_pending(self) -> bool {
        self.shares_batch() || matches!(self, Self::Ahead | Self::Followed)
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
    fn nothing_is_sent_behind_a_begin_until_its_binding_is_answered() {
        let mut switch = Switch::Ahead;
        switch.sent(&Due::Binding);
        assert!(!switch.is_held() && switch.is_pending());
        switch.sent(&Due::Query(None));
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
