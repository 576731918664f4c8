//! A client whose messages are carried to a server that never answers: what is queued for it can be looked at.

use pgtenant::config::PoolMode;
use pgtenant::fuzzing::{ClientStatements, Requests};
use pgtenant::net::buffer::{BUFFER_SIZE, Buffer};
use pgtenant::pool::server::BoundServer;
use pgtenant::pool::statement::Registry;

/// A client that has a server.
pub struct Client {
    requests: Requests,
    statements: ClientStatements,
    registry: Registry,
    server: BoundServer,
    incoming: Buffer,
    is_refused: bool,
}

impl Client {
    pub fn new(mode: PoolMode, standard_strings: bool) -> Self {
        let mut requests = Requests::new(mode);
        requests.begin(standard_strings, false);
        Self {
            requests,
            statements: ClientStatements::default(),
            registry: Registry::default(),
            server: BoundServer::unproven(),
            incoming: Buffer::default(),
            is_refused: false,
        }
    }

    /// These bytes arrive, as far as there is room for them.
    pub fn send(&mut self, bytes: &[u8]) {
        let mut all = self.incoming.filled().to_vec();
        let room = (BUFFER_SIZE - all.len()).min(bytes.len());
        all.extend(&bytes[..room]);
        self.incoming.consume(self.incoming.filled().len());
        assert!(self.incoming.put_back(&all));
        if !self.is_refused && !self.has_asked() {
            let Self { requests, statements, registry, server, incoming, .. } = self;
            self.is_refused = requests.carry(incoming, server, statements, registry).is_err();
        }
    }

    /// It switches its token, which nobody does here: what it sends from now on is not looked at.
    pub fn has_asked(&self) -> bool {
        self.requests.has_asked()
    }

    /// What the server was to get.
    pub fn carried(&mut self) -> Vec<u8> {
        self.server.outgoing().to_vec()
    }

    /// Its last message must not reach any server: both connections are closed.
    pub fn is_refused(&self) -> bool {
        self.is_refused
    }

    /// Bytes that wait for more bytes, or for an answer.
    pub fn waiting(&self) -> usize {
        self.incoming.filled().len()
    }

    /// It said goodbye.
    pub fn is_gone(&self) -> bool {
        self.requests.is_terminated()
    }
}
