//! What is known of a server while a client has it, and forgotten with the lease.

use super::ledger::Ledger;

/// What a lease knows of its server beyond what stays when it ends.
#[derive(Default)]
pub(super) struct LeaseState {
    /// Client's bytes of `incoming` that are ready to pass on.
    pub(super) run: usize,
    /// Bytes of the current message that are still to come, and whether they are the client's.
    pub(super) body: Option<(usize, bool)>,
    /// Whether the unnamed statement on the server is this client's.
    pub(super) unnamed_is_ours: bool,
    /// An answer has settled, in this lease, which unnamed statement the server has.
    pub(super) unnamed_is_settled: bool,
    /// Something was seen that may outlive the transaction: it is cleaned before anyone else gets it.
    pub(super) is_dirty: bool,
    /// Its transactions were made read-only for the context that it was put under.
    pub(super) is_read_only: bool,
    /// A setting was changed, and what it is now is not in the terms.
    pub(super) has_set: bool,
    /// The client reset its settings, and with them may have gone what was bound.
    pub(super) has_reset: bool,
    /// The process id that BackendKeyData told the client: its own notifications come from there.
    pub(super) told_pid: u32,
    /// It is closed when the transaction is over (a refused seal, a FATAL error).
    pub(super) is_doomed: bool,
}

impl LeaseState {
    /// An error may have undone what the messages behind it were to do to the unnamed statement: what was settled before
    /// holds.
    pub(super) fn lose_unnamed(&mut self, ledger: &mut Ledger) {
        self.unnamed_is_settled |= ledger.take_settled_unnamed();
        if ledger.has_lost_unnamed() {
            self.unnamed_is_ours = self.unnamed_is_settled;
        }
    }
}
