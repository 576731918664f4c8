//! A server that is put under another context while its client keeps it.

use std::time::SystemTime;

use super::{BoundServer, SealedContext};
use crate::pool::due::Due;
use crate::pool::ledger::TransactionOver;
use crate::tenancy::context::TenantContext;
use crate::tenancy::settings::Settings;

impl BoundServer {
    /// Whether a client that keeps it needs it bound anew: the seal lapses, or a RESET took what was bound.
    pub fn needs_binding(&self, now: SystemTime) -> bool {
        // What makes transactions read-only is put back each time, whatever the last one did to it.
        self.state.has_reset
            || self.state.is_read_only
            || self.lapse.is_some_and(|lapse| !lapse.is_fresh(now))
    }

    /// Whether its transactions are read-only because of a context that it was under.
    pub fn is_read_only(&self) -> bool {
        self.state.is_read_only
    }

    /// Binds it anew for the client that keeps it, under the same terms, between two of its transactions.
    pub fn rebind(
        &mut self,
        _over: &TransactionOver,
        sealed: Option<(&SealedContext, &TenantContext)>,
        settings: &Settings,
    ) {
        // Where the client has no context (any more), none may be left of what it had, whichever way it got that.
        let bound = sealed.map(|(sealed, context)| (sealed, context.payload()));
        self.core.binder.rebind(bound, settings, &mut self.core.outgoing);
        self.core.ledger.push(Due::Binding);
        self.state.has_reset = false;
        self.state.is_read_only = sealed.is_some_and(|(sealed, _)| sealed.is_read_only());
        self.lapse = sealed.map(|(sealed, _)| sealed.lapse());
    }

    /// Its client has another context from now on.
    pub fn is_to_be_bound_anew(&mut self) {
        self.state.has_reset = true;
    }

    /// Queues what puts it under another context, or none, within its client's transaction.
    pub(in crate::pool) fn put_under(
        &mut self,
        bound: Option<(&SealedContext, &str)>,
        is_local: bool,
        answer: &[u8],
    ) {
        self.state.is_read_only |= bound.is_some_and(|(sealed, _)| sealed.is_read_only());
        self.core.binder.put_under(bound, is_local, &mut self.core.outgoing);
        // Close twice, Parse, Bind; and the execution.
        (0..4).for_each(|_| self.owe(Due::TowardsRebind));
        self.owe(Due::Rebind(answer.into()));
    }
}
