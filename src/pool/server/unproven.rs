//! A server that nobody dialled, for `fuzz/` alone: what is queued for it is all that can be seen of it.

use std::sync::Arc;
use std::time::Instant;

use bytes::BytesMut;

use super::{BoundServer, Core, Place, Shard, TermsDigest};
use crate::net::stream::{Socket, Stream};
use crate::net::way::CancelTarget;
use crate::pool::kept::Kept;
use crate::pool::lease_state::LeaseState;
use crate::pool::ledger::Ledger;
use crate::tenancy::statements::Binder;

impl BoundServer {
    /// Of a client without a context, with nothing outstanding. It never answers.
    pub fn unproven() -> Self {
        let core = Core {
            stream: Stream::Plain(Socket::nowhere()),
            incoming: Default::default(),
            outgoing: BytesMut::new(),
            ledger: Ledger::default(),
            target: Arc::new(CancelTarget::nowhere()),
            kept: Kept::default(),
            binder: Binder::default(),
            bound_with: None,
            retires: Instant::now(),
            opened: Instant::now(),
            shard: Shard(0),
            place: Place::new(|_| {}),
        };
        Self { core: Box::new(core), digest: TermsDigest([0; 32]), lapse: None, state: LeaseState::default() }
    }
}
