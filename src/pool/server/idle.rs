//! A server that nobody holds, and what the shelf asks of it.

use std::io;
use std::task::Context;
use std::time::Instant;

use bytes::BytesMut;

use super::{BoundServer, CleanServer, Core, Shard, UsedServer};
use crate::pool::holder::Holder;
use crate::wire::speak;

/// What the shelf asks of a server that nobody holds.
pub trait Resting {
    /// Where its socket is registered.
    fn shard(&self) -> Shard;
    /// When it is to be closed.
    fn retires(&self) -> Instant;
    /// When it was begun to be opened.
    fn opened(&self) -> Instant;
    /// Whether it still answers.
    fn is_alive(&mut self, cx: &mut Context<'_>) -> bool;
    /// Moves its socket to the calling thread's reactor.
    fn rehome(&mut self, shard: Shard) -> io::Result<()>;
    /// Says goodbye and closes.
    fn close(self);
}

impl Resting for Core {
    fn shard(&self) -> Shard {
        self.shard
    }
    fn retires(&self) -> Instant {
        self.retires
    }
    fn opened(&self) -> Instant {
        self.opened
    }
    fn is_alive(&mut self, cx: &mut Context<'_>) -> bool {
        Core::is_alive(self, cx)
    }
    fn rehome(&mut self, shard: Shard) -> io::Result<()> {
        if self.shard != shard {
            self.stream.rehome()?;
            self.shard = shard;
        }
        Ok(())
    }
    fn close(mut self) {
        // One try: PostgreSQL copes with a socket that just closes.
        let mut out = BytesMut::new();
        speak::terminate(&mut out);
        let _ = self.stream.poll_send(&mut Context::from_waker(std::task::Waker::noop()), &mut out);
    }
}

/// A server that nobody holds.
pub enum Idle {
    /// Ready for any binding.
    Clean(CleanServer, Instant),
    /// Bound to what it last served.
    Used(UsedServer),
}

impl BoundServer {
    /// Who was charged for it, to be settled: its client is gone.
    pub(in crate::pool) fn let_go(&mut self) -> Option<Holder> {
        self.core.place.holder.take()
    }
}

impl Idle {
    /// Since when nobody holds it.
    pub fn since(&self) -> Instant {
        match self {
            Self::Clean(_, since) => *since,
            Self::Used(used) => used.idle_since,
        }
    }

    /// Somebody is charged for it from now on.
    pub(in crate::pool) fn hold(&mut self, holder: Holder) {
        self.core().place.holder = Some(holder);
    }

    /// Who was charged for it, to be settled.
    pub(in crate::pool) fn let_go(&mut self) -> Option<Holder> {
        self.core().place.holder.take()
    }

    fn core(&mut self) -> &mut Core {
        match self {
            Self::Clean(server, _) => &mut server.0,
            Self::Used(server) => &mut server.core,
        }
    }
}

impl Resting for Idle {
    fn shard(&self) -> Shard {
        match self {
            Self::Clean(server, _) => server.0.shard,
            Self::Used(server) => server.core.shard,
        }
    }
    fn retires(&self) -> Instant {
        match self {
            Self::Clean(server, _) => server.0.retires,
            Self::Used(server) => server.core.retires,
        }
    }
    fn opened(&self) -> Instant {
        match self {
            Self::Clean(server, _) => server.0.opened,
            Self::Used(server) => server.core.opened,
        }
    }
    fn is_alive(&mut self, cx: &mut Context<'_>) -> bool {
        self.core().is_alive(cx)
    }
    fn rehome(&mut self, shard: Shard) -> io::Result<()> {
        self.core().rehome(shard)
    }
    fn close(self) {
        match self {
            Self::Clean(server, _) => server.0.close(),
            Self::Used(server) => server.core.close(),
        }
    }
}
